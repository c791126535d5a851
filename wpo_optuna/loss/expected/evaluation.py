"""The expected loss of any number of strategies: by chunks of one size, shared out over threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from wpo_optuna.hypercube import Hypercube
from wpo_optuna.loss.expected.compiled import compiled, on_cpu
from wpo_optuna.loss.expected.decode import Bounds, Layout, decode, described
from wpo_optuna.loss.expected.loss import expected_tnmse
from wpo_optuna.loss.expected.tables import Kind, Tables

FloatArray = NDArray[np.float64]

# So many strategies at a time: what they need stays in a core's cache, and vectors are full.
_VALUE_CHUNK, _GRADIENT_CHUNK = 16, 4


class Tile(NamedTuple):
    """One tile of the test matrix.

    Attributes:
        share: its share of the columns.
        tables: its tables, where JAX computes.
    """

    share: float
    tables: Tables


def tile(share: float, tables: Tables) -> Tile:
    """A tile with its tables put where JAX computes."""
    with on_cpu():
        return Tile(share, jax.tree.map(jnp.asarray, tables))


def tnmse(
    factors: FloatArray, curves: FloatArray, tiles: Sequence[Tile], kind: Kind, threads: int
) -> FloatArray:
    """TNMSE ``(n,)`` of strategies; +inf where it is not defined.

    Args:
        factors: signed factor of each device in the weight ``(n, D)``.
        curves: conductances in µS at the knots ``(n, D, K)``.
        tiles: the tiles of the test matrix.
        kind: which drift compensation there is.
        threads: how many threads share the strategies; values do not depend on it.
    """
    total = np.zeros(len(factors))
    for share, tables in tiles:
        strategies, shared = (factors, curves), (tables,)
        (values,) = _by_chunks(_values, (kind,), strategies, shared, _VALUE_CHUNK, threads)
        total += share * values
    return np.where(np.isfinite(total), total, np.inf)


def tnmse_and_gradient(
    x: FloatArray, cube: Hypercube, tiles: Sequence[Tile], kind: Kind, threads: int
) -> tuple[FloatArray, FloatArray]:
    """TNMSE ``(n,)`` and gradient ``(n, d)`` at points ``(n, d)`` of a hypercube; see above."""
    layout, bounds = described(cube)
    total, gradient = np.zeros(len(x)), np.zeros_like(x)
    for share, tables in tiles:
        statics, shared = (layout, kind), (bounds, tables)
        of_tile = _by_chunks(_gradients, statics, (x,), shared, _GRADIENT_CHUNK, threads)
        total += share * of_tile[0]
        gradient += share * of_tile[1]
    return np.where(np.isfinite(total), total, np.inf), gradient


def _values(factors: Array, curves: Array, tables: Tables, kind: Kind) -> tuple[Array]:
    return (expected_tnmse(factors, curves, tables, kind),)


def _gradients(
    x: Array, bounds: Bounds, tables: Tables, layout: Layout, kind: Kind
) -> tuple[Array, Array]:
    def loss(x: Array) -> Array:
        return expected_tnmse(*decode(x, bounds, layout), tables, kind)

    values, pull_back = jax.vjp(loss, x)
    return values, pull_back(jnp.ones_like(values))[0]


def _by_chunks(
    function: Callable[..., Any],
    statics: tuple[Any, ...],
    strategies: Sequence[FloatArray],
    shared: Sequence[Any],
    size: int,
    threads: int,
) -> list[FloatArray]:
    """Results ``(n, ...)`` of a function of so many strategies at a time.

    Args:
        function: of a chunk of each of the strategies' arrays, then ``shared``, then ``statics``;
            in its arguments and results, strategies come last.
        statics: see :func:`~wpo_optuna.loss.expected.compiled.compiled`.
        strategies: arrays ``(n, ...)``.
        shared: what all strategies have in common.
        size: number of strategies in a chunk.
        threads: how many threads share the chunks.
    """
    n = len(strategies[0])
    # The last chunk is filled up with copies, so that there is one shape.
    rows = np.minimum(np.arange(-(-n // size) * size), n - 1).reshape(-1, size)
    chunks = [
        [np.ascontiguousarray(np.moveaxis(array[chunk], 0, -1)) for array in strategies]
        for chunk in rows
    ]
    run = compiled(function, statics, (*chunks[0], *shared))

    def results(chunk: list[FloatArray]) -> list[FloatArray]:
        with on_cpu():
            return [np.asarray(result) for result in run(*chunk, *shared)]

    if threads == 1 or len(chunks) == 1:
        parts = list(map(results, chunks))
    else:
        with ThreadPoolExecutor(min(threads, len(chunks))) as pool:
            parts = list(pool.map(results, chunks))
    joined = [np.concatenate(of_all, axis=-1)[..., :n] for of_all in zip(*parts, strict=True)]
    return [np.moveaxis(array, -1, 0) for array in joined]
