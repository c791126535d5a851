"""What all figures have in common: width, style, colours, panels, and how they become files.

Every figure has one width, at which its text can be read on a phone of 390 pixels and beside the
page's text on a desktop.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from wpo_optuna.hardware import SECONDS_PER_UNIT, format_duration

FloatArray = NDArray[np.float64]

WIDTH_INCHES = 4.5
_PNG_DPI = 160

# Colours that people with any colour vision can tell apart. Source: M. Okabe and K. Ito, "Color
# universal design", 2008. Whatever differs in colour differs in marker or line style too.
_BLUE, _VERMILION, _GREEN, _PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
BASELINE, OPTIMISED, WINNER = _VERMILION, _BLUE, _VERMILION
G_PLUS, G_MINUS = _GREEN, _PURPLE
WEIGHTS, NEUTRAL = "#D9D9D9", "#000000"
LOOKS = (
    {"color": _BLUE, "linestyle": "-", "marker": "o"},
    {"color": "#E69F00", "linestyle": "--", "marker": "s"},
    {"color": _GREEN, "linestyle": "-.", "marker": "^"},
    {"color": _PURPLE, "linestyle": ":", "marker": "D"},
    {"color": "#56B4E9", "linestyle": "-", "marker": "v"},
    {"color": _VERMILION, "linestyle": "--", "marker": "P"},
    {"color": NEUTRAL, "linestyle": "-.", "marker": "X"},
)

_STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    # With a place of its own, a title is not moved about each time a figure is drawn.
    "axes.titley": 1.0,
    "figure.labelsize": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.7,
    # A user's names may contain any sign.
    "text.parse_math": False,
    # Text stays text in the SVG, small and searchable; a fixed salt keeps equal figures equal.
    "svg.fonttype": "none",
    "svg.hashsalt": "wpo_optuna",
}

# Labels of times nearer than this fraction of the axis would overlap.
_LABEL_WIDTH = 0.13
_LONGEST_TIME = 5


@dataclass(frozen=True)
class Drawn:
    """A figure as the contents of its two files."""

    svg: bytes
    png: bytes

    def save(self, directory: Path, name: str) -> list[Path]:
        """Writes ``name.png`` and ``name.svg`` into a directory; returns the paths."""
        paths = [directory / f"{name}.{ending}" for ending in ("png", "svg")]
        for path, content in zip(paths, (self.png, self.svg), strict=True):
            path.write_bytes(content)
        return paths


def draw(figure_of: Callable[..., Figure | str], *arguments: object) -> Drawn | str:
    """Draws a figure once, for both of its files.

    Args:
        figure_of: makes the figure, or says in a sentence why there is none.
        arguments: what it is called with.
    """
    with style():
        figure = figure_of(*arguments)
        if isinstance(figure, str):
            return figure
        settle_layout(figure)
        return Drawn(_contents(figure, "svg"), _contents(figure, "png"))


@contextmanager
def style() -> Iterator[None]:
    """The report's style, whatever the user's matplotlibrc says, which is put back afterwards."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        # A name in a script that the font lacks; browsers have it.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def settle_layout(figure: Figure) -> None:
    """Finds the places of everything once, and not again for each file."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine(None)  # "none" would have savefig draw everything twice


def _contents(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(buffer, format=kind, dpi=_PNG_DPI, metadata=metadata)
    return buffer.getvalue()


def panels(
    n: int, height: float, *, columns: int = 1, share_x: bool = False, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """A new figure with n axes, beside and below each other.

    Args:
        n: number of axes.
        height: of one row in inches.
        columns: most axes beside each other.
        share_x: whether all have the same x axis.
        share_y: whether all have the same y axis.
    """
    columns = min(n, columns)
    rows = -(-n // columns)
    figure = Figure(figsize=(WIDTH_INCHES, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=share_x, sharey=share_y).flat)
    for superfluous in axes[n:]:
        superfluous.remove()
    for lowest in axes[:n][-columns:]:  # of each column, where the last row is not full
        lowest.tick_params(labelbottom=True)
    return figure, axes[:n]


def legend_above(figure: Figure, axes: Axes) -> None:
    """Names what the axes show, above all of the figure's panels, which keep their height."""
    handles, labels = axes.get_legend_handles_labels()
    entry_inches = 0.45 + 0.085 * max(map(len, labels))
    columns = max(1, min(len(labels), int(WIDTH_INCHES / entry_inches)))
    rows = -(-len(labels) // columns)
    columns = -(-len(labels) // rows)
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.19 * rows)
    figure.legend(
        handles, labels, loc="outside upper left", ncols=columns, handlelength=1.6,
        columnspacing=1.2, borderaxespad=0.0,
    )  # fmt: skip


def colours_of_times(n: int) -> list[Any]:
    """A colour for each of n times, from dark to light, in order also without colours."""
    # The last tenth of the map is too light for lines on white.
    return [matplotlib.colormaps["viridis"](0.88 * i / max(1, n - 1)) for i in range(n)]


def time_name(seconds: float) -> str:
    """A time after programming in few letters, rounded where it is no small number of any unit."""
    exact = format_duration(seconds)
    if len(exact) <= _LONGEST_TIME:
        return exact
    units = [(size, unit) for unit, size in SECONDS_PER_UNIT.items() if size <= seconds]
    size, unit = max(units, default=(1.0, "s"))
    return f"{seconds / size:.3g}{unit}"


def time_axis(axes: Axes, t_s: Sequence[float]) -> FloatArray:
    """Makes the x axis one of times in decades, and returns the place of each.

    Time zero stands a decade before the next; labels that would overlap later ones are left out.
    """
    t = np.asarray(t_s, dtype=np.float64)
    first = t[t > 0].min(initial=np.inf)
    places = np.log10(np.where(t > 0, t, first / 10 if np.isfinite(first) else 1.0))
    ticks: list[tuple[float, str]] = []
    for place, seconds in sorted(zip(places, t, strict=True), reverse=True):
        if not ticks or ticks[-1][0] - place >= _LABEL_WIDTH * np.ptp(places):
            ticks.append((place, time_name(float(seconds))))
    axes.set_xticks([place for place, _ in ticks], [name for _, name in ticks])
    axes.set_xlabel("time after programming")
    return places
