"""The figures of a report: each a function from what is known of a study to a matplotlib figure.

Where there is nothing to draw, the function returns a sentence that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from wpo_optuna.report import drawing
from wpo_optuna.report.drawing import LOOKS, FloatArray, legend_above, panels
from wpo_optuna.report.measurements import Measurements, evenly_spread
from wpo_optuna.report.record import StudyRecord
from wpo_optuna.strategy import ProgrammingStrategy
from wpo_optuna.study import attributes

FigureOf = Callable[[Any], Figure | str]

# Few enough that importance takes no time, and that an SVG of single dots stays small.
MOST_TRIALS, MOST_DOTS = 1000, 500
MOST_COORDINATES = 20
# PED-ANOVA compares the best tenth with all: of fewer trials it would be a handful.
LEAST_TRIALS = 50
# The worst trials would leave no room for the difference that matters.
_SHOWN_QUANTILE = 0.95
# Up to where differences from the baseline are seen apart, relative to it.
_NEAR_BASELINE = 1.15
_LONGEST_NAME = 24
_NOTHING_FINITE = "No trial has a finite TNMSE."
# Height of the histogram's highest bar, as a fraction of the range of conductance.
_HISTOGRAM_HEIGHT = 0.55
# Relative to the largest conductance: a mean below this has no meaningful quotient.
_SMALLEST_MEAN = 0.02


def figures_of_study(record: StudyRecord) -> dict[FigureOf, Any]:
    """The figures of a study beside its search, and what each is drawn of; None if that is missing.

    The names of these functions are those of the files.
    """
    of_record: list[FigureOf] = [conductance_curves, explored_factors, importance]
    if record.knows_conductance:
        of_record.append(front)
    of_measurements = tnmse_over_time, weight_errors, weight_correlation, devices, sensitivity
    return dict.fromkeys(of_record, record) | dict.fromkeys(of_measurements, record.measurements)


def search_progress(records: Sequence[StudyRecord]) -> Figure | str:
    """Every trial, and the best so far, of each study; apart, those near the baseline."""
    ratios = np.concatenate([record.ratio for record in records])
    if not _has_place(ratios).any():
        return _NOTHING_FINITE
    views = [np.inf]
    # A handful says nothing there, and nearly all are seen well as they are.
    if 0.05 < np.mean(ratios < _NEAR_BASELINE) < 0.9:
        views.append(_NEAR_BASELINE)
    figure, all_axes = panels(len(views), 3.3 / len(views) ** 0.5, sharex=True)
    margins = {record.settings[attributes.PROBLEM].get("loss_margin", 0.0) for record in records}
    for axes, most in zip(all_axes, views, strict=True):
        for record, look in zip(records, cycle(LOOKS), strict=False):
            _plot_trials(axes, record, look, is_one_of_several=len(records) > 1)
        _scale(axes, ratios, _SHOWN_QUANTILE, most)
        axes.axhline(1, label="baseline", **drawing.REFERENCE)
        # The studies may have different margins; there is no common line then.
        if len(margins) == 1 and 0 < (margin := max(margins)) < 1:
            label = f"loss 0: {100 * margin:.3g} % better"
            axes.axhline(1 - margin, label=label, **drawing.REFERENCE | {"linestyle": ":"})
    all_axes[-1].set(xlabel="trial", xmargin=0.02)
    figure.supylabel("TNMSE / baseline")
    legend_above(figure, all_axes[0])
    return figure


def _plot_trials(
    axes: Axes, record: StudyRecord, look: dict[str, str], is_one_of_several: bool
) -> None:
    numbers, ratios, colour = record.number, record.ratio, look["color"]
    polished = record.is_polished
    dots = np.flatnonzero(~polished)
    dots = dots[evenly_spread(len(dots), MOST_DOTS)]
    axes.plot(
        numbers[dots], ratios[dots], linestyle="none", marker=look["marker"], color=colour,
        markersize=3, alpha=0.35, markeredgewidth=0,
    )  # fmt: skip
    best = np.fmin.accumulate(ratios)
    steps = np.union1d(np.flatnonzero(np.diff(best, prepend=np.nan)), len(best) - 1)
    axes.plot(
        numbers[steps], best[steps], color=colour, linestyle=look["linestyle"],
        drawstyle="steps-post", label=_label(record) if is_one_of_several else "best so far",
    )  # fmt: skip
    if polished.any():
        axes.plot(
            numbers[polished], ratios[polished], linestyle="none", marker="D", color=colour,
            markeredgecolor=drawing.BLACK, markersize=6, zorder=4,
            label=None if is_one_of_several else "polished",
        )  # fmt: skip


def _label(record: StudyRecord) -> str:
    sampler = record.settings[attributes.SAMPLER]
    told = record.name if sampler in record.name else f"{record.name} ({sampler})"
    name = " ".join(told.split())
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def explored_factors(record: StudyRecord) -> Figure | str:
    """Which significance factors and scales were explored, and how good they were."""
    shown = np.flatnonzero(_has_place(record.ratio))
    if not len(shown):
        return _NOTHING_FINITE
    f, f_of_winner = record.values("f_lst"), record.winner.user_attrs["f_lst"]
    quantities = [
        *((f"f_{pair}, factor of pair {pair}", f[:, pair], f_of_winner[pair])
          for pair in range(f.shape[1])),
        ("k_w (µS per unit weight)", record.values("k_w"), record.winner.user_attrs["k_w"]),
    ]  # fmt: skip
    quantities = [q for q in quantities if np.ptp(q[1][np.isfinite(q[1])]) > 0]
    if not quantities:
        return "All trials have the same significance factors and scale."
    figure, all_axes = panels(len(quantities), 2.3, sharey=True)
    shown = shown[evenly_spread(len(shown), MOST_DOTS)]
    ratio_of_winner = record.ratio[record.number == record.winner.number]
    for axes, (label, values, of_winner) in zip(all_axes, quantities, strict=True):
        points = axes.scatter(
            values[shown], record.ratio[shown], c=record.number[shown], s=9, alpha=0.6,
            cmap="viridis", linewidths=0,
        )  # fmt: skip
        axes.plot(
            of_winner, ratio_of_winner, marker="o", markersize=11, markerfacecolor="none",
            markeredgecolor=drawing.VERMILION, markeredgewidth=2,
        )  # fmt: skip
        axes.axhline(1, **drawing.REFERENCE)
        axes.set_xlabel(label)
    _scale(all_axes[0], record.ratio, 0.75)
    figure.supylabel("TNMSE / baseline")
    figure.colorbar(points, ax=all_axes, label="trial", aspect=30, pad=0.02)
    return figure


def importance(record: StudyRecord) -> Figure | str:
    """Which coordinates of the hypercube mattered, by Optuna's PED-ANOVA."""
    losses = np.array([trial.values[0] for trial in record.trials], dtype=np.float64)
    proposed = np.flatnonzero(np.isfinite(losses) & ~record.is_polished)
    if len(proposed) < LEAST_TRIALS:
        return (
            f"Importance needs at least {LEAST_TRIALS} trials proposed by the sampler; there are "
            f"{len(proposed)}."
        )
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    optuna.logging.set_verbosity(level)
    # The study copies each trial with all it holds: no attributes, and one distribution for all.
    unit: BaseDistribution = FloatDistribution(0.0, 1.0)
    chosen = [record.trials[i] for i in proposed[evenly_spread(len(proposed), MOST_TRIALS)]]
    study.add_trials(
        create_trial(
            value=t.values[0], params=t.params, distributions=dict.fromkeys(t.params, unit)
        )
        for t in chosen
    )
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    names = list(found)[:MOST_COORDINATES][::-1]
    figure, (axes,) = panels(1, 0.6 + 0.2 * len(names))
    axes.barh(names, [100 * found[name] for name in names], color=drawing.BLUE)
    axes.set(xlabel="importance (%)", ymargin=0.02)
    axes.grid(axis="y", visible=False)
    return figure


