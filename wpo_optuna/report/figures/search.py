"""What the search did: its progress, what it explored, what mattered, and studies side by side."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from wpo_optuna.report.figures import drawing
from wpo_optuna.report.figures.drawing import LOOKS, FloatArray, legend_above, panels
from wpo_optuna.report.record import are_about_one_problem

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from wpo_optuna.report.record import StudyRecord

# Few enough that importance takes no time, and that an SVG of single dots stays small.
MOST_TRIALS, MOST_DOTS = 1000, 500
# PED-ANOVA compares the best tenth with all: of fewer trials it would be a handful.
LEAST_TRIALS = 50
# The worst trials would leave no room for the difference that matters.
_SHOWN_QUANTILE = 0.95
_LONGEST_NAME, _LONGEST_LABEL = 28, 24
_NOTHING_FINITE = "No trial has a finite TNMSE."


def search_progress(records: Sequence[StudyRecord]) -> Figure | str:
    """Every trial, and the best so far, of each study."""
    ratios = np.concatenate([record.ratio for record in records])
    if not _has_place(ratios).any():
        return _NOTHING_FINITE
    figure, (axes,) = panels(1, 3.3)
    for index, record in enumerate(records):
        _plot_trials(axes, record, index, is_one_of_several=len(records) > 1)
    _scale(axes, ratios)
    axes.axhline(1, color=drawing.NEUTRAL, linewidth=1.1, linestyle="--", label="baseline")
    margins = {record.problem.get("loss_margin") or 0.0 for record in records}
    # The studies may have different margins; there is no common line then.
    if len(margins) == 1 and 0 < (margin := margins.pop()) < 1:
        axes.axhline(
            1 - margin, color=drawing.NEUTRAL, linewidth=1.1, linestyle=":",
            label=f"loss 0: {100 * margin:.3g} % better",
        )  # fmt: skip
    axes.set_xlabel("trial")
    axes.set_ylabel("TNMSE / baseline")
    axes.margins(x=0.02)
    legend_above(figure, axes)
    return figure


def _plot_trials(axes: Axes, record: StudyRecord, index: int, is_one_of_several: bool) -> None:
    look = LOOKS[index % len(LOOKS)]
    polished = record.is_polished
    dots = np.flatnonzero(~polished)
    dots = dots[_spread(len(dots), MOST_DOTS)]
    axes.plot(
        record.number[dots], record.ratio[dots], linestyle="none", marker=look["marker"],
        color=look["color"], markersize=3, alpha=0.35, markeredgewidth=0,
    )  # fmt: skip
    best = np.fmin.accumulate(record.ratio)
    steps = np.union1d(np.flatnonzero(np.diff(best, prepend=np.nan)), len(best) - 1)
    name = f"{record.name} ({record.sampler})" if is_one_of_several else "best so far"
    axes.plot(
        record.number[steps], best[steps], color=look["color"], linestyle=look["linestyle"],
        drawstyle="steps-post", label=_shortened(name, _LONGEST_NAME),
    )  # fmt: skip
    if polished.any():
        axes.plot(
            record.number[polished], record.ratio[polished], linestyle="none", marker="D",
            color=look["color"], markeredgecolor=drawing.NEUTRAL, markersize=6,
            label=None if is_one_of_several else "polished", zorder=4,
        )  # fmt: skip


def _shortened(name: str, longest: int) -> str:
    name = " ".join(name.split())
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


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
    figure, all_axes = panels(len(quantities), 2.3, share_y=True)
    shown = shown[_spread(len(shown), MOST_DOTS)]
    for axes, (label, values, of_winner) in zip(all_axes, quantities, strict=True):
        points = axes.scatter(
            values[shown], record.ratio[shown], c=record.number[shown], s=9, alpha=0.6,
            cmap="viridis", linewidths=0,
        )  # fmt: skip
        axes.plot(
            of_winner, record.winner_ratio, marker="o", markersize=11, markerfacecolor="none",
            markeredgecolor=drawing.WINNER, markeredgewidth=2,
        )  # fmt: skip
        axes.axhline(1, color=drawing.NEUTRAL, linewidth=1.1, linestyle="--")
        axes.set_xlabel(label)
    _scale(all_axes[0], record.ratio)
    figure.supylabel("TNMSE / baseline")
    figure.colorbar(points, ax=all_axes, label="trial", aspect=30, pad=0.02)
    return figure


def importance(record: StudyRecord) -> Figure | str:
    """Which coordinates of the hypercube mattered, by Optuna's PED-ANOVA."""
    trials = [
        trial
        for trial, is_polished in zip(record.trials, record.is_polished, strict=True)
        if math.isfinite(trial.value or 0.0) and not is_polished
    ]
    if len(trials) < LEAST_TRIALS:
        return (
            f"Importance needs at least {LEAST_TRIALS} trials proposed by the sampler; there are "
            f"{len(trials)}."
        )
    shares = _importance([trials[i] for i in _spread(len(trials), MOST_TRIALS)])
    if not shares:
        return "The best trials do not differ from the others in any coordinate."
    names, values = list(shares)[::-1], list(shares.values())[::-1]
    figure, (axes,) = panels(1, 0.6 + 0.2 * len(names))
    axes.barh(names, [100 * value for value in values], color=drawing.OPTIMISED)
    axes.set_xlabel("importance (%)")
    axes.grid(axis="y", visible=False)
    axes.margins(y=0.02)
    return figure


