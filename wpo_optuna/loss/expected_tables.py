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


class Places(NamedTuple):
    """Target weights and where they lie between the knots of the curves.

    Attributes:
        weights: target weights ``(N,)``, unitless.
        shares: the share, or the number, of the entries that each stands for ``(N,)``.
        segments: number of the knot on the left ``(N,)``.
        fractions: place between that knot and the next ``(N,)``.
    """

    weights: FloatArray
    shares: FloatArray
    segments: NDArray[np.int64]
    fractions: FloatArray


class Rule(NamedTuple):
    """A Gauss rule for a standard normal variable: nodes and shares ``(H,)``."""

    nodes: FloatArray
    shares: FloatArray


class DeviceTables(NamedTuple):
    """Moments of a device; see :class:`~wpo_optuna.loss.moment_tables.DeviceMoments`.

    Attributes:
        g_us: grid of conductances ``(G,)`` in µS, denser towards the lowest.
        programmed: mean and variance after programming ``(G, 2)``.
        target: factors of the moments at the times that depend on the target ``(G, T, 2R)``: R
            for the mean, then R for the relative second moment.
        present: factors that depend on the present conductance, same shape.
    """

    g_us: FloatArray
    programmed: FloatArray
    target: FloatArray
    present: FloatArray


class ReadoutTables(NamedTuple):
    """The averaged read-out; see :class:`~wpo_optuna.loss.readout_table.ReadoutTable`.

    Attributes:
        values: response, slope, second moment ``(M, V, 3)``.
        largest_mean: means span ``[-largest_mean, largest_mean]``.
        largest_deviation: sets the variances.
        variance_per_square, added_variance: set what input noise adds to the variance.
        gamma_excess: see :mod:`wpo_optuna.loss.gamma_excess`.
    """

    values: FloatArray
    largest_mean: float
    largest_deviation: float
    variance_per_square: float
    added_variance: float
    gamma_excess: FloatArray


class ExpectedTables(NamedTuple):
    """Tables of one tile; see docs/expected_loss.md for the formulas they serve.

    Attributes:
        nodes: nodes of the target weights, with their shares ``(Q,)``.
        extremes: target weights for the largest programmed weight, with their numbers ``(J,)``.
        largest: largest absolute target weight of the tile.
        normalisation: weight that errors are divided by, largest of the whole test matrix.
        devices: moments of a device.
        readout: the averaged read-out.
        programming: rule for the programmed weight.
        span: rule for the largest programmed weight.
        compensation: drift compensation.
    """

    nodes: Places
    extremes: Places
    largest: float
    normalisation: float
    devices: DeviceTables
    readout: ReadoutTables
    programming: Rule
    span: Rule
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
    return ExpectedTables(
        nodes=_places(nodes.weights, nodes.shares, nodes.largest, n_knots),
        extremes=_places(nodes.extremes, nodes.counts, nodes.largest, n_knots),
        largest=nodes.largest,
        normalisation=normalisation,
        devices=DeviceTables(
            g_us=devices.g_us,
            programmed=np.stack([devices.programmed_mean, devices.programmed_variance], axis=1),
            target=_by_time(devices.target),
            present=_by_time(devices.present),
        ),
        readout=ReadoutTables(
            values=readout.values,
            largest_mean=readout.largest_mean,
            largest_deviation=readout.largest_deviation,
            variance_per_square=readout.variance_per_square,
            added_variance=readout.added_variance,
            gamma_excess=gamma_excess_table(),
        ),
        programming=_hermite_rule(_HERMITE_NODES),
        # Drift compensation makes up for the span of the curves being wide or narrow by chance;
        # without it, the spread of the largest weight counts.
        span=_hermite_rule(1 if compensation.is_on else 2),
        compensation=compensation,
    )


def _places(weights: FloatArray, shares: FloatArray, largest: float, n_knots: int) -> Places:
    position = (weights / largest + 1) * (n_knots - 1) / 2
    segments = np.clip(np.floor(position), 0, n_knots - 2).astype(np.int64)
    return Places(weights, shares, segments, position - segments)


def _hermite_rule(n_nodes: int) -> Rule:
    """Gauss rule of the standard normal distribution."""
    nodes, shares = np.polynomial.hermite_e.hermegauss(n_nodes)
    return Rule(nodes, shares / shares.sum())


def _by_time(factors: FloatArray) -> FloatArray:
    """Factors (G, 2, R, T) as (G, T, 2R)."""
    n_grid, n_moments, n_terms, n_times = factors.shape
    by_time = np.moveaxis(factors, 3, 1).reshape(n_grid, n_times, n_moments * n_terms)
    return np.ascontiguousarray(by_time)
