"""Everything the expected loss is computed from, as plain arrays that numba and torch both take."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wpo_optuna.loss.gamma_excess import gamma_excess_table
from wpo_optuna.loss.moment_tables import DeviceMoments
from wpo_optuna.loss.readout_table import ReadoutTable
from wpo_optuna.loss.weight_nodes import WeightNodes

FloatArray = NDArray[np.float64]

# Nodes for the weight after programming.
_HERMITE_NODES = 3


class Compensation(NamedTuple):
    """Which drift compensation there is.

    Attributes:
        is_on: whether there is any; if not, the factor is 1.
        measures_reference: whether the reference is read through the tile after programming;
            otherwise it is ``exact_reference``.
        exact_reference: mean absolute target weight.
        group_size: number of read-outs that are averaged, a tile's or a column's.
        n_columns: number of columns they are in.
    """

    is_on: bool
    measures_reference: bool
    exact_reference: float
    group_size: int
    n_columns: int


class ExpectedTables(NamedTuple):
    """Tables of one tile; see docs/expected_loss.md for the formulas they serve.

    Attributes:
        weights: nodes of the target weights ``(Q,)``.
        shares: their shares ``(Q,)``.
        segments: number of the knot on each node's left ``(Q,)``.
        fractions: where between that knot and the next the node lies ``(Q,)``.
        extremes, counts: target weights for the largest programmed weight ``(J,)``.
        extreme_segments, extreme_fractions: their place between the knots ``(J,)``.
        largest: largest absolute target weight of the tile.
        normalisation: weight that errors are divided by, largest of the whole test matrix.
        g_us: grid of conductances ``(G,)`` in µS, denser towards the lowest.
        programmed: mean and variance after programming ``(G, 2)``.
        target, present: factors of the moments at the times ``(G, T, 2R)``, R for the mean, then R
            for the relative second moment.
        readout: response, slope, second moment ``(M, V, 3)``.
        readout_largest_mean: its means span ``[-readout_largest_mean, readout_largest_mean]``.
        readout_largest_deviation: see :class:`ReadoutTable`.
        readout_variance_per_square, readout_added_variance: see :class:`ReadoutTable`.
        hermite_nodes, hermite_shares: Gauss-Hermite rule for the programmed weight ``(H,)``.
        gamma_excess: see :mod:`wpo_optuna.loss.gamma_excess`.
        span_nodes, span_shares: rule for the largest programmed weight, in standard deviations.
        compensation: drift compensation.
    """

    weights: FloatArray
    shares: FloatArray
    segments: NDArray[np.int64]
    fractions: FloatArray
    extremes: FloatArray
    counts: FloatArray
    extreme_segments: NDArray[np.int64]
    extreme_fractions: FloatArray
    largest: float
    normalisation: float
    g_us: FloatArray
    programmed: FloatArray
    target: FloatArray
    present: FloatArray
    readout: FloatArray
    readout_largest_mean: float
    readout_largest_deviation: float
    readout_variance_per_square: float
    readout_added_variance: float
    hermite_nodes: FloatArray
    hermite_shares: FloatArray
    gamma_excess: FloatArray
    span_nodes: FloatArray
    span_shares: FloatArray
    compensation: Compensation


def expected_tables(
    nodes: WeightNodes,
    n_knots: int,
    normalisation: float,
    devices: DeviceMoments,
    readout: ReadoutTable,
    compensation: Compensation,
) -> ExpectedTables:
    """Puts the tables of one tile together.

    Args:
        nodes: the tile's target weights.
        n_knots: number K of knots of the curves.
        normalisation: weight that errors are divided by.
        devices: moments of a single device.
        readout: the averaged read-out.
        compensation: drift compensation.
    """
    segments, fractions = _places(nodes.weights, nodes.largest, n_knots)
    extreme_segments, extreme_fractions = _places(nodes.extremes, nodes.largest, n_knots)
    hermite_nodes, hermite_shares = _hermite_rule(_HERMITE_NODES)
    # Drift compensation makes up for the span of the curves being wide or narrow by chance;
    # without it, the spread of the largest weight counts.
    span_nodes, span_shares = _hermite_rule(1 if compensation.is_on else 2)
    return ExpectedTables(
        weights=nodes.weights,
        shares=nodes.shares,
        segments=segments,
        fractions=fractions,
        extremes=nodes.extremes,
        counts=nodes.counts,
        extreme_segments=extreme_segments,
        extreme_fractions=extreme_fractions,
        largest=nodes.largest,
        normalisation=normalisation,
        g_us=devices.g_us,
        programmed=np.stack([devices.programmed_mean, devices.programmed_variance], axis=1),
        target=_by_time(devices.target),
        present=_by_time(devices.present),
        readout=readout.values,
        readout_largest_mean=readout.largest_mean,
        readout_largest_deviation=readout.largest_deviation,
        readout_variance_per_square=readout.variance_per_square,
        readout_added_variance=readout.added_variance,
        hermite_nodes=hermite_nodes,
        hermite_shares=hermite_shares,
        gamma_excess=gamma_excess_table(),
        span_nodes=span_nodes,
        span_shares=span_shares,
        compensation=compensation,
    )


def _places(
    weights: FloatArray, largest: float, n_knots: int
) -> tuple[NDArray[np.int64], FloatArray]:
    """Segment between knots, and place in it, of weights (N,)."""
    position = (weights / largest + 1) * (n_knots - 1) / 2
    segments = np.clip(np.floor(position), 0, n_knots - 2).astype(np.int64)
    return segments, position - segments


def _hermite_rule(n_nodes: int) -> tuple[FloatArray, FloatArray]:
    """Gauss rule of the standard normal distribution."""
    nodes, shares = np.polynomial.hermite_e.hermegauss(n_nodes)
    return nodes, shares / shares.sum()


def _by_time(factors: FloatArray) -> FloatArray:
    """Factors (G, 2, R, T) as (G, T, 2R)."""
    n_grid, n_moments, n_terms, n_times = factors.shape
    by_time = np.moveaxis(factors, 3, 1).reshape(n_grid, n_times, n_moments * n_terms)
    return np.ascontiguousarray(by_time)
