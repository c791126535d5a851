"""The distribution of weight errors at each time, baseline against optimised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wpo_optuna.report.figures import colours, time_axis
from wpo_optuna.report.figures.drawing import Illustration, Omission, Width, legend_above, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wpo_optuna.report.reporting.measurements import Measurements
    from wpo_optuna.report.reporting.study_record import StudyRecord

TITLE = "Weight errors"


def illustrate(record: StudyRecord) -> Illustration | Omission:
    """The figure of a study's baseline and winner."""
    measured = record.measurements
    if measured is None:
        return Omission(TITLE, "Weight errors are measured when a study has been scored.")
    t_s = measured.problem.t_s[list(measured.optimised_errors.shown)].tolist()
    caption = (
        "Distribution of the errors of all weights at each time, drift compensated, in percent of "
        "the largest weight. σ is their standard deviation, baseline → optimised."
    )
    return Illustration("weight_errors", TITLE, caption, lambda w: _draw(measured, t_s, w))


def _draw(measured: Measurements, t_s: list[float], width: Width) -> Figure:
    baseline, optimised = measured.problem.baseline_errors, measured.optimised_errors
    figure, all_axes = panels(
        len(t_s), width, 2.3 if width is Width.WIDE else 2.0, columns=(3, 2), share_x=True,
        share_y=True,
    )  # fmt: skip
    for i, (axes, t) in enumerate(zip(all_axes, t_s, strict=True)):
        for name, errors, colour, style in (
            ("baseline", baseline, colours.BASELINE, {"linestyle": "--", "linewidth": 1.5}),
            ("optimised", optimised, colours.OPTIMISED, {"linewidth": 1.5}),
        ):
            # Shares per percent, as the bins of the two differ.
            edges = 100 * errors.edges
            density = 100 * errors.density[i] / (edges[1] - edges[0])
            axes.stairs(density, edges, color=colour, label=name, **style)
            axes.stairs(density, edges, fill=True, color=colour, alpha=0.12)
        before, after = (100 * e.standard_deviation[i] for e in (baseline, optimised))
        axes.set_title(f"{time_axis.name(t)}: σ {before:#.3g} → {after:#.3g} %")
        axes.set_ylim(bottom=0)
    figure.supxlabel("error / largest weight (%)", fontsize=10)
    figure.supylabel("% of weights per %", fontsize=10)
    legend_above(figure, all_axes[0])
    return figure
