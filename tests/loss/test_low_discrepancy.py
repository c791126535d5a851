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


def test_each_context_serves_the_same_and_puts_the_generators_back() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state()
    with LowDiscrepancyNoise(6):
        first = torch.randn(5), np.random.rand(2), torch.rand(64, 3)  # noqa: NPY002
    with LowDiscrepancyNoise(6):
        second = torch.randn(5), np.random.rand(2), torch.rand(64, 3)  # noqa: NPY002
    assert torch.equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert torch.equal(first[2], second[2])
    assert torch.equal(before, torch.get_rng_state())
    fresh = np.random.RandomState(1).rand()
    assert np.random.rand() == fresh  # noqa: NPY002