def _importance(trials: list[FrozenTrial], most: int = 20) -> dict[str, float]:
    """Share of the most important coordinates, highest first; empty if none has any."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    optuna.logging.set_verbosity(level)
    # The study copies each trial with all it holds: no attributes, and one distribution for all.
    unit: BaseDistribution = optuna.distributions.FloatDistribution(0.0, 1.0)
    study.add_trials(
        optuna.trial.create_trial(
            value=trial.value, params=trial.params,
            distributions=dict.fromkeys(trial.params, unit),
        )
        for trial in trials
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(), normalize=False
        )
    total = sum(found.values())
    if not 0 < total < math.inf:
        return {}
    return {name: value / total for name, value in list(found.items())[:most]}


def sampler_comparison(records: Sequence[StudyRecord]) -> Figure | str:
    """The TNMSE that each study reached on fresh noise, with its interval."""
    scored = [(record, record.scores) for record in records if record.scores is not None]
    if not scored:
        return "None of the studies has been scored yet."
    is_relative = not are_about_one_problem(records)
    labels = [_shortened(f"{r.name} ({r.sampler})", _LONGEST_LABEL) for r, _ in scored]
    figure, (axes,) = panels(1, 0.7 + 0.3 * len(scored))
    for place, (_, scores) in enumerate(scored):
        unit = scores.baseline.mean if is_relative else 1.0
        winner = scores.winner
        mean, low, high = (value / unit for value in (winner.mean, winner.low, winner.high))
        look = LOOKS[place % len(LOOKS)]
        axes.errorbar(
            mean, -place, xerr=[[mean - low], [high - mean]], color=look["color"],
            marker=look["marker"], markersize=7, capsize=5,
        )  # fmt: skip
    axes.set_yticks([-place for place in range(len(scored))], labels)
    axes.set_ylim(0.6 - len(scored), 0.4)
    axes.set_xlabel("TNMSE / baseline" if is_relative else "TNMSE (%)")
    axes.margins(x=0.08)
    axes.locator_params(axis="x", nbins=4)
    return figure


def _has_place(ratios: FloatArray) -> NDArray[np.bool_]:
    """Which values have a place on a logarithmic axis ``(n,)``."""
    return np.isfinite(ratios) & (ratios > 0)


def _spread(n: int, most: int) -> NDArray[np.int64]:
    """Indices of n things, or of at most so many that are spread evenly over them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def _scale(axes: Axes, ratios: FloatArray) -> None:
    """A logarithmic axis that shows the baseline and all but the worst trials."""
    placed = ratios[_has_place(ratios)]
    low = min(float(placed.min()), 0.9)
    high = max(float(np.quantile(placed, _SHOWN_QUANTILE)), 1.2)
    room = (high / low) ** 0.05
    axes.set_yscale("log")
    axes.set_ylim(low / room, high * room)
    axis = axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 4 * low else MaxNLocator(5))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.minorticks_off()
