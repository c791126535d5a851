"""What is measured of hardware and strategies, against formulas and against the engine."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random

import numpy as np
import optuna
import pytest
import reported_studies
import torch
from aihwkit.inference import PCMLikeNoiseModel
from aihwkit.inference.converter.conductance import (
    DualPairConductanceConverter,
    NPairConductanceConverter,
    SinglePairConductanceConverter,
)
from hypothesis import given
from hypothesis import strategies as st
from small_problems import COLUMNS, ROWS, seedable_rpu_config, small_problem
from torch import Tensor

from wpo_optuna.hardware import NAMED_RPU_CONFIGS
from wpo_optuna.loss.reference import ReferenceEngine
from wpo_optuna.report.figures import devices
from wpo_optuna.report.figures.drawing import Omission
from wpo_optuna.report.reporting import measurements
from wpo_optuna.report.reporting.device_model import sample_device_model
from wpo_optuna.report.reporting.measurements import (
    Measurements,
    keep_measurements,
    measure_problem,
    stored_measurements,
)
from wpo_optuna.report.reporting.stored_numbers import from_stored, to_stored
from wpo_optuna.report.reporting.study_record import read_study
from wpo_optuna.report.reporting.weight_errors import (
    DRAWS,
    MOST_TIMES_SHOWN,
    measure_weight_errors,
    times_shown,
)
from wpo_optuna.study.scoring import Scores, strategy_of

G_MAX = 25.0


def test_errors_over_time_average_to_the_tnmse_of_the_engine_for_the_same_draws() -> None:
    problem = small_problem(rpu_config=seedable_rpu_config(), t_steps=[1.0, 60.0, 86400.0])
    engine = ReferenceEngine(problem)
    converter = problem.g_converter_baseline
    errors = measure_weight_errors(engine, converter, seed=5)
    expected = engine.tnmse_of(converter, repeats=DRAWS, seed=5).mean()
    assert np.mean([e.mean for e in errors.tnmse]) == pytest.approx(expected, rel=1e-6)
    assert all(e.draws == DRAWS and e.low < e.mean < e.high for e in errors.tnmse)


def test_perfect_devices_and_periphery_leave_no_error_and_a_correlation_of_one() -> None:
    quiet = PCMLikeNoiseModel(prog_noise_scale=0.0, read_noise_scale=0.0, drift_scale=0.0)
    problem = small_problem(rpu_config=seedable_rpu_config(quiet))
    errors = measure_weight_errors(ReferenceEngine(problem), problem.g_converter_baseline, seed=1)
    assert max(e.mean for e in errors.tnmse) < 1e-6
    assert errors.standard_deviation.max() < 1e-4
    np.testing.assert_allclose(errors.correlation, 1.0, atol=1e-6)
    np.testing.assert_allclose(errors.band, 0.0, atol=1e-4)


def test_distributions_and_bands_belong_to_the_same_errors() -> None:
    problem = small_problem(t_steps=[1.0, 1e7])
    errors = measure_weight_errors(ReferenceEngine(problem), problem.g_converter_baseline, seed=1)
    shares = errors.density.sum(axis=1)
    assert np.all((shares > 0.985) & (shares <= 1))
    centres = (errors.edges[1:] + errors.edges[:-1]) / 2
    spread = np.sqrt((errors.density * centres**2).sum(axis=1))
    np.testing.assert_allclose(spread, errors.standard_deviation, rtol=0.1)
    low, median, high = errors.band.transpose(1, 0, 2)
    assert np.all(low <= median)
    assert np.all(median <= high)
    assert np.all(np.diff(errors.targets) > 0)
    # A year later, errors are larger and the correlation is lower.
    assert errors.standard_deviation[1] > errors.standard_deviation[0]
    assert errors.correlation[1] < errors.correlation[0]
    assert np.mean(high[1] - low[1]) > np.mean(high[0] - low[0])


def test_device_model_is_that_of_the_published_pcm_formulas() -> None:
    """False alarms: each of 6 · 17 means lies within 5 standard errors but for 1 in 10^4 seeds."""
    problem = small_problem()
    t_s = [1.0, 3600.0, 86400.0 * 30]
    sampled = sample_device_model(problem, t_s, seed=3)
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
    hardware = NAMED_RPU_CONFIGS[name]
    problem = small_problem(
        rpu_config=hardware.build(), t_steps=list(hardware.t_steps),
        g_converter_baseline=hardware.baseline(), test_out_features=2,
    )  # fmt: skip
    sampled = sample_device_model(problem, problem.t_steps, seed=1)
    for values in vars(sampled).values():
        assert np.isfinite(values).all()
    assert sampled.g_target_us[[0, -1]] == pytest.approx([hardware.g_min, hardware.g_max])
    assert np.all(sampled.read_std_us >= 0)
    assert np.ptp(sampled.programmed_mean_us) > 0.9 * (hardware.g_max - hardware.g_min)


def test_sampling_devices_leaves_the_global_generators_and_the_model_alone() -> None:
    problem = small_problem()
    before = (
        torch.get_rng_state().clone(), np.random.get_state()[1].copy(), random.getstate(),  # noqa: NPY002
        dict(vars(problem.noise_model)),
    )  # fmt: skip
    first = sample_device_model(problem, [1.0], seed=1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()
    assert before[3] == vars(problem.noise_model)
    again = sample_device_model(problem, [1.0], seed=1)
    np.testing.assert_array_equal(first.mean_us, again.mean_us)


class MappedNoise(PCMLikeNoiseModel):
    """Every device of the tile drifts in a way of its own, and there are no other devices."""

    def generate_drift_coefficients(self, g_target: Tensor) -> Tensor:
        own = torch.linspace(0.9, 1.1, COLUMNS * ROWS).reshape(COLUMNS, ROWS)
        return super().generate_drift_coefficients(g_target) * own


def test_a_noise_model_that_cannot_be_sampled_costs_the_device_figure_alone() -> None:
    problem = small_problem(rpu_config=seedable_rpu_config(MappedNoise()))
    measured = measure_problem(problem)
    assert measured.devices is None
    assert measured.baseline_errors.tnmse[0].mean > 0
    assert type(measured).from_json(measured.to_json()).devices is None
    record = read_study(reported_studies.stored_study())
    assert record.measurements is not None
    without = dataclasses.replace(
        record, measurements=dataclasses.replace(record.measurements, problem=measured)
    )
    assert isinstance(devices.illustrate(without), Omission)


@pytest.mark.parametrize(
    ("converter", "factors"),
    [
        (SinglePairConductanceConverter(g_min=0.0, g_max=G_MAX), [1.0]),
        (DualPairConductanceConverter([1.0, 2.0], g_min=0.0, g_max=G_MAX), [1.0, 2.0]),
        (NPairConductanceConverter([1.0, 1.0, 4.0], g_min=0.0, g_max=G_MAX), [1.0, 1.0, 4.0]),
    ],
)
def test_baseline_curves_represent_the_weights(converter: object, factors: list[float]) -> None:
    problem = small_problem(g_converter_baseline=converter)
    baseline = measurements._baseline_strategy(problem)
    assert baseline.f.tolist() == factors
    weights = sum(
        f * (plus - minus)
        for f, plus, minus in zip(baseline.f, baseline.g_us[::2], baseline.g_us[1::2], strict=True)
    )
    np.testing.assert_allclose(weights / weights.max(), baseline.weights, atol=1e-5)


def test_what_is_measured_already_is_not_measured_again_but_a_new_winner_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[str] = []

    def counted(what: str) -> None:
        function = getattr(measurements, what)
        monkeypatch.setattr(
            measurements, what, lambda *a, **k: (measured.append(what), function(*a, **k))[1]
        )

    for what in ("measure_problem", "measure_weight_errors"):
        counted(what)
    problem = small_problem(t_steps=[1.0])
    study = reported_studies.search("memory", "again", problem, n_trials=12)
    scores = reported_studies.finish(study, problem)
    objective = reported_studies.objective_of(problem)
    assert measured.count("measure_problem") == 1
    first = stored_measurements(study)
    measured.clear()

    def keep(scores: Scores) -> Measurements:
        trial = study.trials[scores.winning_trial]
        return keep_measurements(study, objective, scores, strategy_of(objective, trial))

    keep(dataclasses.replace(scores, n_trials=13))
    assert measured == []
    other = dataclasses.replace(scores, finalists=scores.finalists[::-1])
    kept = keep(other)
    assert measured == ["measure_weight_errors"]
    assert kept.trial_number == other.winning_trial != scores.winning_trial
    assert first is not None
    np.testing.assert_array_equal(
        kept.problem.baseline_errors.band, first.problem.baseline_errors.band
    )


def test_measurements_read_back_from_a_storage_as_figures_show_them() -> None:
    problem = small_problem(t_steps=[1.0, 60.0])
    measured = measure_problem(problem)
    again = type(measured).from_json(json.loads(json.dumps(measured.to_json())))
    np.testing.assert_allclose(again.histogram, measured.histogram, rtol=1e-4)
    np.testing.assert_allclose(again.baseline.g_us, measured.baseline.g_us, rtol=1e-4)
    assert measured.devices is not None
    np.testing.assert_array_equal(again.t_s, measured.t_s)
    for name, values in vars(measured.devices).items():
        np.testing.assert_allclose(getattr(again.devices, name), values, rtol=1e-4, atol=1e-9)
    assert again.baseline_errors.tnmse == measured.baseline_errors.tnmse
    np.testing.assert_allclose(again.baseline_errors.band, measured.baseline_errors.band, rtol=1e-4)


def test_a_study_of_fifty_times_keeps_less_than_mysql_takes_per_attribute() -> None:
    problem = small_problem(t_steps=np.geomspace(1, 1e7, 50).tolist())
    stored = measure_problem(problem).to_json()
    assert len(json.dumps(stored).encode()) < 64_000


def test_measurements_survive_optuna_copying_a_study() -> None:
    study = reported_studies.stored_study()
    storage = optuna.storages.InMemoryStorage()
    optuna.copy_study(
        from_study_name=study.study_name, from_storage=study._storage, to_storage=storage
    )
    copied = stored_measurements(optuna.load_study(study_name=study.study_name, storage=storage))
    original = stored_measurements(study)
    assert copied is not None
    assert original is not None
    assert copied.trial_number == original.trial_number
    np.testing.assert_array_equal(copied.optimised_errors.band, original.optimised_errors.band)


@given(st.integers(1, 500))
def test_times_with_a_panel_are_few_ascending_and_include_both_ends(n_times: int) -> None:
    shown = times_shown(n_times)
    assert shown[0] == 0
    assert shown[-1] == n_times - 1
    assert len(shown) == min(n_times, MOST_TIMES_SHOWN)
    assert all(a < b for a, b in itertools.pairwise(shown))


@given(
    st.lists(
        st.floats(-1e300, 1e300) | st.sampled_from([math.nan, math.inf, -math.inf]), max_size=20
    )
)
def test_stored_numbers_keep_five_digits_and_forget_only_what_is_not_finite(
    values: list[float],
) -> None:
    again = from_stored(json.loads(json.dumps(to_stored(values), allow_nan=False)))
    expected = np.array([v if math.isfinite(v) else math.nan for v in values])
    np.testing.assert_allclose(again, expected, rtol=1e-4)
