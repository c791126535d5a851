"""The conductance strategy: g+ and g- of each pair over the weight, against the baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wpo_optuna.report.figures import colours
from wpo_optuna.report.figures.drawing import Illustration, Width, legend_above, panels
from wpo_optuna.report.reporting.stored_numbers import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wpo_optuna.report.reporting.study_record import StudyRecord

TITLE = "Conductance strategy"

# Height of the histogram's highest bar, as a fraction of the range of conductance.
_HISTOGRAM_HEIGHT = 0.55


def illustrate(record: StudyRecord) -> Illustration:
    """The figure of a study's winner."""
    measured = record.measurements
    caption = (
        f"Target conductances of trial {record.winner.number} over the weight, relative to the "
        "largest: each pair carries f times the difference of g⁺ (solid line) and g⁻ (dashed)."
    )
    if measured is None:
        caption += " The baseline is missing, as it is measured when a study has been scored."
    else:
        caption += (
            " Thin lines are the baseline's; the grey area is the distribution of the weights."
        )
    return Illustration(
        "conductance_curves", TITLE, caption, lambda width: _draw(record, width)
    )  # fmt: skip


def _draw(record: StudyRecord, width: Width) -> Figure:
    measured, winner = record.measurements, record.winner
    baseline = None if measured is None else measured.problem.baseline
    n_panels = max(len(winner.f), 0 if baseline is None else len(baseline.f))
    figure, all_axes = panels(
        n_panels, width, 3.1 if width is Width.WIDE else 2.5, columns=(3, 1), share_x=True,
        share_y=True,
    )  # fmt: skip
    g_min, g_max = _range_us(record)
    knots = np.linspace(-1, 1, winner.g_us.shape[1])
    for pair, axes in enumerate(all_axes):
        if measured is not None:
            _shade_histogram(axes, measured.problem.histogram, g_min, g_max)
        titles = [f"pair {pair}"]
        if pair < len(winner.f):
            _plot_pair(axes, knots, winner.g_us[2 * pair : 2 * pair + 2], 2.4, "optimised ")
            titles.append(f"f = {winner.f[pair]:.3g}")
        if baseline is not None and pair < len(baseline.f):
            curves = baseline.g_us[2 * pair : 2 * pair + 2]
            _plot_pair(axes, baseline.weights, curves, 0.9, "baseline ")
            titles.append(f"baseline {baseline.f[pair]:.3g}")
        axes.set_title(", ".join(titles))
        axes.set_xlim(-1.02, 1.02)
        axes.set_xticks(np.linspace(-1, 1, 5))
        margin = 0.03 * (g_max - g_min)
        axes.set_ylim(g_min - margin, g_max + margin)
    figure.supxlabel("weight / largest weight", fontsize=10)
    figure.supylabel("target conductance (µS)", fontsize=10)
    fullest = all_axes[min(len(winner.f), len(all_axes)) - 1]
    legend_above(figure, all_axes[0] if baseline is not None else fullest)
    return figure


def _plot_pair(
    axes: Axes, weights: FloatArray, curves: FloatArray, line_width: float, name: str
) -> None:
    for curve, colour, line, sign in zip(
        curves, (colours.G_PLUS, colours.G_MINUS), ("-", (0, (4, 1.5))), "⁺⁻", strict=True
    ):
        axes.plot(
            weights, curve, color=colour, linestyle=line, linewidth=line_width,
            label=f"{name}g{sign}",
        )  # fmt: skip


def _shade_histogram(axes: Axes, shares: FloatArray, g_min: float, g_max: float) -> None:
    edges = np.linspace(-1, 1, len(shares) + 1)
    heights = shares / shares.max() * _HISTOGRAM_HEIGHT * (g_max - g_min)
    axes.stairs(
        g_min + heights, edges, baseline=g_min, fill=True, color=colours.WEIGHTS, label="weights"
    )


def _range_us(record: StudyRecord) -> tuple[float, float]:
    """Lowest and highest conductance: the devices', or else those of the curves."""
    curves = record.winner.g_us
    low = float(record.problem.get("g_min_us", curves.min()))
    high = float(record.problem.get("g_max_us", curves.max()))
    return low, high if high > low else low + 1.0
