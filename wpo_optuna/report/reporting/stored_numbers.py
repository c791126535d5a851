"""Arrays as they are kept with a study: short, and readable in any storage."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

# Figures show no more, and a storage of MySQL holds 64 kB per attribute.
_SIGNIFICANT_DIGITS = 5


def to_stored(values: ArrayLike) -> Any:
    """Nested lists of numbers with five significant digits; None for what is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim:
        return [to_stored(part) for part in array]
    value = float(array)
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None


def from_stored(values: Any) -> FloatArray:
    """Reverses :func:`to_stored`; what was not finite is NaN."""
    return np.array(values, dtype=np.float64)
