"""The test matrix as nodes: what a rule integrates exactly, and that no entry is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from wpo_optuna.loss.expected.weight_nodes import gauss_rule, most_nodes, weight_nodes

FloatArray = NDArray[np.float64]
KNOTS = np.linspace(-1, 1, 11)

values = arrays(
    np.float64, st.integers(1, 60), elements=st.floats(-1, 1).map(lambda v: round(v, 3))
)


@given(values, st.integers(1, 8))
def test_gauss_rule_has_the_moments_of_the_values(x: FloatArray, n_nodes: int) -> None:
    nodes, shares = gauss_rule(np.sort(x), n_nodes)
    assert len(nodes) <= n_nodes
    assert (shares >= 0).all()
    assert x.min() - 1e-9 <= nodes.min()
    assert nodes.max() <= x.max() + 1e-9
    for degree in range(2 * n_nodes):
        assert shares @ nodes**degree == pytest.approx((x**degree).mean(), abs=1e-9)


@given(
    arrays(np.float32, (6, 5), elements=st.floats(-1, 1, width=32)).filter(lambda m: m.any()),
    st.sampled_from([2, 7, 11]),
)
def test_nodes_stand_for_every_entry_once_and_keep_its_first_moments(
    matrix: NDArray[np.float32], n_knots: int
) -> None:
    nodes = weight_nodes(matrix, np.linspace(-1, 1, n_knots))
    entries = matrix.astype(np.float64).ravel()
    assert nodes.largest == np.abs(entries).max()
    assert nodes.shares.sum() == pytest.approx(1)
    for degree in range(1, 5):
        assert nodes.shares @ nodes.weights**degree == pytest.approx((entries**degree).mean())
    assert nodes.counts.sum() == entries.size
    assert nodes.counts @ nodes.extremes == pytest.approx(entries.sum(), abs=1e-9)
    assert nodes.extremes.min() == entries.min()
    assert nodes.extremes.max() == entries.max()


def test_values_that_differ_by_rounding_alone_count_as_one() -> None:
    x = np.sort(np.concatenate([1e-17 * np.arange(40), [1.0]]))
    nodes, shares = gauss_rule(x, 5)
    assert np.isfinite(nodes).all()
    assert shares @ nodes == pytest.approx(1 / 41)
    assert shares @ nodes**2 == pytest.approx(1 / 41)


def test_the_largest_entries_enter_one_by_one() -> None:
    entries = np.random.default_rng(0).standard_normal((64, 20))
    nodes = weight_nodes(entries, KNOTS)
    ordered = np.sort(entries, axis=None)
    np.testing.assert_array_equal(nodes.extremes[:5], ordered[:5])
    np.testing.assert_array_equal(nodes.extremes[-5:], ordered[-5:])


def test_pruned_weights_keep_their_zeros() -> None:
    matrix = np.zeros((50, 20))
    matrix[0] = np.linspace(-1, 1, 20)
    nodes = weight_nodes(matrix, KNOTS)
    near_zero = np.abs(nodes.weights) < 0.02
    assert nodes.shares[near_zero].sum() == pytest.approx(0.98, abs=1e-3)


@pytest.mark.parametrize("draw", ["uniform", "standard_normal", "standard_cauchy"])
def test_no_matrix_takes_more_nodes_than_there_is_room_for(draw: str) -> None:
    rng = np.random.default_rng(0)
    for rows, n_knots in ((16, 11), (512, 11), (2048, 11), (512, 7), (512, 3), (64, 41)):
        nodes = weight_nodes(getattr(rng, draw)(size=(rows, 20)), np.linspace(-1, 1, n_knots))
        assert len(nodes.weights) <= most_nodes(n_knots)
