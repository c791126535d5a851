"""What was measured: the conductance strategy, the weights' errors over time, and the devices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wpo_optuna.report.figures import drawing
from wpo_optuna.report.figures.drawing import FloatArray, legend_above, panels
from wpo_optuna.report.measurements import times_shown

if TYPE_CHECKING:
    from wpo_optuna.report.measurements import Measurements, WeightErrors
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


def tnmse_over_time(measured: Measurements) -> Figure:
    """The error at each time, with 95 % intervals."""
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


def weight_errors(measured: Measurements) -> Figure:
    """The distribution of the errors at each time."""
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


def weight_correlation(measured: Measurements) -> Figure:
    """How far acting weights lie from wanted ones, and their correlation, at each time."""
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


def devices(measured: Measurements) -> Figure | str:
    """Programming error, drift and read noise over the conductance."""
    model = measured.devices
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
