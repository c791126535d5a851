"""What is measured of hardware and strategies, against formulas and against the engine."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from aihwkit.inference import PCMLikeNoiseModel
from aihwkit.inference.converter.conductance import NPairConductanceConverter
from small_problems import COLUMNS, ROWS, seedable_rpu_config, small_problem
from torch import Tensor

from wpo_optuna.hardware import NAMED_RPU_CONFIGS
from wpo_optuna.loss.monte_carlo import MonteCarloEngine
from wpo_optuna.problem import WeightProgrammingProblem
from wpo_optuna.report.figures import devices
from wpo_optuna.report.measurements import (
    DRAWS,
    Measurements,
    measure,
    measure_weight_errors,
    sample_device_model,
)
from wpo_optuna.strategy import ProgrammingStrategy

G_MAX = 25.0


def strategy_of(problem: WeightProgrammingProblem, place: float = 0.5) -> ProgrammingStrategy:
    return problem.hypercube.decode(np.full(problem.hypercube.dimension, place))


def test_errors_over_time_average_to_the_tnmse_of_the_engine() -> None:
    """Means of 16 and of 400 draws; a false alarm in 10^5 seeds (4.5 standard errors)."""
    problem = small_problem(t_steps=[1.0, 60.0, 86400.0])
    engine, converter = MonteCarloEngine(problem), problem.g_converter_baseline
    tnmse = measure_weight_errors(engine, converter, seed=5).tnmse
    expected = engine.tnmse_of(converter, repeats=400, seed=6)
    error = 4.5 * expected.std() * math.hypot(1 / math.sqrt(DRAWS), 1 / math.sqrt(400))
    assert tnmse[:, 0].mean() == pytest.approx(expected.mean(), abs=error)
    assert np.all((tnmse[:, 1] < tnmse[:, 0]) & (tnmse[:, 0] < tnmse[:, 2]))


def test_perfect_devices_and_periphery_leave_no_error_and_a_correlation_of_one() -> None:
    quiet = PCMLikeNoiseModel(prog_noise_scale=0.0, read_noise_scale=0.0, drift_scale=0.0)
    problem = small_problem(rpu_config=seedable_rpu_config(quiet))
    engine = MonteCarloEngine(problem)
    errors = measure_weight_errors(engine, problem.g_converter_baseline, seed=1)
    assert errors.tnmse[:, 0].max() < 1e-6
    np.testing.assert_allclose(errors.correlation, 1.0, atol=1e-6)
    np.testing.assert_allclose(errors.band, 0.0, atol=1e-4)


def test_distributions_and_bands_belong_to_the_same_errors() -> None:
    problem = small_problem(t_steps=[1.0, 1e7])
    engine = MonteCarloEngine(problem)
    errors = measure_weight_errors(engine, problem.g_converter_baseline, seed=1)
    assert np.all((errors.share[:, -1] > 0.985) & (errors.share[:, -1] <= 1))
    within, centres = np.diff(errors.share), (errors.limits[1:] + errors.limits[:-1]) / 2
    spread = np.sqrt((within * centres**2).sum(axis=1))
    np.testing.assert_allclose(spread, np.sqrt(errors.tnmse[:, 0] / 100), rtol=0.1)
    low, median, high = errors.band.transpose(1, 0, 2)
    assert np.all((low <= median) & (median <= high))
    assert np.all(np.diff(errors.targets) > 0)
    # A year later, errors are larger and the correlation is lower.
    assert errors.tnmse[1, 0] > errors.tnmse[0, 0]
    assert errors.correlation[1] < errors.correlation[0]
    assert np.mean(high[1] - low[1]) > np.mean(high[0] - low[0])


def test_device_model_is_that_of_the_published_pcm_formulas() -> None:
    """False alarms: each of 6 · 17 means lies within 5 standard errors but for 1 in 10^4 seeds."""
    t_s = [1.0, 3600.0, 86400.0 * 30]
    sampled = sample_device_model(small_problem(t_steps=t_s), seed=3)
    # Where conductances are so large that none is clamped at zero, and q_s is not clamped.
    inner = (sampled.g_target_us > 5) & (sampled.g_target_us < 22)
    g = sampled.g_target_us[inner]
    relative = g / G_MAX
    sigma = 0.26348 + 1.9650 * relative - 1.1731 * relative**2
    np.testing.assert_allclose(sampled.programmed_std_us[inner], sigma, rtol=5 / math.sqrt(1e4))
    np.testing.assert_allclose(
        sampled.programmed_mean_us[inner], g, atol=5 * sigma.max() / math.sqrt(5000)
    )
    nu = np.clip(-0.0155 * np.log(relative) + 0.0244, 0.049, 0.1)
    for i, t in enumerate(t_s):
        kept = sampled.mean_us[i][inner] / sampled.programmed_mean_us[inner]
        drift = ((t + 20) / 20) ** (-nu)
        # The spread of nu (at most 0.045, here below 0.02) makes the mean a little larger.
        np.testing.assert_allclose(kept, drift, rtol=0.02 + 5 * 0.04 / math.sqrt(5000))
        q_s = 0.0088 / relative**0.65
        noise = q_s * math.sqrt(math.log((t + 20 + 250e-9) / 500e-9)) * g * drift
        np.testing.assert_allclose(sampled.read_std_us[i][inner], noise, rtol=0.08)


@pytest.mark.parametrize("name", NAMED_RPU_CONFIGS)
def test_the_devices_of_every_named_hardware_can_be_sampled(name: str) -> None:
    named = NAMED_RPU_CONFIGS[name]
    problem = small_problem(
        rpu_config=named.build(), t_steps=list(named.t_steps),
        g_converter_baseline=named.baseline(), test_out_features=2,
    )  # fmt: skip
    sampled = sample_device_model(problem, seed=1)
    for values in vars(sampled).values():
        assert np.isfinite(values).all()
    assert sampled.g_target_us[[0, -1]] == pytest.approx([named.g_min, named.g_max])
    assert np.all(sampled.read_std_us >= 0)
    assert np.ptp(sampled.programmed_mean_us) > 0.9 * (named.g_max - named.g_min)


class MappedNoise(PCMLikeNoiseModel):
    """Every device of the tile drifts in a way of its own, and there are no other devices."""

    def generate_drift_coefficients(self, g_target: Tensor) -> Tensor:
        own = torch.linspace(0.9, 1.1, COLUMNS * ROWS).reshape(COLUMNS, ROWS)
        return super().generate_drift_coefficients(g_target) * own


def test_a_noise_model_that_cannot_be_sampled_costs_the_device_figure_alone(tmp_path: Path) -> None:
    problem = small_problem(rpu_config=seedable_rpu_config(MappedNoise()))
    measured = measure(problem, strategy_of(problem), tmp_path, winning_trial=0)
    assert measured.devices is None
    assert measured.baseline.tnmse[0, 0] > 0
    again = Measurements.load(tmp_path)
    assert again is not None
    assert again.devices is None
    assert devices(measured) == "The noise model cannot be sampled apart from a tile."


def test_baseline_curves_represent_the_weights(tmp_path: Path) -> None:
    converter = NPairConductanceConverter([1.0, 1.0, 4.0], g_min=0.0, g_max=G_MAX)
    problem = small_problem(g_converter_baseline=converter, t_steps=[1.0])
    measured = measure(problem, strategy_of(problem), tmp_path, winning_trial=0)
    assert measured.baseline_f.tolist() == [1.0, 1.0, 4.0]
    g_plus, g_minus = measured.baseline_g_us[::2], measured.baseline_g_us[1::2]
    weights = measured.baseline_f @ (g_plus - g_minus)
    np.testing.assert_allclose(weights / weights.max(), np.linspace(-1, 1, len(weights)), atol=1e-5)


def test_measurements_read_back_from_their_file(tmp_path: Path) -> None:
    problem = small_problem(t_steps=[1.0, 60.0])
    measured = measure(problem, strategy_of(problem), tmp_path / "new", winning_trial=3)
    measured = dataclasses.replace(measured, histogram=np.array([math.nan, 1 / 3]))
    stored = measured.save(tmp_path / "new").read_text()
    assert json.loads(stored, parse_constant=pytest.fail)["histogram"] == [None, 1 / 3]
    again = Measurements.load(tmp_path / "new")
    assert again is not None
    assert (again.engine, again.trial_number) == (measured.engine, 3)
    for one, other in (
        (again, measured), (again.devices, measured.devices),
        (again.baseline, measured.baseline), (again.optimised, measured.optimised),
    ):  # fmt: skip
        for name, values in vars(other).items():
            if isinstance(values, np.ndarray):
                np.testing.assert_array_equal(getattr(one, name), values)
    # What is no such file, or another version's, counts as none.
    for damage in ("", "{", "[]", '{"fingerprint": 1}'):
        (tmp_path / "new" / "measurements.json").write_text(damage)
        assert Measurements.load(tmp_path / "new") is None
    assert Measurements.load(tmp_path / "missing") is None
