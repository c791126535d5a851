"""How much E|w| of a difference of positive quantities departs from that of a normal variable.

A weight in time is a difference of sums of conductances, w = Σ⁺ - Σ⁻. Conductances are positive,
and of those that spread widely (weak ones, long after programming) the distribution is skewed and
peaked, so that E|w| near w = 0 is up to 15 % below that of a normal variable of equal mean and
variance. Taking each conductance for a gamma variable, with its own mean m and variance v, gives
E|w| to a few parts in 1000. Its third and fourth cumulant are 2v²/m and 6v³/m²; those of w are the
(signed) sums. Of the variables with the cumulants of w, the difference of two gamma variables of
one common scale is tabulated here (variance-gamma distribution; Madan, Carr and Chang, 1998):

    E|w| = E|N(μ, v)| + √v excess(μ/√v, skewness, kurtosis).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# The table's axes: |μ|/√v from 0 to Z_LARGEST; asymmetry from -1 to 1; the common scale s of the
# gamma variables (kurtosis = 6 s²) as s/(s + HALF_SCALE), by steps of 1/SCALE_POINTS from 0.
Z_LARGEST = 8.0
Z_POINTS = 41
ASYMMETRY_POINTS = 9
SCALE_POINTS = 13
HALF_SCALE = 0.7

_LARGEST_FREQUENCY = 3e3
_FREQUENCIES = 2000


@cache
def gamma_excess_table() -> FloatArray:
    """The excess on its grid, ``(Z_POINTS, ASYMMETRY_POINTS, SCALE_POINTS)``; not to be changed.

    The asymmetry is the skewness over the largest one that the kurtosis admits, 2s, and positive
    where the tail is on the side of μ.
    """
    z = np.linspace(0, Z_LARGEST, Z_POINTS)
    asymmetries = np.linspace(-1, 1, ASYMMETRY_POINTS)
    relative = np.arange(SCALE_POINTS) / SCALE_POINTS
    scales = HALF_SCALE * relative / (1 - relative)
    u, du = _frequencies()
    phases = np.exp(1j * np.outer(u, z))
    table = np.zeros((Z_POINTS, ASYMMETRY_POINTS, SCALE_POINTS))
    for column, scale in enumerate(scales[1:], start=1):
        for row, asymmetry in enumerate(asymmetries):
            missing = np.exp(-(u**2) / 2) - _characteristic_function(u, asymmetry, scale)
            integrand = (missing * du / u**2)[:, None] * phases
            # A plain sum: a product of matrices would depend on the number of threads.
            table[:, row, column] = 2 / np.pi * integrand.sum(axis=0).real
    # Continuous where it ends.
    table[-1] = 0.0
    return table


def _frequencies() -> tuple[FloatArray, FloatArray]:
    """Nodes and weights for integrals over all positive frequencies: even steps of log(1 + u)."""
    steps = np.linspace(0, np.log1p(_LARGEST_FREQUENCY), _FREQUENCIES + 1)
    middle = (steps[1:] + steps[:-1]) / 2
    return np.expm1(middle), np.diff(np.expm1(steps))


def _characteristic_function(
    u: FloatArray, asymmetry: float, scale: float
) -> NDArray[np.complex128]:
    """That of scale (G⁺ - G⁻), with mean 0 and variance 1, where G± are gamma variables."""
    positive, negative = (0.5 * (1 + sign * asymmetry) / scale**2 for sign in (1, -1))
    mean = scale * (positive - negative)
    logarithm = -positive * np.log1p(-1j * scale * u) - negative * np.log1p(1j * scale * u)
    return np.exp(logarithm - 1j * u * mean)
