"""The test matrix as a few weights with shares, for integrals over its entries.

The mean over all entries becomes a Gauss rule between each two neighbouring knots of the curves;
the largest programmed weight depends on the entries near the extremes, which enter one by one, and
on all others in groups (docs/expected_loss.md).

JAX compiles anew for each shape: nodes and extremes are filled up with ones that count nothing, so
that other weights and layers of another size need no other code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Nodes for a pair of knots that holds all entries; fewer hold fewer, by the square root.
_NODES_OF_ALL = 20
_FEWEST_NODES = 3

# What normal weights take of the most that such a rule can take, which uniform ones do.
_NODES_OF_NORMAL = 18

_SMALLEST_NORM = 1e-12

# How many of the largest and smallest entries enter the largest programmed weight one by one; the
# groups of the others grow by this factor.
_SINGLE_EXTREMES = 8
_GROUP_GROWTH = 1.5

# Numbers of extremes that are told apart: what a matrix of up to 2048 x 20 has, and steps above.
_FEWEST_EXTREMES, _EXTREMES_STEP = 56, 16


class WeightNodes(NamedTuple):
    """Entries of the test matrix, represented.

    Attributes:
        knots: where the curves have their knots, over the largest entry ``(K,)``.
        weights: nodes ``(Q,)``, unitless, ascending.
        shares: share of the entries that each node stands for ``(Q,)``; they add up to 1.
        extremes: entries or means of groups of entries ``(J,)``.
        counts: number of entries that each of the extremes stands for ``(J,)``.
        largest: largest absolute entry.
        mean_absolute: mean absolute entry.
    """

    knots: FloatArray
    weights: FloatArray
    shares: FloatArray
    extremes: FloatArray
    counts: FloatArray
    largest: np.float64
    mean_absolute: np.float64


def weight_nodes(matrix: FloatArray, knots: FloatArray) -> WeightNodes:
    """Nodes for strategies whose curves have these knots.

    Args:
        matrix: the test matrix ``(rows, columns)``, unitless, not all zero.
        knots: ascending ``(K,)`` from -1 to 1, in units of the largest absolute entry.
    """
    entries = np.sort(matrix.astype(np.float64), axis=None)
    largest = np.abs(entries).max()
    # An entry at an inner knot belongs to the interval on its right.
    pieces = np.split(entries, np.searchsorted(entries, largest * knots[1:-1]))
    pieces = [piece for piece in pieces if len(piece)]
    most = _most_nodes(len(knots))
    sizes = _sizes([len(piece) for piece in pieces], most)
    rules = [_gauss_rule(piece, size) for piece, size in zip(pieces, sizes, strict=True)]
    weights, numbers = (np.concatenate(parts) for parts in zip(*rules, strict=True))
    extremes, counts = _extremes(entries)
    n_extremes = len(extremes) + (_FEWEST_EXTREMES - len(extremes)) % _EXTREMES_STEP
    return WeightNodes(
        knots,
        *_filled(weights, numbers / len(entries), most),
        *_filled(extremes, counts, max(n_extremes, _FEWEST_EXTREMES)),
        largest=largest,
        mean_absolute=np.abs(entries).mean(),
    )


def _filled(values: FloatArray, counts: FloatArray, size: int) -> tuple[FloatArray, FloatArray]:
    """Both ``(size,)``, filled up with values that count nothing."""
    missing = (0, size - len(values))
    return np.pad(values, missing, mode="edge"), np.pad(counts, missing)


def _most_nodes(n_knots: int) -> int:
    """Number of nodes, a multiple of 8, that no matrix exceeds: 56 for 11 knots."""
    n_pieces = n_knots - 1
    wanted = max(round(_NODES_OF_NORMAL * n_pieces**0.5), _FEWEST_NODES * n_pieces)
    return 8 * math.ceil((wanted - 1) / 8)


def _sizes(counts: Sequence[int], most: int) -> list[int]:
    """Number of nodes for each group of so many entries; no more than so many in all."""
    n = sum(counts)
    wanted = [max(_FEWEST_NODES, round(_NODES_OF_ALL * (count / n) ** 0.5)) for count in counts]
    sizes = [min(size, count) for size, count in zip(wanted, counts, strict=True)]
    while sum(sizes) > most:
        # The rule with the most nodes is the one that needs the last of them least.
        sizes[sizes.index(max(sizes))] -= 1
    return sizes


def _gauss_rule(values: FloatArray, n_nodes: int) -> tuple[FloatArray, FloatArray]:
    """Gauss rule of the distribution that gives each of the values the same probability.

    It integrates polynomials up to degree 2 n_nodes - 1 exactly. The recurrence of the orthogonal
    polynomials is built by Stieltjes' procedure, and the rule is read off its Jacobi matrix (Golub
    and Welsch, 1969).

    Args:
        values: ascending values ``(n,)``.
        n_nodes: number of nodes; fewer are returned where there are fewer distinct values.

    Returns:
        Nodes, ascending, and how many of the values each stands for.
    """
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= n_nodes:
        return distinct, counts.astype(np.float64)
    centre, half_width = values.mean(), np.ptp(values) / 2
    x = (values - centre) / half_width
    previous, current = np.zeros_like(x), np.full_like(x, len(x) ** -0.5)
    diagonal, off_diagonal = [], [0.0]
    for _ in range(n_nodes):
        # Plain sums: products of BLAS would differ between machines in the last digit.
        diagonal.append(np.sum(x * current**2))
        following = (x - diagonal[-1]) * current - off_diagonal[-1] * previous
        norm = math.sqrt(np.sum(following**2))
        # Values that differ by rounding alone carry no more nodes.
        if norm < _SMALLEST_NORM:
            break
        off_diagonal.append(norm)
        previous, current = current, following / norm
    beside = off_diagonal[1 : len(diagonal)]
    jacobi = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    nodes, vectors = np.linalg.eigh(jacobi)
    return centre + half_width * nodes, vectors[0] ** 2 * len(values)


def _extremes(entries: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Means and sizes of groups of the ascending entries, the outermost ones alone."""
    half = len(entries) // 2
    sizes: list[int] = []
    while sum(sizes) < half:
        next_size = 1 if len(sizes) < _SINGLE_EXTREMES else int(sizes[-1] * _GROUP_GROWTH) + 1
        sizes.append(min(next_size, half - sum(sizes)))
    from_below = np.cumsum(sizes)
    # An odd number of entries leaves one in the middle.
    bounds = np.concatenate([from_below, len(entries) - from_below[::-1]])
    groups = [group for group in np.split(entries, np.unique(bounds)) if len(group)]
    return (
        np.array([group.mean() for group in groups]),
        np.array([float(len(group)) for group in groups]),
    )
