"""The error at each time, baseline against optimised, with 95 % intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wpo_optuna.report.figures import colours, time_axis
from wpo_optuna.report.figures.drawing import Illustration, Omission, Width, legend_above, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wpo_optuna.report.reporting.measurements import Measurements
    from wpo_optuna.report.reporting.study_record import StudyRecord

TITLE = "Error over time"


def illustrate(record: StudyRecord) -> Illustration | Omission:
    """The figure of a study's baseline and winner."""
    measured = record.measurements
    if measured is None:
        return Omission(TITLE, "The error at each time is measured when a study has been scored.")
    draws = measured.optimised_errors.tnmse[0].draws
    caption = (
        "Normalised mean-squared error at each time after programming, drift compensated: mean "
        f"and 95 % interval of {draws} draws on aihwkit's tile. The TNMSE is its mean over the "
        "times."
    )
    return Illustration("tnmse_over_time", TITLE, caption, lambda w: _draw(measured, w))


def _draw(measured: Measurements, width: Width) -> Figure:
    figure, (axes,) = panels(1, width, 3.3 if width is Width.WIDE else 3.0)
    t_s = measured.problem.t_s.tolist()
    at = time_axis.places(t_s)
    for name, errors, colour, marker in (
        ("baseline", measured.problem.baseline_errors, colours.BASELINE, "s"),
        ("optimised", measured.optimised_errors, colours.OPTIMISED, "o"),
    ):
        mean, low, high = np.array([(e.mean, e.low, e.high) for e in errors.tnmse]).T
        axes.errorbar(
            at, mean, [mean - low, high - mean], color=colour, marker=marker, markersize=5,
            capsize=4, label=name,
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_ylabel("TNMSE at this time")
    time_axis.label(axes, t_s)
    legend_above(figure, axes)
    return figure
