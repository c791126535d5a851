"""A logarithmic axis of times after programming, labelled in their own units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from wpo_optuna.durations import format_duration
from wpo_optuna.reporting.stored_numbers import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Labels nearer than this fraction of the axis would overlap on a phone.
_LABEL_WIDTH = 0.11


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
            ticks.append((place, format_duration(float(t))))
    axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
    axes.set_xlabel("time after programming")
