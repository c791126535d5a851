"""The figure of a metric over time: mean and spread of each way to program, and the ideal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wpo_optuna.evaluate.accuracy import MetricOverTime
from wpo_optuna.hardware import format_duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of Okabe and Ito's palette, which colour-blind people can tell apart; the markers differ too.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")
_MARKERS = ("s", "o", "^", "D")
_IDEAL = "#000000"

# Labels nearer than these fractions of the axes would overlap.
_TIME_LABEL_WIDTH = 0.08
_CURVE_LABEL_HEIGHT = 0.055


def draw(result: MetricOverTime) -> Figure:
    """Draws a metric over a logarithmic axis of time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    places = _places(result.t_steps)
    if result.ideal is not None:
        axes.axhline(result.ideal, color=_IDEAL, linestyle="--", linewidth=1.2)
    for curve, colour, marker in zip(result.curves, cycle(_COLOURS), cycle(_MARKERS), strict=False):
        mean, spread = curve.mean, np.nan_to_num(curve.spread)
        axes.fill_between(places, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
        # Where bands overlap their edges tell which is which.
        for edge in (mean - spread, mean + spread):
            axes.plot(places, edge, color=colour, alpha=0.5, linewidth=0.7)
        axes.plot(places, mean, color=colour, marker=marker, markersize=5, linewidth=1.8)
    _label_curves(axes, result)
    _finish_axes(axes, result, places)
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
    positive = t[t > 0]
    first = positive[0] if len(positive) else 1.0
    return np.log10(np.where(t > 0, t, first / 10))


def _label_curves(axes: Axes, result: MetricOverTime) -> None:
    """Names the curves beside their right ends, moved apart where they would overlap."""
    ends = [
        (curve.mean[-1], curve.name, colour)
        for curve, colour in zip(result.curves, cycle(_COLOURS), strict=False)
    ]
    if result.ideal is not None:
        ends.append((result.ideal, "ideal", _IDEAL))
    ends = sorted(end for end in ends if np.isfinite(end[0]))
    low, high = axes.get_ylim()
    heights = spread_apart([end[0] for end in ends], _CURVE_LABEL_HEIGHT * (high - low))
    for height, (_, name, colour) in zip(heights, ends, strict=True):
        axes.annotate(
            name, (1, height), xycoords=("axes fraction", "data"), xytext=(5, 0),
            textcoords="offset points", color=colour, va="center", annotation_clip=False,
        )  # fmt: skip
    axes.set_ylim(low, high)


def spread_apart(heights: Sequence[float], distance: float) -> list[float]:
    """Heights of labels, at least a distance apart and as near as possible to those wanted.

    Args:
        heights: wanted heights, ascending.
        distance: least distance of neighbours.
    """
    groups: list[tuple[float, int]] = []  # middle and size of labels that stand together
    for height in heights:
        middle, size = float(height), 1
        while groups and middle - groups[-1][0] < distance * (size + groups[-1][1]) / 2:
            other, other_size = groups.pop()
            middle = (middle * size + other * other_size) / (size + other_size)
            size += other_size
        groups.append((middle, size))
    return [
        middle + distance * (i - (size - 1) / 2) for middle, size in groups for i in range(size)
    ]


def _finish_axes(axes: Axes, result: MetricOverTime, places: NDArray[np.float64]) -> None:
    axes.margins(x=0.02)
    ticks: list[float] = []
    for place in places[::-1]:
        if not ticks or ticks[-1] - place >= _TIME_LABEL_WIDTH * np.ptp(places):
            ticks.append(place)
    labels = dict(zip(places, map(format_duration, result.t_steps), strict=True))
    axes.set_xticks(ticks, [labels[place] for place in ticks])
    axes.set_xlabel("time after programming")
    axes.set_ylabel(result.metric.replace("_", " "))
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    repeats = max((len(curve.values) for curve in result.curves), default=0)
    if repeats > 1:
        axes.set_title(
            f"mean and standard deviation of {repeats} programmings",
            fontsize="small", color="#555555", loc="left",
        )  # fmt: skip
