"""Which significance factors and scales were explored, and how good they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wpo_optuna.report.figures import colours
from wpo_optuna.report.figures.drawing import Illustration, Omission, Width, panels
from wpo_optuna.report.figures.search_progress import has_place, limits
from wpo_optuna.report.reporting.stored_numbers import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wpo_optuna.report.reporting.study_record import StudyRecord

TITLE = "Explored factors and scales"

# Few enough that an SVG of single dots stays small.
_MOST_SINGLE_DOTS = 1000


@dataclass(frozen=True)
class _Quantity:
    """A quantity that differs from trial to trial: its label, values ``(n,)``, the winner's."""

    label: str
    values: FloatArray
    winner: float


def illustrate(record: StudyRecord) -> Illustration | Omission:
    """The figure of a study's trials."""
    if not has_place(record.trials.ratio).any():
        return Omission(TITLE, "No trial has a finite TNMSE.")
    quantities = _varying(record)
    if not quantities:
        return Omission(TITLE, "All trials have the same significance factors and scale.")
    caption = (
        "Each dot is a trial: the significance factor of a pair, or the scale k_w from weights to "
        "conductance, and the TNMSE it led to; the circle is the winner. Later trials are "
        "lighter. The worst 5 % lie above the figure."
    )
    return Illustration(
        "explored_factors", TITLE, caption, lambda width: _draw(record, quantities, width)
    )  # fmt: skip


def _varying(record: StudyRecord) -> list[_Quantity]:
    trials, winner = record.trials, record.winner
    quantities = [
        _Quantity(f"f_{pair}, factor of pair {pair}", trials.f[:, pair], float(winner.f[pair]))
        for pair in range(trials.f.shape[1])
    ]
    quantities.append(_Quantity("k_w (µS per unit weight)", trials.k_w, winner.k_w))
    return [q for q in quantities if np.ptp(q.values[np.isfinite(q.values)]) > 0]


def _draw(record: StudyRecord, quantities: list[_Quantity], width: Width) -> Figure:
    figure, all_axes = panels(
        len(quantities), width, 3.2 if width is Width.WIDE else 2.5, share_y=True
    )
    trials, winner = record.trials, record.winner
    shown = has_place(trials.ratio)
    points = None
    for axes, quantity in zip(all_axes, quantities, strict=True):
        points = axes.scatter(
            quantity.values[shown], trials.ratio[shown], c=trials.number[shown], s=9, alpha=0.6,
            cmap="viridis", linewidths=0, rasterized=bool(shown.sum() > _MOST_SINGLE_DOTS),
        )  # fmt: skip
        axes.plot(
            quantity.winner, winner.ratio, marker="o", markersize=11, markerfacecolor="none",
            markeredgecolor=colours.WINNER, markeredgewidth=2,
        )  # fmt: skip
        axes.axhline(1, color=colours.NEUTRAL, linewidth=1.1, linestyle="--")
        axes.set_xlabel(quantity.label)
    _scale(all_axes[0], trials.ratio)
    figure.supylabel("TNMSE / baseline", fontsize=10)
    assert points is not None
    figure.colorbar(points, ax=all_axes, label="trial", aspect=30, pad=0.02)
    return figure


def _scale(axes: Axes, ratios: FloatArray) -> None:
    """A logarithmic axis from below the best trial to above nearly all, labelled 1, 2, 5."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.set_ylim(*limits(ratios))
    axis = axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
