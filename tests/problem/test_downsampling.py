"""The test matrix represents the weights' distribution, and is the same whenever it is made."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from wpo_optuna.problem.weight_programming import downsample_weights

vectors = hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-100, 100, width=32))
shapes = st.tuples(st.integers(1, 20), st.integers(1, 12))


def rows_in_order(matrix: torch.Tensor) -> NDArray[np.float64]:
    """The matrix with its rows, each of which is a stretch of the ordered weights, in order."""
    rows = matrix.double().numpy()
    return rows[np.argsort(rows.sum(axis=1), kind="stable")]


@given(vectors, shapes)
def test_values_are_the_weights_at_evenly_spaced_ranks(
    weights: NDArray[np.float32], shape: tuple[int, int]
) -> None:
    matrix = downsample_weights(torch.from_numpy(weights), shape, seed=1)
    assert matrix.shape == shape
    assert matrix.dtype == torch.float32
    ranks = np.linspace(0, len(weights) - 1, shape[0] * shape[1])
    expected = np.interp(ranks, np.arange(len(weights)), np.sort(weights).astype(float))
    np.testing.assert_allclose(rows_in_order(matrix), expected.reshape(shape), rtol=1e-6, atol=1e-5)


def test_ranks_do_not_lose_precision_among_many_weights() -> None:
    # A rank of single precision is off by up to 0.06 here, and so is the reference's matrix.
    weights = torch.linspace(0, 1, 1_000_001, dtype=torch.float64) * 1_000_000
    shape = (7, 11)
    expected = np.linspace(0, 1_000_000, 77).astype(np.float32).reshape(shape)
    np.testing.assert_array_equal(
        rows_in_order(downsample_weights(weights, shape, seed=1)), expected
    )


def test_a_seed_always_gives_the_same_matrix_and_another_seed_another_order() -> None:
    weights = torch.linspace(-1, 1, 640)
    first, again = (downsample_weights(weights, (64, 10), seed=5) for _ in range(2))
    other = downsample_weights(weights, (64, 10), seed=6)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    np.testing.assert_array_equal(rows_in_order(first), rows_in_order(other))
