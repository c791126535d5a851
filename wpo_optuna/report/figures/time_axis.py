"""A logarithmic axis of times after programming, labelled in their own units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from wpo_optuna.hardware import SECONDS_PER_UNIT, format_duration
from wpo_optuna.report.reporting.stored_numbers import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Labels nearer than this fraction of the axis would overlap on a phone.
_LABEL_WIDTH = 0.13
_LONGEST_NAME = 5


def name(seconds: float) -> str:
    """A time in few letters, rounded where it is no small number of any unit."""
    exact = format_duration(seconds)
    if len(exact) <= _LONGEST_NAME:
        return exact
    units = [(size, unit) for unit, size in SECONDS_PER_UNIT.items() if size <= seconds]
    size, unit = max(units, default=(1.0, "s"))
    return f"{seconds / size:.3g}{unit}"


def places(t_s: Sequence[float]) -> FloatArray:
    """Where times in s stand on the axis, in decades; time zero a decade before the next."""
    t = np.asarray(t_s, dtype=np.float64)
    positive = t[t > 0]
    first = positive.min() if len(positive) else 1.0
    return np.log10(np.where(t > 0, t, first / 10))


def label(axes: Axes, t_s: Sequence[float]) -> None:
    """Labels the times, leaving out those whose labels would overlap later ones."""
    ticks: list[tuple[float, str]] = []
    at = places(t_s)
    for place, t in sorted(zip(at, t_s, strict=True), reverse=True):
        if not ticks or ticks[-1][0] - place >= _LABEL_WIDTH * np.ptp(at):
            ticks.append((place, name(float(t))))
    axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
    axes.set_xlabel("time after programming")
