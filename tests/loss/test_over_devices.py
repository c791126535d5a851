"""Strategies for several devices at once: what the engines say of them, and what is refused."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from aihwkit.simulator.configs import InferenceRPUConfig
from numpy.typing import NDArray
from small_problems import small_problem

from wpo_optuna import HypercubeObjective, make_engine
from wpo_optuna.errors import InvalidArgument
from wpo_optuna.hardware.device_spread import DeviceFactors, with_factors
from wpo_optuna.loss.expected import ExpectedEngine
from wpo_optuna.loss.monte_carlo import MonteCarloEngine
from wpo_optuna.loss.over_devices import ExpectedEngineOverDevices
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem


def others() -> list[InferenceRPUConfig]:
    factors = DeviceFactors(programming=2.0), DeviceFactors(nu_mean=0.3, read_noise=3.0)
    return [with_factors(small_problem().rpu_config, f) for f in factors]


def several(over: Any = "mean", **overrides: Any) -> WeightProgrammingProblem:
    return small_problem(other_rpu_configs=others(), over=over, **overrides)


def points(n: int) -> NDArray[np.float64]:
    return np.random.default_rng(1).random((n, small_problem().hypercube.dimension))


@pytest.mark.parametrize("over", ["mean", "worst"])
@pytest.mark.parametrize("name", ["expected", "montecarlo"])
def test_the_loss_is_that_of_each_device_relative_to_its_own_baseline(over: str, name: str) -> None:
    problem, x = several(over), points(5)
    engine = make_engine(name, problem)
    relative = []
    for rpu_config in (problem.rpu_config, *others()):
        alone = make_engine(name, small_problem(rpu_config=rpu_config))
        converter = problem.g_converter_baseline
        baseline = alone.tnmse_of(converter, problem.baseline_iterations, problem.seed).mean()
        relative.append(alone.tnmse(x, seed=5) / baseline)
    expected = np.mean(relative, axis=0) if over == "mean" else np.max(relative, axis=0)
    first = engine.baselines[0]  # type: ignore[attr-defined]
    np.testing.assert_allclose(engine.tnmse(x, seed=5) / first, expected, rtol=1e-6)
    # The study's baseline is drawn once more.
    objective = HypercubeObjective(problem, engine)
    assert objective.baseline == pytest.approx(first, rel=1e-9 if name == "expected" else 0.05)


@pytest.mark.parametrize("over", ["mean", "worst"])
def test_the_gradient_agrees_with_finite_differences(over: str) -> None:
    engine = make_engine("expected", several(over))
    assert isinstance(engine, ExpectedEngineOverDevices)
    x, step = 0.2 + 0.6 * points(1)[0], 1e-4
    for value, and_grad in (
        (engine.tnmse, engine.value_and_grad),
        (engine.conductance, engine.conductance_and_grad),
    ):
        shifted = x + step * np.concatenate([np.eye(len(x)), -np.eye(len(x))])
        above, below = value(shifted).reshape(2, -1)
        values, gradient = and_grad(x[None])
        np.testing.assert_allclose(values, value(x[None]), rtol=1e-6)
        numerical = (above - below) / (2 * step)
        np.testing.assert_allclose(gradient[0], numerical, atol=2e-3 * np.abs(numerical).max())


@pytest.mark.parametrize("over", ["mean", "worst"])
def test_the_engines_agree(over: str) -> None:
    """Means of 200 draws scatter by 0.6 %: one false alarm in 10 000 within 4 standard errors."""
    problem = several(over)
    expected, drawn = make_engine("expected", problem), make_engine("montecarlo", problem)
    drawn.baselines = expected.baselines  # type: ignore[attr-defined]
    strategies = problem.hypercube.decode(points(2))
    assert isinstance(strategies, list)
    for strategy in strategies:
        draws = drawn.tnmse_of(strategy.to_converter(), 200, seed=3)
        truth = expected.tnmse_of(strategy.to_converter(), 1)[0]
        error = draws.std(ddof=1) / np.sqrt(len(draws))
        assert abs(draws.mean() - truth) < 4 * error + 0.005 * truth
    tile = make_engine("aihwkit", problem)
    tile.baselines = expected.baselines  # type: ignore[attr-defined]
    assert tile.tnmse(points(1)) == pytest.approx(expected.tnmse(points(1)), rel=0.5)


def test_the_worst_of_equal_devices_is_no_worse_than_one_of_them() -> None:
    """The largest of several means of draws would be too large by one of their standard errors.

    The mean of 500 draws is within 4 standard errors but in one of 10 000 runs.
    """
    equal = [small_problem().rpu_config] * 5
    engine = make_engine("montecarlo", small_problem(other_rpu_configs=equal, over="worst"))
    alone = MonteCarloEngine(small_problem())
    converter = alone.problem.g_converter_baseline
    engine.baselines = np.ones(6)  # type: ignore[attr-defined]
    drawn = np.concatenate([engine.tnmse_of(converter, 20, seed) for seed in range(25)])
    truth = ExpectedEngine(alone.problem).tnmse_of(converter, 1)[0]
    error = drawn.std(ddof=1) / np.sqrt(len(drawn))
    assert abs(drawn.mean() - truth) < 4 * error + 0.005 * truth


@pytest.mark.parametrize("name", ["expected", "montecarlo", "aihwkit"])
def test_worker_processes_get_a_copy(name: str) -> None:
    engine = make_engine(name, several(baseline_iterations=2))
    copy = pickle.loads(pickle.dumps(engine))
    rel = 0.8 if name == "aihwkit" else 1e-12  # its tile cannot be seeded
    np.testing.assert_allclose(copy.tnmse(points(2)), engine.tnmse(points(2)), rtol=rel)


def test_the_fingerprint_knows_the_other_devices_and_what_counts_of_them() -> None:
    problems = [small_problem(), several("mean"), several("worst")]
    problems.append(small_problem(other_rpu_configs=others()[:1]))
    assert len({problem.fingerprint for problem in problems}) == 4
    assert several().fingerprint == several().fingerprint
    assert small_problem(over="worst").fingerprint == small_problem().fingerprint


def test_what_several_devices_need_is_told() -> None:
    with pytest.raises(InvalidArgument, match=r"over = 'best': 'mean' or 'worst' is needed"):
        several("best")
    with pytest.raises(InvalidArgument, match="rpu_config is a str"):
        small_problem(other_rpu_configs=["pcm"])
    with pytest.raises(InvalidArgument, match="2 other_rpu_configs: make_engine"):
        MonteCarloEngine(several())
