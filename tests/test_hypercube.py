"""The hypercube decodes as the reference does, to strategies that are valid, and all at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from aihwkit.inference.converter import wpo
from aihwkit_reference import hypercube_dictionary, reference_bounds
from hypercube_strategies import hypercubes, hypercubes_with_points
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.hypercube import Hypercube

TWO_PAIRS = Hypercube(f_lst=(1.0, None), g_min=0.0, g_max=25.0, max_abs_weight=0.8)
Points = NDArray[np.float64]


@given(hypercubes())
def test_bounds_equal_the_references_and_each_coordinate_has_a_name_and_a_unit_distribution(
    hypercube: Hypercube,
) -> None:
    assert hypercube.bounds == reference_bounds(hypercube)
    assert hypercube.dimension == len(hypercube.bounds)
    distributions = hypercube.distributions()
    assert tuple(distributions) == hypercube.names
    assert len(set(hypercube.names)) == hypercube.dimension
    assert {(d.low, d.high, d.log, d.step) for d in distributions.values()} == {
        (0.0, 1.0, False, None)
    }


def test_coordinates_are_told_from_quantities_and_keep_the_references_order() -> None:
    names = [name.rpartition("_")[0] if "g_" in name else name for name in TWO_PAIRS.names]
    assert list(dict.fromkeys(names)) == ["x_f_1", "x_k_w", "x_g_0", "x_delta_g_0", "x_g_1"]
    assert TWO_PAIRS.names[2:4] == ("x_g_0_0", "x_g_0_1")


def test_a_trial_is_read_by_the_names_of_today_and_by_those_of_earlier_studies() -> None:
    x = np.random.default_rng(0).random(TWO_PAIRS.dimension).tolist()
    assert TWO_PAIRS.earlier_names[:3] == ("f_1", "k_w", "g_0_0")
    for names in (TWO_PAIRS.names, TWO_PAIRS.earlier_names):
        shuffled = dict(sorted(zip(names, x, strict=True), reverse=True))
        assert TWO_PAIRS.point(shuffled) == x
        assert tuple(TWO_PAIRS.distributions(names)) == names


@given(hypercubes_with_points())
def test_decode_equals_the_references_denormalize(cube: tuple[Hypercube, Points]) -> None:
    hypercube, x = cube
    decoded = hypercube.decode_arrays(x)
    assert decoded.g.min() >= hypercube.g_min
    assert decoded.g.max() <= hypercube.g_max
    for index, point in enumerate(x):
        f_lst, g_lst = wpo.denormalize(point.copy(), hypercube_dictionary(hypercube))
        np.testing.assert_allclose(decoded.f[index], f_lst, rtol=1e-9)
        # A conductance that is zero but for rounding has no relative error.
        np.testing.assert_allclose(decoded.g[index], g_lst, rtol=1e-9, atol=1e-9 * hypercube.g_max)


@given(hypercubes_with_points(g_err=st.just(0.0)))
def test_without_programming_slack_the_curves_add_up_to_the_weights(
    cube: tuple[Hypercube, Points],
) -> None:
    hypercube, x = cube
    decoded = hypercube.decode_arrays(x)
    weights_us = np.einsum("np,npk->nk", decoded.f, decoded.g[:, 0::2] - decoded.g[:, 1::2])
    expected = decoded.k_w[:, None] * hypercube.knot_weights.double().numpy()
    # The weights are of single precision, like the reference's.
    largest = decoded.f.sum(axis=1, keepdims=True) * (hypercube.g_max - hypercube.g_min)
    assert np.all(np.abs(weights_us - expected) <= 5e-7 * largest)
    fraction = np.abs(expected).max(axis=1) / largest[:, 0]
    assert fraction.min() >= 0.05 * (1 - 1e-6)
    assert fraction.max() <= 1 + 1e-6
    if hypercube.use_max_kw:
        np.testing.assert_allclose(fraction, 1.0, rtol=1e-6)


@given(hypercubes_with_points(g_err=st.just(0.0)))
def test_aihwkit_gets_its_weights_back_from_a_decoded_strategy(
    cube: tuple[Hypercube, Points],
) -> None:
    hypercube, x = cube
    weights = hypercube.max_abs_weight * torch.linspace(-1, 1, 37)
    for strategy in hypercube.decode(x):
        converter = strategy.to_converter()
        back = converter.convert_back_to_weights(*converter.convert_to_conductances(weights))
        # Conductances are of single precision: at k_w's lowest a weight is a small difference.
        size = sum(strategy.f_lst) * strategy.g_max / (hypercube.g_max - hypercube.g_min)
        tolerance = 2e-5 * size / (0.05 * sum(strategy.f_lst))
        assert float((back - weights).abs().max()) <= tolerance * hypercube.max_abs_weight


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.full(19, 0.5), r"x has shape \(19,\): .* 20 coordinates"),
        (np.full((2, 2, 20), 0.5), r"x has shape \(2, 2, 20\): .* 20 coordinates"),
        (np.full(20, 1.25), r"x contains 1\.25: coordinates lie between 0 and 1"),
        (np.full(20, np.nan), r"x contains nan: coordinates lie between 0 and 1"),
    ],
)
def test_what_is_no_point_of_the_hypercube_is_refused(x: Points, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        TWO_PAIRS.decode(x)
