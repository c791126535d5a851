"""Decoding for gradients: the hypercube's strategies, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wpo_optuna.hypercube import Hypercube
from wpo_optuna.loss.differentiable_decode import DecodedForGradient

CUBES = {
    "symmetric": Hypercube((1.0, None), 0.0, 25.0, 0.9),
    "three pairs": Hypercube((None, 2.0, None), 0.0, 25.0, 0.7, symmetric=False, nbins=4),
    "one pair": Hypercube((1.0,), 1.0, 20.0, 1.3),
    "off target": Hypercube((1.0, None), 0.0, 25.0, 0.9, g_err=0.3),
    "largest weight": Hypercube((1.0, None), 2.0, 25.0, 0.9, use_max_kw=True),
}


@pytest.mark.parametrize("name", CUBES)
@given(seed=st.integers(0, 2**32 - 1), at_faces=st.booleans())
def test_strategies_are_the_hypercubes(name: str, seed: int, at_faces: bool) -> None:
    cube = CUBES[name]
    x = np.random.default_rng(seed).random((4, cube.dimension))
    x = x.round() if at_faces else x
    decoded, expected = DecodedForGradient(cube, x), cube.decode_arrays(x)
    np.testing.assert_allclose(decoded.f, expected.f, rtol=1e-12)
    # The hypercube holds weights in single precision.
    np.testing.assert_allclose(decoded.curves, expected.g, atol=2e-5 * cube.g_max)


@pytest.mark.parametrize("name", CUBES)
@given(seed=st.integers(0, 2**32 - 1))
def test_derivatives_are_limits_of_finite_differences(name: str, seed: int) -> None:
    cube = CUBES[name]
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.01, 0.99, (1, cube.dimension))
    decoded = DecodedForGradient(cube, x)
    in_f = rng.standard_normal(decoded.f.shape)
    in_curves = rng.standard_normal(decoded.curves.shape)
    gradient = decoded.pull_back(in_f, in_curves)
    direction = rng.standard_normal(x.shape)
    step = 1e-7

    def value(point: np.ndarray) -> float:
        there = DecodedForGradient(cube, point)
        return float((in_f * there.f).sum() + (in_curves * there.curves).sum())

    slope = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
    assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-4, abs=1e-3)
