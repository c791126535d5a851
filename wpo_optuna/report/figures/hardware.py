"""The conductance strategy against the baseline's, and the device model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wpo_optuna.report.figures import drawing
from wpo_optuna.report.figures.drawing import FloatArray, legend_above, panels

if TYPE_CHECKING:
    from wpo_optuna.report.record import StudyRecord

# Height of the histogram's highest bar, as a fraction of the range of conductance.
_HISTOGRAM_HEIGHT = 0.55
# Relative to the largest conductance: a mean below this has no meaningful quotient.
_SMALLEST_MEAN = 1e-3


def conductance_curves(record: StudyRecord) -> Figure:
    """g⁺ and g⁻ of each pair over the weight, the winner's and the baseline's."""
    measured = record.measurements
    f, curves = (np.array(record.winner.user_attrs[name]) for name in ("f_lst", "g_lst"))
    baseline_f = np.empty(0) if measured is None else measured.baseline.f
    figure, all_axes = panels(max(len(f), len(baseline_f)), 2.2, share_x=True, share_y=True)
    g_min = float(record.problem.get("g_min_us", curves.min()))
    g_max = max(float(record.problem.get("g_max_us", curves.max())), g_min + 1e-9)
    for pair, axes in enumerate(all_axes):
        both, titles = slice(2 * pair, 2 * pair + 2), [f"pair {pair}"]
        if measured is not None:
            edges = np.linspace(-1, 1, len(measured.histogram) + 1)
            heights = measured.histogram / measured.histogram.max() * _HISTOGRAM_HEIGHT
            axes.stairs(
                g_min + heights * (g_max - g_min), edges, baseline=g_min, fill=True,
                color=drawing.WEIGHTS, label="weights",
            )  # fmt: skip
        if pair < len(f):
            _plot_pair(axes, curves[both], 2.4, "optimised")
            titles.append(f"f = {f[pair]:.3g}")
        if measured is not None and pair < len(baseline_f):
            _plot_pair(axes, measured.baseline.g_us[both], 0.9, "baseline")
            titles.append(f"baseline {baseline_f[pair]:.3g}")
        axes.set_title(", ".join(titles))
        axes.set_xticks(np.linspace(-1, 1, 5))
        margin = 0.03 * (g_max - g_min)
        axes.set_ylim(g_min - margin, g_max + margin)
    figure.supxlabel("weight / largest weight")
    figure.supylabel("target conductance (µS)")
    n_complete = min(len(f), len(baseline_f) or len(f))
    legend_above(figure, all_axes[n_complete - 1])
    return figure


def _plot_pair(axes: Axes, curves: FloatArray, line_width: float, name: str) -> None:
    weights = np.linspace(-1, 1, curves.shape[1])
    looks = ((drawing.G_PLUS, "-", "⁺"), (drawing.G_MINUS, (0, (4, 1.5)), "⁻"))
    for curve, (colour, line, sign) in zip(curves, looks, strict=True):
        axes.plot(
            weights, curve, color=colour, linestyle=line, linewidth=line_width,
            label=f"{name} g{sign}",
        )  # fmt: skip


def devices(record: StudyRecord) -> Figure | str:
    """Programming error, drift and read noise over the conductance."""
    if record.measurements is None:
        return "The devices are sampled when a study has been scored."
    model = record.measurements.devices
    if model is None:
        return "The noise model cannot be sampled apart from a tile."
    figure, (programming, drift, noise) = panels(3, 1.9, share_x=True)
    g, programmed = model.g_target_us, model.programmed_mean_us
    error, spread = programmed - g, model.programmed_std_us
    programming.fill_between(
        g, error - spread, error + spread, color=drawing.OPTIMISED, alpha=0.2, linewidth=0
    )
    programming.plot(g, error, color=drawing.OPTIMISED)
    programming.axhline(0, color=drawing.NEUTRAL, linewidth=0.8)
    kept = np.where(programmed > _SMALLEST_MEAN * g.max(), programmed, np.nan)
    colours = drawing.colours_of_times(len(model.t_s))
    for i, (t, colour) in enumerate(zip(model.t_s, colours, strict=True)):
        drift.plot(
            g, 100 * model.mean_us[i] / kept, color=colour, label=drawing.time_name(float(t))
        )
        noise.plot(g, model.read_std_us[i], color=colour)
    noise.set_ylim(bottom=0)
    for axes, title, label in (
        (programming, "programming error", "deviation (µS)"),
        (drift, "drift", "conductance kept (%)"),
        (noise, "read noise", "standard dev. (µS)"),
    ):
        axes.set_title(title)
        axes.set_ylabel(label)
    figure.supxlabel("target conductance (µS)")
    figure.align_ylabels()
    legend_above(figure, drift)
    return figure
