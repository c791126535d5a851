"""Decoding in JAX gives the hypercube's strategies."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from wpo_optuna.hypercube import Hypercube
from wpo_optuna.loss.expected.compiled import jax_device, on
from wpo_optuna.loss.expected.decode import decode, described

CUBES = {
    "three pairs": Hypercube((None, 2.0, None), 0.0, 25.0, 0.7, symmetric=False, nbins=4),
    "off target": Hypercube((1.0, None), 0.0, 25.0, 0.9, g_err=0.3),
    "largest weight": Hypercube((1.0, None), 2.0, 25.0, 0.9, use_max_kw=True),
}


@pytest.mark.parametrize("name", CUBES)
def test_strategies_are_the_hypercubes(name: str) -> None:
    cube = CUBES[name]
    x = np.random.default_rng(0).random((100, cube.dimension))
    x[50:] = x[50:].round()
    layout, bounds = described(cube)
    with on(jax_device("cpu")):
        factors, curves = (
            np.asarray(part) for part in jax.jit(decode, static_argnums=2)(x.T, bounds, layout)
        )
    expected = cube.decode_arrays(x)
    np.testing.assert_allclose(factors[::2].T, expected.f, rtol=1e-12)
    np.testing.assert_array_equal(factors[1::2], -factors[::2])
    # The hypercube holds weights in single precision.
    np.testing.assert_allclose(np.moveaxis(curves, -1, 0), expected.g, atol=2e-5 * cube.g_max)