def front(record: StudyRecord) -> Figure:
    """Error against mean conductance: all trials, and those of which none is better in both."""
    figure, (axes,) = panels(1, 3.0)
    known = [trial for trial in record.trials if attributes.CONDUCTANCE in trial.user_attrs]
    conductance = np.array([trial.user_attrs[attributes.CONDUCTANCE] for trial in known])
    tnmse = np.array([trial.user_attrs["tnmse"] for trial in known])
    order = np.lexsort((tnmse, conductance))
    lowest = np.minimum.accumulate(tnmse[order])
    best = order[tnmse[order] < np.concatenate([[np.inf], lowest[:-1]])]
    # What lies far beyond the front is no choice.
    ends = np.array([1.6 * conductance[best].max(), 4 * np.median(tnmse[best])])
    dots = order[evenly_spread(len(order), MOST_DOTS)]
    axes.plot(conductance[dots], tnmse[dots], ".", color=drawing.SKY, alpha=0.4, label="trials")
    axes.plot(conductance[best], tnmse[best], "o-", color=drawing.BLUE, markersize=4, label="front")
    corner = _corner(np.column_stack([conductance[best], tnmse[best]]) / ends)
    if corner is not None:
        named = best[corner]
        label = (f"corner: trial {known[named].number}, {tnmse[named]:.4f} % at "
                 f"{conductance[named]:.1f} µS")  # fmt: skip
        axes.plot(conductance[named], tnmse[named], "o", markersize=11, markerfacecolor="none",
                  markeredgecolor=drawing.BLACK, label=label)  # fmt: skip
    if record.scores is not None and record.scores.conductance is not None:
        axes.plot(record.scores.conductance[1], record.scores.baseline.mean, "D",
                  color=drawing.VERMILION, label="baseline")  # fmt: skip
    axes.set(xlabel="mean conductance (µS per weight)", ylabel="TNMSE (%)")
    axes.set(xlim=(0, ends[0]), ylim=(0, ends[1]))
    legend_above(figure, axes)
    return figure


