"""Everything the expected loss of a tile is computed from, in shapes that problems share.

JAX compiles anew for each shape. Nodes, extremes and the read-out table are filled up with entries
that count nothing, so that other weights and layers of another size need no other code.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wpo_optuna.loss.expected.device_moments import DeviceMoments
from wpo_optuna.loss.expected.gamma_excess import gamma_excess_table
from wpo_optuna.loss.expected.readout_table import MOST_ENTRIES, ReadoutTable
from wpo_optuna.loss.expected.weight_nodes import WeightNodes, most_nodes

FloatArray = NDArray[np.float64]

# Numbers of extremes that are told apart: what a matrix of up to 2048 x 20 has, and steps above.
_FEWEST_EXTREMES, _EXTREMES_STEP = 56, 16


class Kind(NamedTuple):
    """Which drift compensation there is; each kind is compiled for itself.

    Attributes:
        compensates: whether there is any; if not, the factor α is 1.
        reads_reference: whether the reference is read through the tile after programming;
            otherwise it is exact.
    """

    compensates: bool
    reads_reference: bool


class Tables(NamedTuple):
    """Tables of one tile; docs/expected_loss.md has the formulas they serve.

    Attributes:
        knots: where the curves have their knots, over the largest weight ``(K,)``.
        nodes: share of each knot in the curves' values at the nodes ``(K, Q)``.
        weights: target weights at the nodes ``(Q,)``, unitless.
        shares: share of the entries that each node stands for ``(Q,)``.
        extremes: like ``nodes``, for the largest programmed weight ``(K, J)``.
        counts: number of entries that each of the extremes stands for ``(J,)``.
        programmed: mean and variance after programming ``(2, 2, C)``: values, rises, by cells of
            the grid of conductances.
        target: factors of the moments at the times that depend on the target
            ``(T, 2, R, 2, C)``: mean, relative second moment; terms; values, rises.
        present: factors that depend on the present conductance, same shape.
        readout: response, slope, second moment of the read-out, with MOST_ENTRIES entries each.
        gamma_excess: see :mod:`wpo_optuna.loss.expected.gamma_excess`, its axes in one.
        largest: largest absolute target weight of the tile.
        normalisation: weight that errors are divided by, largest of the whole test matrix.
        g_low, g_high: ends of the grid of conductances in µS.
        largest_mean, largest_deviation, variance_per_square, added_variance: see
            :class:`~wpo_optuna.loss.expected.readout_table.ReadoutTable`.
        mean_cells, variance_cells: cells of the read-out table.
        exact_reference: mean absolute target weight.
        group_size: number of read-outs that are averaged, a tile's or a column's.
        n_columns: number of columns they are in.
    """

    knots: FloatArray
    nodes: FloatArray
    weights: FloatArray
    shares: FloatArray
    extremes: FloatArray
    counts: FloatArray
    programmed: FloatArray
    target: FloatArray
    present: FloatArray
    readout: FloatArray
    gamma_excess: FloatArray
    largest: np.float64
    normalisation: np.float64
    g_low: np.float64
    g_high: np.float64
    largest_mean: np.float64
    largest_deviation: np.float64
    variance_per_square: np.float64
    added_variance: np.float64
    mean_cells: np.int32
    variance_cells: np.int32
    exact_reference: np.float64
    group_size: np.float64
    n_columns: np.float64


def tile_tables(
    nodes: WeightNodes,
    knots: FloatArray,
    normalisation: float,
    devices: DeviceMoments,
    readout: ReadoutTable,
    per_column: bool,
) -> Tables:
    """Puts the tables of one tile together.

    Args:
        nodes: the tile's target weights.
        knots: of the curves ``(K,)``, from -1 to 1.
        normalisation: weight that errors are divided by.
        devices: moments of a single device.
        readout: the averaged read-out.
        per_column: whether drift is compensated for each column by itself.
    """
    n_nodes, found = most_nodes(len(knots)), len(nodes.extremes)
    n_extremes = max(found + (_FEWEST_EXTREMES - found) % _EXTREMES_STEP, _FEWEST_EXTREMES)
    weights, extremes = _filled(nodes.weights, n_nodes), _filled(nodes.extremes, n_extremes)
    n_columns = 1 if per_column else nodes.n_columns
    entries = np.zeros((3, MOST_ENTRIES))
    entries[:, : readout.values[..., 0].size] = readout.values.reshape(-1, 3).T
    numbers = {
        "largest": nodes.largest,
        "normalisation": normalisation,
        "g_low": devices.g_us[0],
        "g_high": devices.g_us[-1],
        "largest_mean": readout.largest_mean,
        "largest_deviation": readout.largest_deviation,
        "variance_per_square": readout.variance_per_square,
        "added_variance": readout.added_variance,
        "exact_reference": nodes.mean_absolute,
        "group_size": nodes.n_rows * n_columns,
        "n_columns": n_columns,
    }
    return Tables(
        knots=knots,
        nodes=_hats(weights, nodes.largest, knots),
        weights=weights,
        shares=_filled(nodes.shares, n_nodes, 0.0),
        extremes=_hats(extremes, nodes.largest, knots),
        counts=_filled(nodes.counts, n_extremes, 0.0),
        programmed=_cells(np.stack([devices.programmed_mean, devices.programmed_variance], 1)),
        target=np.moveaxis(_cells(devices.target), 2, 0),
        present=np.moveaxis(_cells(devices.present), 2, 0),
        readout=entries.ravel(),
        mean_cells=np.int32(readout.values.shape[0] - 1),
        variance_cells=np.int32(readout.values.shape[1] - 1),
        gamma_excess=gamma_excess_table().ravel(),
        **{name: np.float64(number) for name, number in numbers.items()},
    )


def _filled(values: FloatArray, size: int, filling: float | None = None) -> FloatArray:
    """Values ``(size,)``, filled up with a number or their last."""
    missing = max(size - len(values), 0)
    return np.append(values, np.full(missing, values[-1] if filling is None else filling))


def _hats(weights: FloatArray, largest: float, knots: FloatArray) -> FloatArray:
    """Share of each knot in a curve's value at the weights, (K, N)."""
    return np.array([np.interp(weights / largest, knots, one) for one in np.eye(len(knots))])


def _cells(table: FloatArray) -> FloatArray:
    """Values and rises (..., 2, C) of each cell of a table (C + 1, ...)."""
    cells = np.stack([table[:-1], np.diff(table, axis=0)])
    return np.ascontiguousarray(np.moveaxis(cells, (0, 1), (-2, -1)))
