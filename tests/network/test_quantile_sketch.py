import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from wpo_optuna.network.quantile_sketch import RELATIVE_ERROR, QuantileSketch
from wpo_optuna.problem.downsampling import downsample_weights

WEIGHTS = npst.arrays(
    np.float32,
    st.integers(2, 300),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def sketch_of(weights: torch.Tensor, exact_up_to: int, piece: int = 50) -> QuantileSketch:
    sketch = QuantileSketch(exact_up_to)
    for part in weights.split(piece):
        sketch.update(part)
    return sketch


def all_values(sketch: QuantileSketch) -> np.ndarray:
    distribution = sketch.distribution()
    return np.repeat(distribution.values, distribution.counts)


@settings(deadline=None)
@given(WEIGHTS)
def test_few_weights_are_kept_exactly_and_sorted(weights: np.ndarray) -> None:
    sketch = sketch_of(torch.from_numpy(weights), exact_up_to=len(weights))
    np.testing.assert_array_equal(all_values(sketch), np.sort(weights))
    assert sketch.distribution().relative_error == 0.0


@settings(deadline=None, max_examples=50)
@given(WEIGHTS)
def test_in_bins_every_rank_keeps_its_weight_within_the_stated_relative_error(
    weights: np.ndarray,
) -> None:
    sketch = sketch_of(torch.from_numpy(weights), exact_up_to=1)
    distribution, values = sketch.distribution(), all_values(sketch)
    expected = np.sort(weights).astype(np.float64)
    # Below the smallest normal number, floats are evenly spaced: half a bin is 2^-139 there.
    allowed = distribution.relative_error * np.abs(expected) + 2.0**-138
    assert np.all(np.abs(values - expected) <= allowed)
    assert distribution.relative_error in (0.0, RELATIVE_ERROR)
    assert values[0] == expected[0]
    assert values[-1] == expected[-1]
    assert distribution.max_abs == np.abs(expected).max()


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_weights_of_short_types_are_exact_even_in_bins(dtype: torch.dtype) -> None:
    weights = (0.1 * torch.randn(20_000, generator=torch.Generator().manual_seed(1))).to(dtype)
    sketch = sketch_of(weights, exact_up_to=1, piece=7_000)
    np.testing.assert_array_equal(all_values(sketch), np.sort(weights.float().numpy()))
    assert sketch.distribution().relative_error == 0.0


@settings(deadline=None, max_examples=25)
@given(WEIGHTS, st.randoms(use_true_random=False), st.integers(1, 40), st.sampled_from([1, 10_000]))
def test_order_and_grouping_of_the_pieces_change_nothing(
    weights: np.ndarray, random: object, piece: int, exact_up_to: int
) -> None:
    shuffled = weights.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one = sketch_of(torch.from_numpy(weights), exact_up_to).distribution()
    other = sketch_of(torch.from_numpy(shuffled), exact_up_to, piece).distribution()
    # -0.0 and 0.0 are one weight to everyone but the sign bit.
    np.testing.assert_array_equal(one.values + 0.0, other.values + 0.0)
    assert one.relative_error == other.relative_error


@pytest.mark.parametrize("exact_up_to", [1, 150, 250, 1000])
def test_merged_sketches_equal_one_sketch_of_all_weights(exact_up_to: int) -> None:
    weights = torch.randn(300, generator=torch.Generator().manual_seed(2))
    merged = sketch_of(weights[:100], exact_up_to)
    merged.merge(sketch_of(weights[100:], exact_up_to))
    whole = sketch_of(weights, exact_up_to)
    assert merged.count == whole.count == 300
    np.testing.assert_array_equal(all_values(merged), all_values(whole))


@settings(deadline=None)
@given(WEIGHTS, st.integers(2, 500))
def test_exact_quantiles_are_the_interpolation_that_the_problem_does(
    weights: np.ndarray, n: int
) -> None:
    tensor = torch.from_numpy(weights)
    quantiles = sketch_of(tensor, exact_up_to=1000).distribution().quantiles(n)
    expected = downsample_weights(tensor, (1, n), seed=0)[0]
    # One unit in the last place, since torch and numpy round the ranks differently.
    torch.testing.assert_close(quantiles, expected, rtol=1e-6, atol=1e-6 * np.abs(weights).max())
    assert quantiles[0] == weights.min()
    assert quantiles[-1] == weights.max()


def test_quantiles_in_bins_follow_the_quantiles_of_all_weights() -> None:
    weights = 0.2 * torch.randn(200_000, generator=torch.Generator().manual_seed(3))
    quantiles = sketch_of(weights, exact_up_to=1, piece=30_000).distribution().quantiles(10_240)
    expected = downsample_weights(weights, (1, 10_240), seed=0)[0]
    assert torch.all((quantiles - expected).abs() <= RELATIVE_ERROR * expected.abs() + 1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e300])
def test_weights_that_are_no_finite_float32_are_refused(bad: float) -> None:
    sketch = QuantileSketch()
    with pytest.raises(ValueError, match="NaN or infinite"):
        sketch.update(torch.tensor([0.0, bad, 1.0], dtype=torch.float64))
    assert sketch.count == 0


def test_an_empty_sketch_has_no_distribution() -> None:
    sketch = QuantileSketch()
    sketch.update(torch.empty(0, 5))
    with pytest.raises(ValueError, match="no weights"):
        sketch.distribution()
