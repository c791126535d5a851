"""The mean squared error of compensated weights, compiled; a part of the expected loss.

From the moments of the weights in time to the error: drift read-outs, their ratio α, and what α
adds by fluctuating. See docs/expected_loss.md and :mod:`wpo_optuna.loss.expected_torch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wpo_optuna.loss.compiled import compiled
from wpo_optuna.loss.expected_readout import read
from wpo_optuna.loss.expected_tables import ExpectedTables, Places, ReadoutTables
from wpo_optuna.loss.expected_torch import SMALLEST_READOUT

if TYPE_CHECKING:
    from wpo_optuna.loss.expected_kernel import Programmed, Work

FloatArray = NDArray[np.float64]


@compiled
def mean_squared_error(tables: ExpectedTables, work: Work) -> float:
    """Mean squared error over times and nodes."""
    nodes, compensation = tables.nodes, tables.compensation
    r0, variance0 = read_reference(tables, work)
    n_times = work.moments.shape[1]
    total = n_times * np.sum(nodes.shares * nodes.weights**2)
    for t in range(n_times):
        square, cross = sums_of_weights(t, nodes, work.moments)
        if compensation.is_on:
            sums = sums_of_readouts(t, square, compensation.n_columns, nodes, tables.readout, work)
            total += _compensated(r0, variance0, square, cross, sums, compensation.group_size)
        else:
            total += square - 2 * cross
    return total / n_times


@compiled
def read_reference(tables: ExpectedTables, work: Work) -> tuple[float, float]:
    """Mean of the reference read-out, and mean variance of a single one; fills ``work.slope``."""
    compensation, readout = tables.compensation, tables.readout
    if not (compensation.is_on and compensation.measures_reference):
        return max(compensation.exact_reference, SMALLEST_READOUT), 0.0
    added = added_variance(mean_square_programmed(tables.nodes.shares, work.nodes), readout)
    mean, variance = 0.0, 0.0
    for q in range(len(tables.nodes.shares)):
        response, slope, spread = read(
            work.nodes.mean[q], work.nodes.variance[q] + added, 0.0, 0.0, readout
        )
        share = tables.nodes.shares[q]
        mean += share * response
        variance += share * (spread + (compensation.n_columns - 1) * added * slope**2)
        work.slope[q] = slope
    return max(mean, SMALLEST_READOUT), variance


@compiled
def mean_square_programmed(shares: FloatArray, programmed: Programmed) -> float:
    """Mean of ŵ² over the nodes."""
    return np.sum(shares * (programmed.mean**2 + programmed.variance))


@compiled
def added_variance(mean_square: float, readout: ReadoutTables) -> float:
    """Variance that input noise adds to each output."""
    return readout.variance_per_square * mean_square + readout.added_variance


@compiled
def sums_of_weights(t: int, nodes: Places, moments: FloatArray) -> tuple[float, float]:
    """Means of w_t² and of W w_t over the nodes."""
    square, cross = 0.0, 0.0
    for q in range(len(nodes.weights)):
        square += nodes.shares[q] * moments[q, t, 1]
        cross += nodes.shares[q] * nodes.weights[q] * moments[q, t, 0]
    return square, cross


@compiled
def sums_of_readouts(
    t: int, square: float, n_columns: int, nodes: Places, readout: ReadoutTables, work: Work
) -> tuple[float, float, float, float, float, float, float]:
    """Means over the nodes of what the read-out at a time and its fluctuation depend on.

    Returns:
        Read-out; variance of a single one; covariance of the two read-outs; then the covariance
        of the reference, and of the read-out, with w_t, each multiplied by E w_t and by W.
    """
    added = added_variance(square, readout)
    mean, variance, both = 0.0, 0.0, 0.0
    mean0, weight0, mean1, weight1 = 0.0, 0.0, 0.0, 0.0
    for q in range(len(nodes.weights)):
        share, weight, m = nodes.shares[q], nodes.weights[q], work.moments[q, t, 0]
        v = work.moments[q, t, 1] - m**2
        response, slope, spread = read(
            m, v + added, work.moments[q, t, 3], work.moments[q, t, 4], readout
        )
        follows0, follows1 = work.slope[q] * work.moments[q, t, 2], slope * v
        mean += share * response
        # Columns share their input noise.
        variance += share * (spread + (n_columns - 1) * added * slope**2)
        both += share * slope * follows0
        mean0 += share * m * follows0
        weight0 += share * weight * follows0
        mean1 += share * m * follows1
        weight1 += share * weight * follows1
    return max(mean, SMALLEST_READOUT), variance, both, mean0, weight0, mean1, weight1


@compiled
def _compensated(
    r0: float,
    variance0: float,
    square: float,
    cross: float,
    sums: tuple[float, float, float, float, float, float, float],
    group_size: int,
) -> float:
    """E (α w_t - W)² less W², averaged over the nodes, with the fluctuation of α."""
    r, variance1, both, mean0, weight0, mean1, weight1 = sums
    factor = r0 / r
    squared, crossed = factor**2 * square, factor * cross
    of_both, of_drifted = both / (r0 * r), variance1 / r**2
    variance = variance0 / r0**2 + of_drifted - 2 * of_both
    bias = of_drifted - of_both
    correlated = (2 * factor**2 * mean0 - factor * weight0) / r0
    correlated -= (2 * factor**2 * mean1 - factor * weight1) / r
    fluctuation = variance * squared + 2 * bias * (squared - crossed) + 2 * correlated
    return squared - 2 * crossed + fluctuation / group_size