def _corner(points: FloatArray) -> int | None:
    """Where a front ``(n, 2)`` bends most: farthest below the line between its ends.

    Points beyond 1, which are not in the figure, have no part in it; None if no other is below.
    """
    shown = np.flatnonzero((points <= 1).all(axis=1))
    inner = points[shown]
    chord = inner[-1] - inner[0]
    below = chord[1] * (inner[:, 0] - inner[0, 0]) - chord[0] * (inner[:, 1] - inner[0, 1])
    return int(shown[below.argmax()]) if below.max() > 1e-9 else None


def _has_place(ratios: FloatArray) -> NDArray[np.bool_]:
    """Which values have a place on a logarithmic axis ``(n,)``."""
    return np.isfinite(ratios) & (ratios > 0)


def _scale(axes: Axes, ratios: FloatArray, shown: float, most: float = np.inf) -> None:
    """A logarithmic axis that shows the baseline, and of the trials the better ones."""
    placed = ratios[_has_place(ratios)]
    low = min(float(placed.min()), 0.9)
    high = min(max(float(np.quantile(placed, shown)), 1.2), max(most, 1.05 * low))
    room = (high / low) ** 0.05
    axes.set_yscale("log")
    axes.set_ylim(low / room, high * room)
    axis = axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 4 * low else MaxNLocator(5))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.minorticks_off()


def conductance_curves(record: StudyRecord) -> Figure:
    """g⁺ and g⁻ of each pair over the weight, the winner's and the baseline's."""
    measured = record.measurements
    f, curves = record.strategy
    ways = [("optimised ", 2.4, f, curves)]
    if measured is not None:
        ways.append(("baseline ", 0.9, measured.baseline_f, measured.baseline_g_us))
    problem = record.settings[attributes.PROBLEM]
    g_min = float(problem.get("g_min_us", curves.min()))
    g_max = max(float(problem.get("g_max_us", curves.max())), g_min + 1e-9)
    return _plot_pairs(ways, g_min, g_max, None if measured is None else measured.histogram)


