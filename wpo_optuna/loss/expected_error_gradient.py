"""Derivatives of the mean squared error of compensated weights, compiled.

The adjoints of the functions of the same name in :mod:`wpo_optuna.loss.expected_error`; see
:mod:`wpo_optuna.loss.expected_gradient`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wpo_optuna.loss import expected_error as error
from wpo_optuna.loss.compiled import compiled
from wpo_optuna.loss.expected_readout import read_adjoint, slope_of
from wpo_optuna.loss.expected_tables import ExpectedTables, Places
from wpo_optuna.loss.expected_torch import SMALLEST_READOUT

if TYPE_CHECKING:
    from wpo_optuna.loss.expected_gradient import Gradient
    from wpo_optuna.loss.expected_kernel import Work

FloatArray = NDArray[np.float64]


@compiled
def differentiate_mean_squared_error(
    given: float, tables: ExpectedTables, work: Work, gradient: Gradient
) -> None:
    """Fills the derivatives in the moments, adds those in the programmed nodes.

    Args:
        given: derivative in the error.
        tables: tables of the tile.
        work: what the kernel computed.
        gradient: where the derivatives go.
    """
    n_times = work.moments.shape[1]
    given /= n_times
    gradient.slope[:] = 0
    r0, variance0 = error.read_reference(tables, work)
    in_r0, in_variance0 = 0.0, 0.0
    for t in range(n_times):
        square, cross = error.sums_of_weights(t, tables.nodes, work.moments)
        if not tables.compensation.is_on:
            _sums_of_weights(t, given, -2 * given, tables.nodes, gradient.moments)
            continue
        sums = error.sums_of_readouts(
            t, square, tables.compensation.n_columns, tables.nodes, tables.readout, work
        )
        in_r, in_v, in_square, in_cross, in_sums = _compensated(
            given, r0, variance0, square, cross, sums, tables.compensation.group_size
        )
        in_r0 += in_r
        in_variance0 += in_v
        _sums_of_weights(t, in_square, in_cross, tables.nodes, gradient.moments)
        _sums_of_readouts(t, square, in_sums, tables, work, gradient)
    if tables.compensation.is_on and tables.compensation.measures_reference:
        if r0 <= SMALLEST_READOUT:
            in_r0 = 0.0
        _read_reference(in_r0, in_variance0, tables, work, gradient)


_Sums = tuple[float, float, float, float, float, float, float]


@compiled
def _compensated(
    given: float,
    r0: float,
    variance0: float,
    square: float,
    cross: float,
    sums: _Sums,
    group_size: int,
) -> tuple[float, float, float, float, _Sums]:
    """Derivatives in r0, variance0, square, cross and the sums."""
    r, variance1, both, mean0, weight0, mean1, weight1 = sums
    factor = r0 / r
    squared, crossed = factor**2 * square, factor * cross
    of_both, of_drifted = both / (r0 * r), variance1 / r**2
    variance = variance0 / r0**2 + of_drifted - 2 * of_both
    bias = of_drifted - of_both
    follows0 = (2 * factor**2 * mean0 - factor * weight0) / r0
    follows1 = (2 * factor**2 * mean1 - factor * weight1) / r

    in_fluctuation = given / group_size
    in_squared = given + in_fluctuation * (variance + 2 * bias)
    in_crossed = -2 * given - 2 * in_fluctuation * bias
    in_variance, in_bias = in_fluctuation * squared, 2 * in_fluctuation * (squared - crossed)
    in_correlated = 2 * in_fluctuation
    in_drifted, in_both = in_variance + in_bias, -2 * in_variance - in_bias
    in_factor = 2 * factor * square * in_squared + cross * in_crossed
    in_factor += in_correlated * ((4 * factor * mean0 - weight0) / r0)
    in_factor -= in_correlated * ((4 * factor * mean1 - weight1) / r)

    in_r0 = in_factor / r - in_both * of_both / r0
    in_r0 -= 2 * in_variance * variance0 / r0**3 + in_correlated * follows0 / r0
    in_r = -in_factor * factor / r - in_both * of_both / r
    in_r += in_correlated * follows1 / r - 2 * in_drifted * of_drifted / r
    if r <= SMALLEST_READOUT:
        in_r = 0.0
    in_sums = (
        in_r,
        in_drifted / r**2,
        in_both / (r0 * r),
        in_correlated * 2 * factor**2 / r0,
        -in_correlated * factor / r0,
        -in_correlated * 2 * factor**2 / r,
        in_correlated * factor / r,
    )
    return in_r0, in_variance / r0**2, factor**2 * in_squared, factor * in_crossed, in_sums


@compiled
def _sums_of_weights(
    t: int, in_square: float, in_cross: float, nodes: Places, in_moments: FloatArray
) -> None:
    """Fills the derivatives in the moments at a time; the others' start from these."""
    for q in range(len(nodes.weights)):
        in_moments[q, t, 0] = nodes.shares[q] * nodes.weights[q] * in_cross
        in_moments[q, t, 1] = nodes.shares[q] * in_square
        in_moments[q, t, 2] = 0.0
        in_moments[q, t, 3] = 0.0
        in_moments[q, t, 4] = 0.0


