"""Colours that people with any colour vision can tell apart.

Source: M. Okabe and K. Ito, "Color universal design", 2008. Whatever differs in colour differs in
marker or line style too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_BLUE, _VERMILION, _GREEN, _PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
_ORANGE, _SKY, _BLACK = "#E69F00", "#56B4E9", "#000000"

BASELINE, OPTIMISED = _VERMILION, _BLUE
WINNER = _VERMILION
G_PLUS, G_MINUS = _GREEN, _PURPLE
WEIGHTS, NEUTRAL, FAINT = "#D9D9D9", _BLACK, "#666666"


@dataclass(frozen=True)
class Look:
    """How one of several curves looks."""

    colour: str
    line: str
    marker: str


_LOOKS = tuple(
    Look(*look)
    for look in (
        (_BLUE, "-", "o"),
        (_ORANGE, "--", "s"),
        (_GREEN, "-.", "^"),
        (_PURPLE, ":", "D"),
        (_SKY, "-", "v"),
        (_VERMILION, "--", "P"),
        (_BLACK, "-.", "X"),
    )
)


def look(index: int) -> Look:
    """The look of the curve with this index; after seven curves they come again."""
    return _LOOKS[index % len(_LOOKS)]


def of_times(n: int) -> list[Any]:
    """A colour for each of n times, from dark to light, in order also without colours."""
    from matplotlib import colormaps

    # The last tenth of the map is too light for lines on white.
    return [colormaps["viridis"](0.88 * i / max(1, n - 1)) for i in range(n)]