def strategy_curves(strategy: ProgrammingStrategy) -> Figure:
    """g⁺ and g⁻ of each pair over the weight."""
    way = ("", 2.4, np.array(strategy.f_lst), np.array(strategy.g_lst))
    return _plot_pairs([way], strategy.g_min, strategy.g_max)


def _plot_pairs(
    ways: Sequence[tuple[str, float, FloatArray, FloatArray]],
    g_min: float,
    g_max: float,
    histogram: FloatArray | None = None,
) -> Figure:
    """A panel for each pair, with the curves of each way of programming.

    Args:
        ways: name of each, width of its lines, factors ``(P,)`` and conductances ``(2P, K)``.
        g_min: lowest conductance.
        g_max: highest conductance.
        histogram: share of the weights in each of equal bins.
    """
    numbers_of_pairs = [len(f) for _, _, f, _ in ways]
    figure, all_axes = panels(max(numbers_of_pairs), 2.2, sharex=True, sharey=True)
    for pair, axes in enumerate(all_axes):
        if histogram is not None:
            heights = histogram / histogram.max() * _HISTOGRAM_HEIGHT
            axes.stairs(
                g_min + heights * (g_max - g_min), np.linspace(-1, 1, len(heights) + 1),
                baseline=g_min, fill=True, color=drawing.GREY, label="weights",
            )  # fmt: skip
        factors = []
        for name, line_width, f, curves in ways:
            if pair < len(f):
                _plot_pair(axes, curves[2 * pair : 2 * pair + 2], line_width, name)
                factors.append(f"{name}f = {f[pair]:.3g}")
        margin = 0.03 * (g_max - g_min)
        title = f"pair {pair}: {', '.join(factors)}"
        axes.set(title=title, ylim=(g_min - margin, g_max + margin), xticks=np.linspace(-1, 1, 5))
    figure.supxlabel("weight / largest weight")
    figure.supylabel("target conductance (µS)")
    legend_above(figure, all_axes[min(numbers_of_pairs) - 1])
    return figure


def _plot_pair(axes: Axes, curves: FloatArray, line_width: float, name: str) -> None:
    weights = np.linspace(-1, 1, curves.shape[1])
    looks = ((drawing.GREEN, "-", "⁺"), (drawing.PURPLE, (0, (4, 1.5)), "⁻"))
    for curve, (colour, line, sign) in zip(curves, looks, strict=True):
        label = f"{name}g{sign}"
        axes.plot(weights, curve, color=colour, linestyle=line, linewidth=line_width, label=label)


def tnmse_over_time(measured: Measurements) -> Figure:
    """The error at each time, with 95 % intervals."""
    figure, (axes,) = panels(1, 2.9)
    places = drawing.time_axis(axes, measured.t_s.tolist())
    for errors, look, marker in (
        (measured.baseline, drawing.BASELINE, "s"), (measured.optimised, drawing.OPTIMISED, "o"),
    ):  # fmt: skip
        mean, low, high = errors.tnmse.T
        axes.errorbar(
            places, mean, [mean - low, high - mean], marker=marker, markersize=5, capsize=4, **look
        )
    axes.set(ylim=(0, None), ylabel="TNMSE at this time (%)")
    legend_above(figure, axes)
    return figure


def weight_errors(measured: Measurements) -> Figure:
    """How many weights have small errors at each time, and how many more than with the baseline."""
    figure, (share, gain) = panels(2, 2.2, sharex=True)
    before, after = measured.baseline, measured.optimised
    for i, (name, colour) in enumerate(_times(measured)):
        gained = after.share[i] - np.interp(after.limits, before.limits, before.share[i])
        share.plot(100 * after.limits, 100 * after.share[i], color=colour, label=name)
        gain.plot(100 * after.limits, 100 * gained, color=colour)
    share.set(title="optimised", ylabel="% of weights", ylim=(0, 100), xmargin=0)
    gain.axhline(0, **drawing.REFERENCE)
    gain.set(title="optimised − baseline", ylabel="percentage points")
    gain.set_xlabel("error at most (% of largest weight)")
    figure.align_ylabels()
    legend_above(figure, share)
    return figure


