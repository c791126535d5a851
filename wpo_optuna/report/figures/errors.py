"""What becomes of the programmed weights over time, baseline against optimised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wpo_optuna.report.figures import drawing
from wpo_optuna.report.figures.drawing import legend_above, panels
from wpo_optuna.report.weight_errors import times_shown

if TYPE_CHECKING:
    from wpo_optuna.report.measurements import Measurements
    from wpo_optuna.report.record import StudyRecord
    from wpo_optuna.report.weight_errors import WeightErrors

_MISSING = "What becomes of the weights is measured when a study has been scored."


def tnmse_over_time(record: StudyRecord) -> Figure | str:
    """The error at each time, with 95 % intervals."""
    measured = record.measurements
    if measured is None:
        return _MISSING
    figure, (axes,) = panels(1, 2.9)
    places = drawing.time_axis(axes, measured.t_s.tolist())
    for (errors, look), marker in zip(_both(measured), "so", strict=True):
        mean, low, high = errors.tnmse.T
        axes.errorbar(
            places, mean, [mean - low, high - mean], marker=marker, markersize=5, capsize=4, **look
        )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("TNMSE at this time (%)")
    legend_above(figure, axes)
    return figure


def weight_errors(record: StudyRecord) -> Figure | str:
    """The distribution of the errors at each time."""
    measured = record.measurements
    if measured is None:
        return _MISSING
    figure, panels_by_time = _panel_for_each_time(measured)
    for i, (time, axes) in enumerate(panels_by_time):
        for errors, look in _both(measured):
            # Shares per percent, as the bins of the two differ.
            edges = 100 * errors.edges
            density = 100 * errors.density[i] / (edges[1] - edges[0])
            axes.stairs(density, edges, linewidth=1.5, **look)
            axes.stairs(density, edges, fill=True, color=look["color"], alpha=0.12)
        before, after = (100 * e.standard_deviation[i] for e, _ in _both(measured))
        axes.set_title(f"{time}: σ {before:#.3g} → {after:#.3g} %")
        axes.set_ylim(bottom=0)
    figure.supxlabel("error / largest weight (%)")
    figure.supylabel("% of weights per %")
    legend_above(figure, panels_by_time[0][1])
    return figure


def weight_correlation(record: StudyRecord) -> Figure | str:
    """How far acting weights lie from wanted ones, and their correlation, at each time."""
    measured = record.measurements
    if measured is None:
        return _MISSING
    figure, panels_by_time = _panel_for_each_time(measured)
    for i, (time, axes) in enumerate(panels_by_time):
        axes.axhline(0, color=drawing.NEUTRAL, linewidth=0.8, label="ideal")
        for errors, look in _both(measured):
            low, median, high = 100 * errors.band[i]
            axes.fill_between(
                errors.targets, low, high, color=look["color"], alpha=0.12, linewidth=0
            )
            axes.plot(errors.targets, median, linewidth=1.4, **look)
            for edge in (low, high):
                axes.plot(errors.targets, edge, linewidth=0.9, **look | {"label": None})
        before, after = (_four_nines(e.correlation[i]) for e, _ in _both(measured))
        axes.set_title(f"{time}: r {before} → {after}")
    figure.supxlabel("weight wanted / largest weight")
    figure.supylabel("(acting − wanted) / largest weight (%)")
    legend_above(figure, panels_by_time[0][1])
    return figure


def _panel_for_each_time(measured: Measurements) -> tuple[Figure, list[tuple[str, Axes]]]:
    """A figure with axes for each time that is shown, and the time's name."""
    t_s = measured.t_s[times_shown(len(measured.t_s))]
    figure, all_axes = panels(len(t_s), 1.9, columns=2, share_x=True, share_y=True)
    return figure, list(zip(map(drawing.time_name, t_s.tolist()), all_axes, strict=True))


def _both(measured: Measurements) -> Iterator[tuple[WeightErrors, dict[str, Any]]]:
    """The errors of baseline and winner, and how each is drawn."""
    baseline = {"color": drawing.BASELINE, "linestyle": "--", "label": "baseline"}
    optimised = {"color": drawing.OPTIMISED, "linestyle": "-", "label": "optimised"}
    yield measured.baseline.errors, baseline
    yield measured.optimised.errors, optimised


def _four_nines(correlation: float) -> str:
    """A correlation with as many digits as tell it from one."""
    if not np.isfinite(correlation):
        return "none"
    return f"{correlation:.3f}" if correlation < 0.999 else f"{correlation:.4f}"
