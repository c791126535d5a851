"""Arrays as they are kept in a file: short, and readable for every reader of JSON."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator

_SIGNIFICANT_DIGITS = 5  # figures show no more


def _plain(values: Any) -> Any:
    """Nested lists of numbers with five digits; None for what is not finite."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, list):
        return [_plain(value) for value in values]
    return float(f"{values:.{_SIGNIFICANT_DIGITS}g}") if math.isfinite(values) else None


def _array(values: Any) -> NDArray[np.float64]:
    """Reverses :func:`_plain`; what was not finite is NaN."""
    return np.array(values, dtype=np.float64)


Array = Annotated[NDArray[np.float64], PlainValidator(_array), PlainSerializer(_plain)]
