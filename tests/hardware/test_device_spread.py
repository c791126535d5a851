"""Devices around a given one: aihwkit's noise models, scaled without knowing their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from small_problems import small_problem
from torch import Tensor

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.hardware import NAMED_RPU_CONFIGS, conductance_range
from wpo_optuna.hardware.device_spread import (
    DeviceFactors,
    ScaledNoiseModel,
    devices_around,
    with_factors,
)
from wpo_optuna.loss.monte_carlo import MonteCarloEngine
from wpo_optuna.report.measurements import measure_sensitivity

NAMES = sorted(NAMED_RPU_CONFIGS)


def read(model: BaseNoiseModel, name: str) -> tuple[Tensor, Tensor | None, Tensor]:
    """Conductances after programming, drift coefficients, conductances at the last time."""
    config = NAMED_RPU_CONFIGS[name]
    g = torch.linspace(config.g_min, config.g_max, 40)[1:-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        programmed = model.apply_programming_noise_to_conductance(g.clone())
        nu = model.generate_drift_coefficients(g.clone())
        t = config.t_steps[-1]
        return programmed, nu, model.apply_drift_noise_to_conductance(g.clone(), nu, t)


@pytest.mark.parametrize("name", NAMES)
def test_factors_of_one_change_nothing(name: str) -> None:
    model = NAMED_RPU_CONFIGS[name].build().noise_model
    scaled = ScaledNoiseModel(model, DeviceFactors())
    for was, now in zip(read(model, name), read(scaled, name), strict=True):
        assert (was is None) == (now is None)
        if was is not None:
            torch.testing.assert_close(now, was, rtol=1e-5, atol=1e-5)
    assert conductance_range(scaled) == conductance_range(model)


@pytest.mark.parametrize("name", NAMES)
def test_factors_of_zero_leave_no_noise(name: str) -> None:
    config = NAMED_RPU_CONFIGS[name]
    silent = ScaledNoiseModel(config.build().noise_model, DeviceFactors(0.0, 1.0, 0.0, 0.0))
    first, second = read(silent, name), read(silent, name)
    g = torch.linspace(config.g_min, config.g_max, 40)[1:-1]
    torch.testing.assert_close(first[0], g)
    torch.testing.assert_close(first[2], second[2])
    # Neighbouring devices are read alike where no noise tells them apart.
    assert float(first[2].diff().abs().max()) < 0.1 * config.g_max


def test_drift_is_scaled_in_its_mean_and_in_its_scatter() -> None:
    model = NAMED_RPU_CONFIGS["pcm"].build().noise_model
    g = torch.full((20_000,), 10.0)
    torch.manual_seed(0)
    nu = model.generate_drift_coefficients(g)
    changed = ScaledNoiseModel(model, DeviceFactors(nu_mean=2.0, nu_std=3.0))
    other = changed.generate_drift_coefficients(g)
    # Five standard errors: a false alarm in a million seeds, and the seed is fixed.
    error = 5 * float(other.std()) / len(g) ** 0.5
    assert float(other.mean()) == pytest.approx(2 * float(nu.mean()), abs=error)
    assert float(other.std()) == pytest.approx(3 * float(nu.std()), rel=0.05)


def test_devices_repeat_with_the_seed_and_lie_around_the_given_one() -> None:
    devices = devices_around(0.2, 64, seed=1)
    assert devices == devices_around(0.2, 64, seed=1)
    assert devices != devices_around(0.2, 64, seed=2)
    logarithms = np.log([list(vars(device).values()) for device in devices])
    np.testing.assert_allclose(logarithms.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(logarithms.std(axis=0), 0.2, atol=0.02)


@pytest.mark.parametrize(("spread", "n"), [(0.0, 8), (-0.1, 8), (float("nan"), 8), (0.2, 0)])
def test_a_spread_that_is_none_is_refused(spread: float, n: int) -> None:
    with pytest.raises(InvalidArgument):
        devices_around(spread, n, seed=0)


def test_errors_grow_with_the_programming_error_of_a_device() -> None:
    problem = small_problem()
    strategy = problem.hypercube.decode(np.full(problem.hypercube.dimension, 0.5))
    worse = with_factors(problem.rpu_config, DeviceFactors(programming=2.0))
    assert problem.noise_model.__class__.__name__ == "PCMLikeNoiseModel"
    found = measure_sensitivity(MonteCarloEngine(problem), strategy, seed=0)
    assert found is not None
    assert found.baseline.shape == (17,)
    assert np.isfinite(found.baseline).all()
    assert np.isfinite(found.optimised).all()
    worst = measure_sensitivity(MonteCarloEngine(small_problem(rpu_config=worse)), strategy, seed=0)
    assert worst is not None
    assert worst.baseline[0] > found.baseline[0]