def weight_correlation(measured: Measurements) -> Figure:
    """Between which errors weights of each size lie, and how far that is beside the baseline."""
    figure, (band, ratio) = panels(2, 2.4, sharex=True)
    before, after = measured.baseline, measured.optimised
    for i, (name, colour) in enumerate(_times(measured)):
        low, median, high = 100 * after.band[i]
        band.plot(after.targets, low, color=colour, label=name)
        band.plot(after.targets, high, color=colour)
        band.plot(after.targets, median, color=colour, linestyle=":")
        reach, reach_before = (np.abs(errors.band[i]).max(axis=0) for errors in (after, before))
        ratio.plot(after.targets, reach / reach_before, color=colour)
    band.set(title="optimised: 95 % of weights, median dotted", ylabel="error (% of largest)")
    ratio.axhline(1, **drawing.REFERENCE)
    ratio.set(title="reach of the 95 %: optimised / baseline", ylabel="ratio")
    ratio.set(xlabel="weight wanted / largest weight", xticks=np.linspace(-1, 1, 5))
    figure.align_ylabels()
    legend_above(figure, band)
    return figure


def devices(measured: Measurements) -> Figure | str:
    """Programming error, drift and read noise over the conductance."""
    model = measured.devices
    if model is None:
        return "The noise model cannot be sampled apart from a tile."
    figure, (programming, drift, noise) = panels(3, 1.9, sharex=True)
    g, programmed = model.g_target_us, model.programmed_mean_us
    error, spread = programmed - g, model.programmed_std_us
    programming.plot(g, error, color=drawing.BLUE)
    drawing.band(programming, g, error - spread, error + spread, {"color": drawing.BLUE})
    programming.axhline(0, color=drawing.BLACK, linewidth=0.8)
    kept = np.where(programmed > _SMALLEST_MEAN * g.max(), programmed, np.nan)
    for i, (name, colour) in enumerate(_times(measured)):
        drift.plot(g, 100 * model.mean_us[i] / kept, color=colour, label=name)
        noise.plot(g, model.read_std_us[i], color=colour)
    programming.set(title="programming error", ylabel="deviation (µS)")
    drift.set(title="drift", ylabel="conductance kept (%)")
    noise.set(title="read noise", ylabel="standard dev. (µS)", ylim=(0, None))
    figure.supxlabel("target conductance (µS)")
    figure.align_ylabels()
    legend_above(figure, drift)
    return figure


def sensitivity(measured: Measurements) -> Figure | str:
    """The errors of winner and baseline on devices that differ from the model."""
    found = measured.sensitivity
    if found is None:
        return "This hardware cannot be varied outside of aihwkit's own tile."
    figure, (axes,) = panels(1, 2.9)
    (baseline, *others), (optimised, *of_others) = found.baseline, found.optimised
    axes.plot(others, of_others, "o", color=drawing.BLUE, label="other devices")
    axes.plot(baseline, optimised, "D", color=drawing.VERMILION, label="the model")
    ends = [0.95 * min(found.optimised), 1.05 * max(found.baseline)]
    axes.plot(ends, ends, label="no better", **drawing.REFERENCE)
    axes.set(xlabel="TNMSE of the baseline (%)", ylabel="TNMSE of the winner (%)")
    legend_above(figure, axes)
    return figure


def _times(measured: Measurements) -> list[tuple[str, Any]]:
    """Name and colour of each time that is shown."""
    shown = measured.shown_t_s.tolist()
    # From dark to light, in order also without colours; the lightest are too light on white.
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(shown)))
    return list(zip(map(drawing.time_name, shown), colours, strict=True))
