"""What all figures have in common: width, style, colours, panels, and how they become files.

Every figure has one width, at which its text can be read on a phone of 390 pixels and beside the
page's text on a desktop.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from numpy.typing import NDArray
from optuna.exceptions import ExperimentalWarning

from wpo_optuna.hardware import SECONDS_PER_UNIT, format_duration

FloatArray = NDArray[np.float64]

WIDTH_INCHES = 4.5
_PNG_DPI = 160

# Colours that people with any colour vision can tell apart. Source: M. Okabe and K. Ito, "Color
# universal design", 2008. Whatever differs in colour differs in marker or line style too.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, VERMILION, GREY, BLACK = "#56B4E9", "#D55E00", "#D9D9D9", "#000000"
LOOKS = tuple(
    cycler(
        color=[BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, BLACK],
        linestyle=["-", "--", "-.", ":", "-", "--", "-."],
        marker=["o", "s", "^", "D", "v", "P", "X"],
    )
)
BASELINE: dict[str, Any] = {"color": VERMILION, "linestyle": "--", "label": "baseline"}
OPTIMISED: dict[str, Any] = {"color": BLUE, "linestyle": "-", "label": "optimised"}
REFERENCE: dict[str, Any] = {"color": BLACK, "linestyle": "--", "linewidth": 1.1}

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


def save(figure_of: Callable[[Any], Figure | str], subject: object, path: Path) -> Path | str:
    """Draws a figure once, and writes it as PNG and as SVG.

    Args:
        figure_of: makes the figure, or says in a sentence why there is none.
        subject: what it is called with.
        path: of both files without their endings, in a directory that exists.

    Returns:
        path of the SVG, or the sentence.
    """
    with style():
        figure = figure_of(subject)
        if isinstance(figure, str):
            return figure
        # The places of everything are found once, and not again for each file.
        layout = figure.get_layout_engine()
        assert layout is not None
        layout.execute(figure)
        figure.set_layout_engine(None)  # "none" would have savefig draw everything twice
        figure.savefig(f"{path}.png", dpi=_PNG_DPI)
        figure.savefig(f"{path}.svg", metadata={"Date": None})
        return Path(f"{path}.svg")


@contextmanager
def style() -> Iterator[None]:
    """The report's style, whatever the user's matplotlibrc says, which is put back afterwards."""
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        # A name in a script that the font lacks; browsers have it.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        warnings.filterwarnings("ignore", category=ExperimentalWarning)  # PED-ANOVA
        yield


def panels(
    n: int, height: float, *, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A new figure with n axes below each other.

    Args:
        n: number of axes.
        height: of each in inches.
        sharex: whether all have the same x axis.
        sharey: whether all have the same y axis.
    """
    figure = Figure(figsize=(WIDTH_INCHES, height * n), layout="constrained")
    axes = figure.subplots(n, squeeze=False, sharex=sharex, sharey=sharey)
    return figure, list(axes.flat)


def band(
    axes: Axes, x: FloatArray, low: FloatArray, high: FloatArray, look: Mapping[str, Any]
) -> None:
    """Fills what lies between two curves; where bands overlap their edges tell which is which."""
    colour, line = look["color"], look.get("linestyle", "-")
    axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    for edge in (low, high):
        axes.plot(x, edge, color=colour, linestyle=line, linewidth=0.8, alpha=0.9)


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
