"""The figure of a metric over time: mean and spread of each way to program, and the ideal."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wpo_optuna.report.figures import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wpo_optuna.evaluate.accuracy import MetricOverTime

# The baseline's and the optimised strategy's as in reports, then others.
_LOOKS = tuple(drawing.LOOKS[index] for index in (5, 0, 2, 3))


def draw(result: MetricOverTime) -> Figure:
    """Draws a metric over a logarithmic axis of time."""
    figure, (axes,) = drawing.panels(1, 3.0)
    places = drawing.time_axis(axes, result.t_steps)
    if result.ideal is not None:
        axes.axhline(result.ideal, color=drawing.NEUTRAL, linestyle="--", lw=1.1, label="ideal")
    for name, look in zip(result.curves, cycle(_LOOKS), strict=False):
        mean, spread = result.mean(name), np.nan_to_num(result.spread(name))
        (line,) = axes.plot(places, mean, markersize=5, label=name)
        line.set(**look)
        axes.fill_between(
            places, mean - spread, mean + spread, color=look["color"], alpha=0.15, lw=0
        )
        # Where bands overlap their edges tell which is which.
        for edge in (mean - spread, mean + spread):
            axes.plot(places, edge, color=look["color"], alpha=0.5, linewidth=0.7)
    axes.set_ylabel(result.metric.replace("_", " "))
    if result.repeats > 1:
        axes.set_title(f"mean and standard deviation of {result.repeats} programmings")
    drawing.legend_above(figure, axes)
    return figure


def save(result: MetricOverTime, directory: Path, name: str) -> list[Path]:
    """Draws and writes ``name.png`` and ``name.svg``; returns the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = drawing.draw(draw, result)
    assert isinstance(drawn, drawing.Drawn)
    return drawn.save(directory, name)
