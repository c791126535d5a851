"""A strategy finds its way back to a point of the hypercube, or is refused with the reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypercube_strategies import hypercubes_with_points
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.hypercube import Hypercube
from wpo_optuna.strategy import ProgrammingStrategy

TWO_PAIRS = Hypercube(f_lst=(1.0, None), g_min=0.0, g_max=25.0, max_abs_weight=0.8, nbins=3)
MIDDLE = TWO_PAIRS.decode(np.full(TWO_PAIRS.dimension, 0.5))
Points = NDArray[np.float64]


@given(hypercubes_with_points(g_err=st.just(0.0)))
def test_a_decoded_strategy_comes_back_to_rounding(cube: tuple[Hypercube, Points]) -> None:
    hypercube, x = cube
    before = hypercube.decode_arrays(x)
    again = np.array([hypercube.encode(strategy) for strategy in hypercube.decode(x)])
    after = hypercube.decode_arrays(again)
    np.testing.assert_allclose(after.f, before.f, rtol=1e-9)
    np.testing.assert_allclose(after.g, before.g, rtol=1e-9, atol=1e-9 * hypercube.g_max)


@given(hypercubes_with_points(g_err=st.sampled_from([0.001, 0.05, 0.4, 2.0])))
def test_a_strategy_with_programming_slack_comes_back_to_the_precision_of_weights(
    cube: tuple[Hypercube, Points],
) -> None:
    hypercube, x = cube
    before = hypercube.decode_arrays(x)
    again = np.array([hypercube.encode(strategy) for strategy in hypercube.decode(x)])
    after = hypercube.decode_arrays(again)
    np.testing.assert_allclose(after.f, before.f, rtol=1e-9)
    largest = before.f.sum(axis=1) * (hypercube.g_max - hypercube.g_min)
    difference = np.abs(after.g - before.g) * np.repeat(before.f, 2, axis=1)[..., None]
    assert np.all(difference.max(axis=(1, 2)) <= 2e-6 * largest)


@given(hypercubes_with_points(g_err=st.just(0.0)))
def test_inner_points_come_back_themselves(cube: tuple[Hypercube, Points]) -> None:
    hypercube = replace(cube[0], use_max_kw=False)
    # Away from the faces no interval is empty; k_w is of single precision.
    for point in 0.2 + 0.6 * np.resize(cube[1], (3, hypercube.dimension)):
        np.testing.assert_allclose(
            hypercube.encode(hypercube.decode(point)), point, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("x_k_w", [None, 1.0])
def test_the_weights_of_a_decoded_strategy_are_found_to_the_last_bit(
    x_k_w: float | None, symmetric: bool
) -> None:
    hypercube = replace(TWO_PAIRS, symmetric=symmetric)
    x = np.random.default_rng(1).random((500, hypercube.dimension))
    if x_k_w is not None:
        # All devices are at their ends, where rounding may ask for more than they can hold.
        x[:, hypercube.names.index("k_w")] = x_k_w
    again = np.array([hypercube.encode(strategy) for strategy in hypercube.decode(x)])
    before, after = hypercube.decode_arrays(x), hypercube.decode_arrays(again)
    # One bit of a weight of single precision would be 1e-6 µS and more.
    np.testing.assert_allclose(after.g, before.g, rtol=0, atol=1e-12)


def test_a_strategy_of_aihwkit_is_found_in_the_hypercube() -> None:
    """Two pairs, the second used once the first is full, as DualPairConductanceConverter does."""
    hypercube = replace(TWO_PAIRS, f_lst=(1.0, 1.0), use_max_kw=True)
    up, full = (0.0, 0.0, 0.0, 25.0, 25.0), (0.0, 0.0, 0.0, 0.0, 25.0)
    dual_pair = ProgrammingStrategy((1.0, 1.0), (up, up[::-1], full, full[::-1]), 0.0, 25.0)
    found = hypercube.decode(hypercube.encode(dual_pair))
    np.testing.assert_allclose(found.g_lst, dual_pair.g_lst, rtol=1e-6, atol=1e-5)


def test_a_coordinate_without_influence_is_a_half() -> None:
    hypercube = Hypercube((1.0,), 0.0, 25.0, 0.8, nbins=2, use_max_kw=True)
    full = ProgrammingStrategy((1.0,), ((0.0, 5.0, 25.0), (25.0, 5.0, 0.0)), 0.0, 25.0)
    # At the largest weight the pair is full: only one place is left for g+.
    np.testing.assert_allclose(hypercube.encode(full), [0.5, 0.2], atol=1e-6)


def curves(*values: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    return values


ONE_PAIR = Hypercube((2.0,), 1.0, 25.0, 0.8, nbins=2)
EVEN = curves((1.0, 1.0, 11.0), (11.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("hypercube", "strategy", "message"),
    [
        (
            ONE_PAIR,
            MIDDLE,
            r"f_lst = \[1\.0, 2\.55.*\], 2 pairs .* this hypercube has 1\.",
        ),
        (
            TWO_PAIRS,
            replace(MIDDLE, f_lst=(1.5, 2.0)),
            r"f_lst = \[1\.5, 2\.0\]: the factor of pair 0 must be 1\.0 ",
        ),
        (
            TWO_PAIRS,
            replace(MIDDLE, f_lst=(1.0, 7.0)),
            r"f_lst = \[1\.0, 7\.0\]: the factor of pair 1 must be between f_min = 0\.1 and "
            r"f_max = 5\.0",
        ),
        (
            replace(ONE_PAIR, nbins=4),
            ProgrammingStrategy((2.0,), EVEN, 1.0, 25.0),
            r"g_lst with 3 conductances a curve: this hypercube has 7 knots \(nbins = 4\)",
        ),
        (
            ONE_PAIR,
            ProgrammingStrategy((2.0,), curves((0.0, 0.0, 30.0), (30.0, 0.0, 0.0)), 0.0, 40.0),
            r"g_lst from 0\.0 to 30\.0 µS: .* between g_min = 1\.0 and g_max = 25\.0",
        ),
        (
            ONE_PAIR,
            ProgrammingStrategy((2.0,), curves((1.0, 1.0, 12.0), (11.0, 1.0, 2.0)), 1.0, 25.0),
            r"g_lst whose g\+ of a weight .* differ by up to 1 µS: .* symmetric strategies only",
        ),
        (
            replace(ONE_PAIR, symmetric=False),
            ProgrammingStrategy((2.0,), curves((1.0, 1.0, 12.0), (11.0, 1.0, 1.0)), 1.0, 25.0),
            r"miss k_w times the weight at the knot by up to 1 µS: .* 2\.4 to 48 µS",
        ),
        (
            ONE_PAIR,
            ProgrammingStrategy((2.0,), curves((1.0, 1.0, 1.6), (1.6, 1.0, 1.0)), 1.0, 25.0),
            r"miss k_w times the weight at the knot by up to 1\.2 µS: .* 2\.4 to 48 µS",
        ),
        (
            replace(ONE_PAIR, use_max_kw=True),
            ProgrammingStrategy((2.0,), EVEN, 1.0, 25.0),
            r"miss k_w times the weight at the knot by up to 28 µS: .* the largest is 48 µS",
        ),
    ],
)
def test_a_strategy_outside_the_hypercube_is_refused_with_the_reason(
    hypercube: Hypercube, strategy: ProgrammingStrategy, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=f"strategy has .*{message}"):
        hypercube.encode(strategy)
