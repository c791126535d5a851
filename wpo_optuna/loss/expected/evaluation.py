"""The expected loss of any number of strategies: by chunks of one size, shared out over threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import Array
from numpy.typing import NDArray

from wpo_optuna.hypercube import Hypercube
from wpo_optuna.loss.expected.compiled import compiled, on
from wpo_optuna.loss.expected.conductance import expected_conductance
from wpo_optuna.loss.expected.decode import Bounds, Layout, decode, described
from wpo_optuna.loss.expected.loss import Kind, Tables, expected_tnmse

FloatArray = NDArray[np.float64]
Tree = TypeVar("Tree", bound=tuple[Any, ...])

# So many strategies at a time, with and without gradients: what they need stays in a core's cache,
# and vectors are full.
_VALUE_CHUNK, _GRADIENT_CHUNK = 16, 4
# Enough for a GPU, where they take a few hundred MiB.
_GPU_FACTOR = 64


def placed(tables: Tree, device: jax.Device) -> Tree:
    """Tables put where JAX computes."""
    with on(device):
        return jax.tree.map(jnp.asarray, tables)


def tnmse(
    factors: FloatArray,
    curves: FloatArray,
    tiles: Sequence[Tables],
    kind: Kind,
    device: jax.Device,
) -> FloatArray:
    """TNMSE ``(n,)`` of strategies; +inf where it is not defined.

    Args:
        factors: signed factor of each device in the weight ``(n, D)``.
        curves: conductances in µS at the knots ``(n, D, K)``.
        tiles: the tiles of the test matrix, :func:`placed`.
        kind: which drift compensation there is.
        device: where the tiles are.
    """
    (total,) = _by_chunks(_values, (kind,), (factors, curves), (), tiles, _VALUE_CHUNK, device)
    return np.where(np.isfinite(total), total, np.inf)


def tnmse_and_gradient(
    x: FloatArray, cube: Hypercube, tiles: Sequence[Tables], kind: Kind, device: jax.Device
) -> tuple[FloatArray, FloatArray]:
    """TNMSE ``(n,)`` and gradient ``(n, d)`` at points ``(n, d)`` of a hypercube; see above."""
    layout, bounds = described(cube)
    total, gradient = _by_chunks(
        _gradients, (layout, kind), (x,), (bounds,), tiles, _GRADIENT_CHUNK, device
    )
    return np.where(np.isfinite(total), total, np.inf), gradient


def conductance(
    factors: FloatArray, curves: FloatArray, tiles: Sequence[Tables], device: jax.Device
) -> FloatArray:
    """Mean conductance ``(n,)`` in µS, each tile's times its scale; see :func:`tnmse`."""
    (total,) = _by_chunks(_conductances, (), (factors, curves), (), tiles, _VALUE_CHUNK, device)
    return np.where(np.isfinite(total), total, np.inf)


def conductance_and_gradient(
    x: FloatArray, cube: Hypercube, tiles: Sequence[Tables], device: jax.Device
) -> tuple[FloatArray, FloatArray]:
    """Mean conductance ``(n,)`` and gradient ``(n, d)`` at points ``(n, d)``; see above."""
    layout, bounds = described(cube)
    total, gradient = _by_chunks(
        _conductance_gradients, (layout,), (x,), (bounds,), tiles, _GRADIENT_CHUNK, device
    )
    return np.where(np.isfinite(total), total, np.inf), gradient


def _conductance_gradients(
    x: Array, bounds: Bounds, tables: Tables, layout: Layout
) -> tuple[Array, Array]:
    return _with_gradient(lambda x: expected_conductance(*decode(x, bounds, layout), tables), x)


def _conductances(factors: Array, curves: Array, tables: Tables) -> tuple[Array]:
    return (expected_conductance(factors, curves, tables),)


def _values(factors: Array, curves: Array, tables: Tables, kind: Kind) -> tuple[Array]:
    return (expected_tnmse(factors, curves, tables, kind),)


def _gradients(
    x: Array, bounds: Bounds, tables: Tables, layout: Layout, kind: Kind
) -> tuple[Array, Array]:
    return _with_gradient(lambda x: expected_tnmse(*decode(x, bounds, layout), tables, kind), x)


def _with_gradient(function: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    values, pull_back = jax.vjp(function, x)
    return values, pull_back(jnp.ones_like(values))[0]


def _by_chunks(
    function: Callable[..., tuple[Array, ...]],
    statics: tuple[Any, ...],
    strategies: Sequence[FloatArray],
    shared: tuple[Any, ...],
    tiles: Sequence[Tables],
    size: int,
    device: jax.Device,
) -> list[FloatArray]:
    """Results ``(n, ...)`` of a function of so many strategies at a time, summed over tiles.

    Args:
        function: of a chunk of each of the strategies' arrays, then ``shared``, a tile and
            ``statics``; in its arguments and results, strategies come last.
        statics: see :func:`~wpo_optuna.loss.expected.compiled.compiled`.
        strategies: arrays ``(n, ...)``.
        shared: what all strategies have in common.
        tiles: the tiles.
        size: number of strategies in a chunk on a core.
        device: where the tiles are.
    """
    n, is_on_cpu = len(strategies[0]), device.platform == "cpu"
    size *= 1 if is_on_cpu else _GPU_FACTOR
    # The last chunk is filled up with copies, so that there is one shape.
    rows = np.minimum(np.arange(-(-n // size) * size), n - 1).reshape(-1, size)
    chunks = [
        [np.ascontiguousarray(np.moveaxis(array[chunk], 0, -1)) for array in strategies]
        for chunk in rows
    ]
    runs = [compiled(function, statics, (*chunks[0], *shared, tile), device) for tile in tiles]

    def results(chunk: list[FloatArray]) -> list[FloatArray]:
        with on(device):
            of_tiles = [run(*chunk, *shared, tile) for run, tile in zip(runs, tiles, strict=True)]
        return [np.sum(parts, axis=0) for parts in zip(*of_tiles, strict=True)]

    n_threads = min(len(chunks), len(os.sched_getaffinity(0)), torch.get_num_threads())
    if n_threads == 1 or not is_on_cpu:
        parts = list(map(results, chunks))
    else:
        with ThreadPoolExecutor(n_threads) as pool:
            parts = list(pool.map(results, chunks))
    joined = [np.concatenate(of_all, axis=-1)[..., :n] for of_all in zip(*parts, strict=True)]
    return [np.moveaxis(array, -1, 0) for array in joined]
