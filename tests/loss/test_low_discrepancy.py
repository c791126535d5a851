"""Evenly spread noise: what is served, what is not, and that no trace is left."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import kstest

from wpo_optuna.loss.expected.low_discrepancy import LowDiscrepancyNoise


def test_served_noise_has_mean_zero_and_variance_one_exactly() -> None:
    with LowDiscrepancyNoise(8):
        first, second = torch.randn_like(torch.zeros(256, 2)), torch.randn_like(torch.zeros(256))
    for noise in (first[:, 0], second):
        assert abs(float(noise.mean())) < 1e-6
        assert abs(float(noise.var(unbiased=False)) - 1) < 1e-5
        # Spread far more evenly than a sample: one of 256 points deviates by 0.05 on average.
        assert kstest(noise.numpy(), "norm").statistic < 0.01
    assert torch.equal(first[:, 0], first[:, 1])
    assert abs(float((first[:, 0] * second).mean())) < 0.02


def test_each_context_serves_the_same_again() -> None:
    noise = LowDiscrepancyNoise(6, seed=3)
    with noise:
        first = torch.rand(64, 3)
    with noise:
        second = torch.rand(64, 3)
    assert torch.equal(first, second)
    assert not torch.equal(first, _uniform(LowDiscrepancyNoise(6, seed=4)))


def _uniform(noise: LowDiscrepancyNoise) -> torch.Tensor:
    with noise:
        return torch.rand(64, 3)


def test_other_shapes_and_generators_are_seeded_and_put_back() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state()
    with LowDiscrepancyNoise(6):
        first = torch.randn(5), np.random.rand(2)  # noqa: NPY002
    with LowDiscrepancyNoise(6):
        second = torch.randn(5), np.random.rand(2)  # noqa: NPY002
    assert torch.equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert torch.equal(before, torch.get_rng_state())
    fresh = np.random.RandomState(1).rand()
    assert np.random.rand() == fresh  # noqa: NPY002


def test_stretched_noise_reaches_further() -> None:
    with LowDiscrepancyNoise(7, stretch=2.0):
        stretched = torch.randn_like(torch.zeros(128))
    with LowDiscrepancyNoise(7):
        plain = torch.randn_like(torch.zeros(128))
    assert torch.allclose(stretched, 2 * plain)
