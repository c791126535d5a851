"""The figure of a metric over time: mean and spread of each way to program, and the ideal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wpo_optuna.hardware import format_duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wpo_optuna.evaluate.accuracy import MetricOverTime

# Of Okabe and Ito's palette, which colour-blind people can tell apart; the markers differ too.
_STYLES = (("#D55E00", "s"), ("#0072B2", "o"), ("#009E73", "^"), ("#CC79A7", "D"))

# Labels of times nearer than this fraction of the axis would overlap.
_TIME_LABEL_WIDTH = 0.08


def draw(result: MetricOverTime) -> Figure:
    """Draws a metric over a logarithmic axis of time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    places = _places(result.t_steps)
    if result.ideal is not None:
        axes.axhline(result.ideal, color="#000000", linestyle="--", linewidth=1.2, label="ideal")
    for name, (colour, marker) in zip(result.curves, cycle(_STYLES), strict=False):
        mean, spread = result.mean(name), np.nan_to_num(result.spread(name))
        axes.plot(places, mean, color=colour, marker=marker, markersize=5, lw=1.8, label=name)
        axes.fill_between(places, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
        # Where bands overlap their edges tell which is which.
        for edge in (mean - spread, mean + spread):
            axes.plot(places, edge, color=colour, alpha=0.5, linewidth=0.7)
    _finish_axes(axes, result, places)
    figure.legend(loc="outside upper left", ncols=4, frameon=False)
    return figure


def save(result: MetricOverTime, directory: Path, name: str) -> list[Path]:
    """Draws and writes ``name.png`` and ``name.svg``; returns the paths."""
    import matplotlib

    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{name}.{ending}" for ending in ("png", "svg")]
    # Text stays text in the SVG; a fixed salt keeps equal figures equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "wpo_optuna"}):
        figure = draw(result)
        figure.savefig(paths[0], dpi=160)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def _places(t_steps: Sequence[float]) -> NDArray[np.float64]:
    """Where times stand on the axis, in decades; time zero a decade before the next."""
    t = np.asarray(t_steps, dtype=np.float64)
    first = min((time for time in t_steps if time > 0), default=1.0)
    return np.log10(np.where(t > 0, t, first / 10))


def _finish_axes(axes: Axes, result: MetricOverTime, places: NDArray[np.float64]) -> None:
    ticks: dict[float, str] = {}
    for place, t in zip(places[::-1], result.t_steps[::-1], strict=True):
        if not ticks or min(ticks) - place >= _TIME_LABEL_WIDTH * np.ptp(places):
            ticks[place] = format_duration(t)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xlabel("time after programming")
    axes.set_ylabel(result.metric.replace("_", " "))
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if result.repeats > 1:
        title = f"mean and standard deviation of {result.repeats} programmings"
        axes.set_title(title, fontsize="small", color="#555555", loc="left")
