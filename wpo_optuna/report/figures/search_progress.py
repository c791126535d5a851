"""Loss over trials: every trial, and the best so far, of each study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wpo_optuna.report.figures import colours
from wpo_optuna.report.figures.drawing import Illustration, Omission, Width, legend_above, panels
from wpo_optuna.report.reporting.stored_numbers import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wpo_optuna.report.reporting.study_record import StudyRecord

TITLE = "Loss over trials"

# Few enough that an SVG of single dots stays small.
_MOST_SINGLE_DOTS = 1000
# The worst trials would leave no room for the difference that matters.
_SHOWN_QUANTILE = 0.95
# Room below the best trial and above the worst one shown, as a fraction of the axis.
_MARGIN = 0.05
_LOSS_TICKS = np.array(
    [-0.9, -0.8, -0.7, -0.6, -0.5, -0.4, -0.3, -0.2, -0.1, 0, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100,
     200, 500, 1000]
)  # fmt: skip
# Least distance of two labels, as a fraction of the axis.
_LABEL_HEIGHT = 0.06


def illustrate(records: Sequence[StudyRecord]) -> Illustration | Omission:
    """The figure of one study or of several side by side."""
    if not any(has_place(record.trials.ratio).any() for record in records):
        return Omission(TITLE, "No trial has a finite TNMSE.")
    caption = (
        "Each dot is a trial, each line the best so far. Equal distances are equal factors of the "
        "TNMSE; the worst 5 % of the trials lie above the figure."
    )
    if any(record.trials.is_polished.any() for record in records):
        caption += " Diamonds are trials that refine the best ones by gradient descent."
    return Illustration(
        "loss_over_trials", TITLE, caption, lambda width: _draw(records, width)
    )  # fmt: skip


def _draw(records: Sequence[StudyRecord], width: Width) -> Figure:
    figure, (axes,) = panels(1, width, 3.9 if width is Width.WIDE else 3.4)
    for index, record in enumerate(records):
        _plot_study(axes, record, index, len(records) > 1)
    axes.set_yscale("log")
    axes.set_ylim(*limits(np.concatenate([record.trials.ratio for record in records])))
    margins = np.concatenate([_margins(record) for record in records])
    margin = float(np.median(margins)) if len(margins) else 0.0
    axes.axhline(1, color=colours.NEUTRAL, linewidth=1.1, linestyle="--", label="baseline")
    # The studies may have different margins; their loss has no common axis then.
    if len(margins) and np.ptp(margins) < 1e-6:
        if margin > 0:
            axes.axhline(
                1 - margin, color=colours.NEUTRAL, linewidth=1.1, linestyle=":",
                label=f"loss 0: {100 * margin:.3g} % better",
            )  # fmt: skip
        _label_losses(axes, margin)
    else:
        axes.set_ylabel("TNMSE / baseline")
    axes.set_xlabel("trial")
    axes.margins(x=0.01)
    legend_above(figure, axes)
    return figure


def _plot_study(axes: Axes, record: StudyRecord, index: int, is_one_of_several: bool) -> None:
    trials, look = record.trials, colours.look(index)
    polished = trials.is_polished
    axes.plot(
        trials.number[~polished], trials.ratio[~polished], linestyle="none", marker=look.marker,
        color=look.colour, markersize=3, alpha=0.3, markeredgewidth=0,
        rasterized=len(trials.number) > _MOST_SINGLE_DOTS,
    )  # fmt: skip
    name = f"{record.name} ({record.sampler})" if is_one_of_several else "best so far"
    axes.plot(
        trials.number, np.fmin.accumulate(trials.ratio), color=look.colour, linestyle=look.line,
        drawstyle="steps-post", label=_shortened(name),
    )  # fmt: skip
    if polished.any():
        axes.plot(
            trials.number[polished], trials.ratio[polished], linestyle="none", marker="D",
            color=look.colour, markeredgecolor=colours.NEUTRAL, markersize=6,
            label=None if is_one_of_several else "polished", zorder=4,
        )  # fmt: skip


def has_place(ratios: FloatArray) -> NDArray[np.bool_]:
    """Which values have a place on a logarithmic axis ``(n,)``."""
    return np.isfinite(ratios) & (ratios > 0)


def _shortened(name: str, most: int = 28) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def limits(ratios: FloatArray) -> tuple[float, float]:
    """Ends of a logarithmic axis that shows the baseline and all but the worst trials.

    Args:
        ratios: TNMSE relative to the baseline ``(n,)``; at least one is finite and positive.
    """
    placed = ratios[has_place(ratios)]
    low = min(float(placed.min()), 0.9)
    high = max(float(np.quantile(placed, _SHOWN_QUANTILE)), 1.2)
    room = (high / low) ** _MARGIN
    return low / room, high * room


def _margins(record: StudyRecord) -> FloatArray:
    """What was added to each relative TNMSE to make it the loss."""
    # A difference of large numbers says nothing about a small one.
    small = record.trials.ratio < 1e3
    return record.trials.loss[small] - record.trials.ratio[small] + 1


def _label_losses(axes: Axes, margin: float) -> None:
    """Labels the axis of TNMSE relative to the baseline with the loss."""
    low, high = np.log(axes.get_ylim())
    places = _LOSS_TICKS + 1 - margin
    inside = (places > 0) & (np.log(np.maximum(places, 1e-300)) >= low)
    inside &= np.log(np.maximum(places, 1e-300)) <= high
    kept: list[int] = []
    # Zero comes first, then its neighbours: what is nearer to zero matters more.
    for i in sorted(np.flatnonzero(inside), key=lambda i: abs(_LOSS_TICKS[i])):
        distances = [abs(np.log(places[i] / places[k])) for k in kept]
        if all(distance >= _LABEL_HEIGHT * (high - low) for distance in distances):
            kept.append(int(i))
    axes.set_yticks(places[kept], [f"{_LOSS_TICKS[i]:g}" for i in kept])
    axes.minorticks_off()
    axes.set_ylabel("loss")
