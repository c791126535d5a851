"""Decoding points of the hypercube in JAX, so that gradients reach the coordinates.

The steps of :meth:`wpo_optuna.hypercube.Hypercube.decode_arrays`, in float64 throughout: the result
agrees with that to the single precision in which the reference holds weights.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from wpo_optuna.hypercube import LOWEST_FRACTION, Hypercube


class Layout(NamedTuple):
    """What the coordinates of a hypercube mean; each layout is compiled for itself.

    Attributes:
        free_pairs, n_pairs, symmetric, nbins, use_max_kw: as the hypercube has them.
    """

    free_pairs: tuple[int, ...]
    n_pairs: int
    symmetric: bool
    nbins: int
    use_max_kw: bool


class Bounds(NamedTuple):
    """Numbers of a hypercube: factors ``(P,)``, 1 where free; the others as the hypercube has them.

    Conductances are in µS.
    """

    factors: NDArray[np.float64]
    f_min: np.float64
    f_max: np.float64
    g_min: np.float64
    g_max: np.float64
    g_err: np.float64


def described(cube: Hypercube) -> tuple[Layout, Bounds]:
    """A hypercube as :func:`decode` takes it."""
    layout = Layout(cube.free_pairs, cube.n_pairs, cube.symmetric, cube.nbins, cube.use_max_kw)
    factors = np.array([1.0 if f is None else f for f in cube.f_lst])
    numbers = cube.f_min, cube.f_max, cube.g_min, cube.g_max, cube.g_err
    return layout, Bounds(factors, *map(np.float64, numbers))


def decode(x: Array, bounds: Bounds, layout: Layout) -> tuple[Array, Array]:
    """Signed factors ``(2P, n)`` and curves ``(2P, K, n)`` in µS of points ``(d, n)``."""
    n_pairs, range_us = layout.n_pairs, bounds.g_max - bounds.g_min
    n_knots = 2 * layout.nbins - 1
    n_free_knots = layout.nbins if layout.symmetric else n_knots
    free, rest = jnp.split(x, [len(layout.free_pairs)])
    f = jnp.broadcast_to(jnp.asarray(bounds.factors)[:, None], (n_pairs, x.shape[1]))
    f = f.at[np.array(layout.free_pairs, int)].set(
        free * (bounds.f_max - bounds.f_min) + bounds.f_min
    )
    fraction = jnp.ones(x.shape[1])
    if not layout.use_max_kw:
        fraction, rest = rest[0] * (1 - LOWEST_FRACTION) + LOWEST_FRACTION, rest[1:]
    blocks = rest.reshape(2 * n_pairs - 1, n_free_knots, -1)
    span = f * range_us
    knots = np.linspace(-1, 1, n_knots)[:n_free_knots, None]
    remainder = fraction * span.sum(0) * knots
    curves: list[Array] = []
    for pair in range(n_pairs):
        left, own = span[pair + 1 :].sum(0), span[pair]
        low = _larger(remainder - left, -own, bounds)
        high = -_larger(-remainder - left, -own, bounds)
        share = 1.0 if pair == n_pairs - 1 else blocks[2 * pair + 1]
        carried = share * (high - low) + low
        remainder = remainder - carried
        curves += _pair_curves(blocks[2 * pair], carried / f[pair], bounds, layout)
    return jnp.stack([f, -f], axis=1).reshape(2 * n_pairs, -1), jnp.stack(curves)


def _pair_curves(place: Array, delta_g: Array, bounds: Bounds, layout: Layout) -> list[Array]:
    """Curves of g+ and g- ``(K, n)`` from where g+ lies on the line g+ - g- = delta_g."""
    g_err_us = bounds.g_err * (bounds.g_max - bounds.g_min)
    lowest = bounds.g_min + jnp.where(delta_g > 0, delta_g, 0) - g_err_us
    highest = bounds.g_max + jnp.where(delta_g > 0, 0, delta_g) + g_err_us
    g_plus = _clipped(place * (highest - lowest) + lowest, bounds)
    g_minus = _clipped(g_plus - delta_g, bounds)
    if not layout.symmetric:
        return [g_plus, g_minus]
    inner = layout.nbins - 1
    return [
        jnp.concatenate([g_plus[:inner], g_minus[::-1]]),
        jnp.concatenate([g_minus[:inner], g_plus[::-1]]),
    ]


def _larger(a: Array, b: Array, bounds: Bounds) -> Array:
    """The maximum, a where they are equal but for rounding.

    At the faces of the cube many are, and a is the larger one inside; JAX's own maximum would pass
    half a gradient to each.
    """
    return jnp.where(a >= b - _rounding(bounds), a, b)


def _clipped(g: Array, bounds: Bounds) -> Array:
    """Passes the whole gradient at the ends, and where rounding leads a little beyond them."""
    low, high, near = bounds.g_min, bounds.g_max, _rounding(bounds)
    return jnp.where(g < low - near, low, jnp.where(g > high + near, high, g))


def _rounding(bounds: Bounds) -> np.float64:
    """More than rounding makes of a conductance, in µS."""
    return 1e-9 * (bounds.g_max - bounds.g_min)
