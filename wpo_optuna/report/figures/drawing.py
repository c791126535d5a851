"""What all figures have in common: sizes, style, panels, and how they become files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PNG_DPI = 150
_INCHES = {"wide": 9.4, "narrow": 4.1}

_STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
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


class Width(Enum):
    """Where a figure is read: beside text on a desktop, or on a phone."""

    WIDE = "wide"
    NARROW = "narrow"

    @property
    def inches(self) -> float:
        """Width of the figure, so that text of its font size can be read there."""
        return _INCHES[self.value]


@dataclass(frozen=True)
class Illustration:
    """A figure that can be drawn.

    Attributes:
        name: its name as a file, without ending.
        title: what it is about.
        caption: how to read it.
        draw: draws it.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Width], Figure]


@dataclass(frozen=True)
class Omission:
    """A figure that there are no data for.

    Attributes:
        title: what it would be about.
        reason: why it is missing, in a sentence.
    """

    title: str
    reason: str


@dataclass(frozen=True)
class DrawnFigure:
    """A figure as files.

    Attributes:
        illustration: what it shows.
        png: the wide figure.
        svg: the wide figure.
        narrow_svg: the narrow one.
    """

    illustration: Illustration
    png: bytes
    svg: bytes
    narrow_svg: bytes


def render(illustration: Illustration) -> DrawnFigure:
    """Draws a figure for wide and narrow screens."""
    with _styled():
        wide = illustration.draw(Width.WIDE)
        _settle_layout(wide)
        narrow = illustration.draw(Width.NARROW)
        _settle_layout(narrow)
        return DrawnFigure(illustration, _bytes(wide, "png"), _bytes(wide, "svg"),
                           _bytes(narrow, "svg"))  # fmt: skip


def panels(
    n: int,
    width: Width,
    height: float,
    *,
    columns: tuple[int, int] = (3, 1),
    share_x: bool = False,
    share_y: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A new figure with n axes, beside and below each other.

    Args:
        n: number of axes.
        width: how wide the figure is.
        height: of one row in inches.
        columns: most columns of a wide and of a narrow figure.
        share_x: whether all have the same x axis.
        share_y: whether all have the same y axis.
    """
    from matplotlib.figure import Figure

    n_columns = min(n, columns[0] if width is Width.WIDE else columns[1])
    n_rows = -(-n // n_columns)
    figure = Figure(figsize=(width.inches, height * n_rows), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=share_x, sharey=share_y)
    axes = list(grid.flat)
    for superfluous in axes[n:]:
        superfluous.remove()
    for column in range(n_columns):  # the lowest of each column, where the last row is not full
        lowest = axes[:n][column::n_columns][-1]
        lowest.tick_params(labelbottom=True)
    return figure, axes[:n]


def legend_above(figure: Figure, axes: Axes) -> None:
    """Names what the axes show, above all of the figure's panels, which keep their height."""
    handles, labels = axes.get_legend_handles_labels()
    entry_inches = 0.45 + 0.085 * max(map(len, labels))
    n_columns = max(1, min(len(labels), int(figure.get_figwidth() / entry_inches)))
    n_rows = -(-len(labels) // n_columns)
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.19 * n_rows)
    figure.legend(
        handles, labels, loc="outside upper left", ncols=n_columns, handlelength=1.6,
        columnspacing=1.2, borderaxespad=0.0,
    )  # fmt: skip


@contextmanager
def _styled() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # The layout is made for this style: not for that of a user's matplotlibrc.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        # A name in a script that the font lacks; browsers have it.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def _settle_layout(figure: Figure) -> None:
    """Finds the places of everything once, and not again for each file."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    # With "none" in place of None, savefig would draw everything twice.
    figure.set_layout_engine(None)


def _bytes(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(buffer, format=kind, dpi=_PNG_DPI, metadata=metadata)
    return buffer.getvalue()