@compiled
def _sums_of_readouts(
    t: int, square: float, in_sums: _Sums, tables: ExpectedTables, work: Work, gradient: Gradient
) -> None:
    in_r, in_variance, in_both, in_mean0, in_weight0, in_mean1, in_weight1 = in_sums
    nodes, readout = tables.nodes, tables.readout
    added = error.added_variance(square, readout)
    sharing = (tables.compensation.n_columns - 1) * in_variance
    in_added = 0.0
    for q in range(len(nodes.weights)):
        share, weight, m = nodes.shares[q], nodes.weights[q], work.moments[q, t, 0]
        v, covariance = work.moments[q, t, 1] - m**2, work.moments[q, t, 2]
        third, fourth = work.moments[q, t, 3], work.moments[q, t, 4]
        slope = slope_of(m, v + added, readout)
        follows0, follows1 = work.slope[q] * covariance, slope * v
        in_follows0 = share * (in_both * slope + in_mean0 * m + in_weight0 * weight)
        in_follows1 = share * (in_mean1 * m + in_weight1 * weight)
        in_slope = share * (2 * sharing * added * slope + in_both * follows0) + in_follows1 * v
        in_m, in_v, in_third, in_fourth = read_adjoint(
            m, v + added, third, fourth, share * in_r, in_slope, share * in_variance, readout
        )
        in_added += in_v + share * sharing * slope**2
        in_v += in_follows1 * slope
        in_m += share * (in_mean0 * follows0 + in_mean1 * follows1) - 2 * m * in_v
        gradient.slope[q] += in_follows0 * covariance
        gradient.moments[q, t, 0] += in_m
        gradient.moments[q, t, 1] += in_v
        gradient.moments[q, t, 2] += in_follows0 * work.slope[q]
        gradient.moments[q, t, 3] += in_third
        gradient.moments[q, t, 4] += in_fourth
    for q in range(len(nodes.weights)):
        gradient.moments[q, t, 1] += nodes.shares[q] * readout.variance_per_square * in_added


@compiled
def _read_reference(
    in_r0: float, in_variance0: float, tables: ExpectedTables, work: Work, gradient: Gradient
) -> None:
    shares, readout, nodes = tables.nodes.shares, tables.readout, work.nodes
    added = error.added_variance(error.mean_square_programmed(shares, nodes), readout)
    sharing = (tables.compensation.n_columns - 1) * in_variance0
    in_added = 0.0
    for q in range(len(shares)):
        slope = work.slope[q]
        in_slope = gradient.slope[q] + 2 * shares[q] * sharing * added * slope
        in_mean, in_variance, _, _ = read_adjoint(
            nodes.mean[q], nodes.variance[q] + added, 0.0, 0.0,
            shares[q] * in_r0, in_slope, shares[q] * in_variance0, readout,
        )  # fmt: skip
        in_added += in_variance + shares[q] * sharing * slope**2
        gradient.nodes.mean[q] += in_mean
        gradient.nodes.variance[q] += in_variance
    in_square = readout.variance_per_square * in_added
    for q in range(len(shares)):
        gradient.nodes.mean[q] += shares[q] * 2 * nodes.mean[q] * in_square
        gradient.nodes.variance[q] += shares[q] * in_square
