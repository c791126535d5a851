"""Which of TPE's candidates is the best, told by densities that are nearly exact and cheap."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.samplers._tpe.probability_distributions import (
    _BatchedTruncLogNormDistributions,
    _BatchedTruncNormDistributions,
)
from scipy.special import ndtr

FloatArray = NDArray[np.float64]

_CONTINUOUS = (_BatchedTruncNormDistributions, _BatchedTruncLogNormDistributions)
# Farther from the mean, in standard deviations, a normal distribution has less weight than the
# rounding of a number near one.
_FAR = 9.0
# A kernel that lies within its bounds and is no wider than they are keeps a third of its weight.
_LEAST_MASS = 0.3
# Rounding errors are some hundred units in the last place of the largest term, of which Optuna's
# sums have as many as ours: a thousand for both, and far more than the logarithms' own.
_RELATIVE_ERROR = 2e-13
_LEAST_ERROR = 1e-9


def screened(
    samples: dict[str, FloatArray], below: _ParzenEstimator, above: _ParzenEstimator
) -> FloatArray | None:
    """The logarithm of the ratio of two densities at candidates, if that tells the best one.

    For 24 candidates, 10 000 kernels and 20 parameters, Optuna passes a dozen times over 40
    megabytes. Multiplied out, the exponents are products of small matrices, which rounds in
    another way. The largest value is where Optuna's would be unless another one comes nearer to
    it than all roundings together.

    Args:
        samples: the candidates, by parameter.
        below: density of the good trials, which has few kernels.
        above: density of the others.

    Returns:
        One value for each candidate; None if only Optuna's own arithmetic can tell.
    """
    with np.errstate(all="ignore"):
        kernels = _Kernels.of(above)
        points = None if kernels is None else kernels.transformed(above._transform(samples))
        if kernels is None or points is None:
            return None
        ratios = below.log_pdf(samples) - kernels.log_pdf(points)
    if not np.all(np.isfinite(ratios)):
        return None
    ascending = np.sort(ratios)
    is_told = len(ratios) == 1 or ascending[-1] - ascending[-2] > 2 * kernels.error
    return ratios if is_told else None


class _Kernels:
    """Truncated normal kernels of continuous parameters; arrays are ``(d, kernels)``.

    Attributes:
        error: by how much :meth:`log_pdf` may differ from Optuna's.
    """

    def __init__(self, distributions: list[Any], weights: FloatArray) -> None:
        self._is_log = [d.is_log for d in distributions]
        self._low = np.array([[d.adapted_low] for d in distributions])
        self._high = np.array([[d.adapted_high] for d in distributions])
        # Around zero the products are smallest, and their roundings.
        self._middle = (self._low + self._high) / 2
        mu = np.array([d.mu for d in distributions]) - self._middle
        sigma = np.array([d.sigma for d in distributions])
        half = (self._high - self._low) / 2
        mass = np.ones_like(mu)
        _subtract_tail(mass, half + mu, sigma)
        _subtract_tail(mass, half - mu, sigma)
        self.is_regular = bool(np.all(mass > _LEAST_MASS))
        self._precision = sigma**-2
        self._slope = mu * self._precision
        self._constant = (
            np.log(weights)
            - len(mu) * np.log(2 * np.pi) / 2
            - np.log(mass * sigma).sum(axis=0)
            - np.einsum("ij,ij->j", mu, self._slope) / 2
        )
        largest_term = np.sum((half * 2 / sigma.min(axis=1, keepdims=True)) ** 2)
        self.error = _LEAST_ERROR + _RELATIVE_ERROR * float(largest_term)

    @classmethod
    def of(cls, estimator: _ParzenEstimator) -> _Kernels | None:
        """The kernels of an estimator, if all are well within their bounds."""
        mixture = estimator._mixture_distribution
        distributions = mixture.distributions
        if not distributions or not all(isinstance(d, _CONTINUOUS) for d in distributions):
            return None
        kernels = cls(distributions, mixture.weights)
        return kernels if kernels.is_regular else None

    def transformed(self, samples: FloatArray) -> FloatArray | None:
        """Candidates ``(n, d)`` as the kernels see them; None if one is out of bounds."""
        columns = samples.T
        points = np.array(
            [np.log(x) if is_log else x for x, is_log in zip(columns, self._is_log, strict=True)]
        )
        if not np.all((points >= self._low) & (points <= self._high)):
            return None
        return (points - self._middle).T

    def log_pdf(self, points: FloatArray) -> FloatArray:
        """The logarithm of the density ``(n,)`` at transformed candidates ``(n, d)``."""
        # By einsum, as the threads of a linear algebra library cost more than products this small.
        terms = np.einsum("nj,jk->nk", points, self._slope)
        terms -= np.einsum("nj,jk->nk", points**2 / 2, self._precision)
        terms += self._constant
        highest = terms.max(axis=1, keepdims=True)
        return np.log(np.exp(terms - highest).sum(axis=1)) + highest[:, 0]


def _subtract_tail(mass: FloatArray, distance: FloatArray, sigma: FloatArray) -> None:
    """Subtracts the weight of normal distributions beyond a distance from their means."""
    near = np.nonzero(distance < _FAR * sigma)
    mass[near] -= ndtr(-distance[near] / sigma[near])
