"""Acting against target weights at each time, drift compensated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wpo_optuna.report.figures import colours, time_axis
from wpo_optuna.report.figures.drawing import Illustration, Omission, Width, legend_above, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wpo_optuna.report.reporting.measurements import Measurements
    from wpo_optuna.report.reporting.study_record import StudyRecord

TITLE = "Drift-compensated correlation"


def illustrate(record: StudyRecord) -> Illustration | Omission:
    """The figure of a study's baseline and winner."""
    measured = record.measurements
    if measured is None:
        return Omission(TITLE, "The correlation is measured when a study has been scored.")
    t_s = measured.problem.t_s[list(measured.optimised_errors.shown)].tolist()
    caption = (
        "Weights as they act at each time after drift compensation, over the weights wanted, both "
        "relative to the largest. The areas hold 95 % of the weights, the lines are their median; "
        "r is Pearson's correlation, baseline → optimised."
    )
    return Illustration("weight_correlation", TITLE, caption, lambda w: _draw(measured, t_s, w))


def _draw(measured: Measurements, t_s: list[float], width: Width) -> Figure:
    baseline, optimised = measured.problem.baseline_errors, measured.optimised_errors
    figure, all_axes = panels(
        len(t_s), width, 2.9 if width is Width.WIDE else 2.1, columns=(3, 2), share_x=True,
        share_y=True,
    )  # fmt: skip
    for i, (axes, t) in enumerate(zip(all_axes, t_s, strict=True)):
        axes.plot([-1, 1], [-1, 1], color=colours.NEUTRAL, linewidth=0.8, label="ideal")
        for name, errors, colour, line in (
            ("baseline", baseline, colours.BASELINE, "--"),
            ("optimised", optimised, colours.OPTIMISED, "-"),
        ):
            low, median, high = errors.targets + errors.band[i]
            axes.fill_between(errors.targets, low, high, color=colour, alpha=0.3, linewidth=0)
            axes.plot(
                errors.targets, median, color=colour, linestyle=line, linewidth=1.2, label=name
            )
        before, after = (_four_nines(e.correlation[i]) for e in (baseline, optimised))
        axes.set_title(f"{time_axis.name(t)}: r {before} → {after}")
    figure.supxlabel("weight wanted", fontsize=10)
    figure.supylabel("weight acting", fontsize=10)
    legend_above(figure, all_axes[0])
    return figure


def _four_nines(correlation: float) -> str:
    """A correlation with as many digits as tell it from one."""
    if not np.isfinite(correlation):
        return "none"
    digits = 3 if correlation < 0.999 else 4
    return f"{correlation:.{digits}f}"
