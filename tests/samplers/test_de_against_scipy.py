"""Whole Optuna studies against scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest
from de_functions import (
    FUNCTIONS,
    NAMES,
    bounds,
    candidates_of_scipy,
    initial_array,
    search_space,
)
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from wpo_optuna.samplers import DESampler


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def points_of(study: optuna.Study, names: list[str]) -> np.ndarray:
    return np.array([[trial.params[name] for name in names] for trial in study.trials])


def evolve(study: optuna.Study, space: dict[str, BaseDistribution], function: Any, n: int) -> None:
    for _ in range(n):
        trial = study.ask(space)
        study.tell(trial, function(np.array(list(trial.params.values()))))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sphere", {}),
        ("rosenbrock", {"strategy": "rand2exp", "mutation": 0.6, "recombination": 0.4}),
        ("rastrigin", {"init": "sobol", "popsize": 3}),
        ("ackley", {"init": initial_array("ackley")}),
    ],
)
def test_a_study_holds_the_candidates_of_scipy_in_their_order(
    name: str, options: dict[str, Any]
) -> None:
    """Each option reaches the algorithm, whose own tests try all combinations."""
    function = FUNCTIONS[name][0]
    expected = candidates_of_scipy(function, bounds(name), 4, seed=1, **options)
    sampler = DESampler(seed=1, search_space=search_space(name), **options)

    def objective(trial: optuna.Trial) -> float:
        return function(np.array([trial.suggest_float(n, *bounds(name)[0]) for n in NAMES]))

    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=len(expected))
    np.testing.assert_array_equal(points_of(study, NAMES), expected)


def test_without_a_search_space_the_evolution_begins_after_the_first_trial() -> None:
    function, limits = FUNCTIONS["sphere"][0], bounds("sphere", 3)
    expected = candidates_of_scipy(function, limits, 3, seed=5, popsize=2)
    study = optuna.create_study(sampler=DESampler(seed=5, popsize=2))
    evolve(study, search_space("sphere", 3), function, len(expected) + 1)
    np.testing.assert_array_equal(points_of(study, NAMES[:3])[1:], expected)


def test_maximising_is_minimising_the_opposite() -> None:
    function, limits = FUNCTIONS["rastrigin"][0], bounds("rastrigin", 3)
    expected = candidates_of_scipy(function, limits, 8, seed=5, popsize=3)
    space = search_space("rastrigin", 3)
    sampler = DESampler(seed=5, popsize=3, search_space=space)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    evolve(study, space, lambda x: -function(x), len(expected))
    np.testing.assert_array_equal(points_of(study, NAMES[:3]), expected)
    assert sampler.population(study).values[0] == study.best_value


def test_logarithmic_parameters_are_evolved_in_their_logarithm() -> None:
    space = {
        "rate": FloatDistribution(1e-6, 1.0, log=True),
        "width": FloatDistribution(-1.0, 1.0),
    }
    limits = [(np.log(1e-6), 0.0), (-1.0, 1.0)]

    def in_logarithm(x: np.ndarray) -> float:
        return float((x[0] + 7.0) ** 2 + x[1] ** 2)

    expected = candidates_of_scipy(in_logarithm, limits, 8, seed=2, popsize=4)
    study = optuna.create_study(sampler=DESampler(seed=2, popsize=4, search_space=space))
    evolve(study, space, lambda x: in_logarithm(np.array([np.log(x[0]), x[1]])), len(expected))
    points = points_of(study, ["rate", "width"])
    np.testing.assert_allclose(np.log(points[:, 0]), expected[:, 0], rtol=1e-12)
    np.testing.assert_array_equal(points[:, 1], expected[:, 1])


def test_integers_and_steps_are_rounded_for_the_objective_alone() -> None:
    space = {
        "n": IntDistribution(-20, 31),
        "even": IntDistribution(0, 10, step=2),
        "quarters": FloatDistribution(-2.0, 2.0, step=0.25),
    }
    # Half a step on either side, so that the outermost values are as likely as the others.
    limits = [(-20.5, 31.5), (-1.0, 11.0), (-2.125, 2.125)]

    def rounded(x: np.ndarray) -> np.ndarray:
        return np.array([np.round(x[0]), 2 * np.round(x[1] / 2), np.round(4 * x[2]) / 4])

    def function(x: np.ndarray) -> float:
        return float((x[0] - 7) ** 2 + (x[1] - 8) ** 2 + x[0] * x[2])

    seen = candidates_of_scipy(lambda x: function(rounded(x)), limits, 10, seed=9, popsize=5)
    study = optuna.create_study(sampler=DESampler(seed=9, popsize=5, search_space=space))
    evolve(study, space, function, len(seen))
    expected = [rounded(x) for x in seen]
    np.testing.assert_allclose(points_of(study, list(space)), expected, rtol=1e-12)
    assert all(type(trial.params["n"]) is int for trial in study.trials)


def test_an_initial_population_is_given_in_units_of_the_parameters() -> None:
    space = {
        "rate": FloatDistribution(1e-4, 1.0, log=True),
        "n": IntDistribution(0, 100, step=10),
        "x": FloatDistribution(-1.0, 1.0, step=0.25),
    }
    points = np.array(
        [[1e-4, 0, -1.0], [1e-3, 30, 0.5], [0.1, 100, 1.0], [0.3, 50, -0.25], [1.0, 90, 0.0]]
    )
    for init in (points, lambda limits, rng: points):
        study = optuna.create_study(sampler=DESampler(seed=0, search_space=space, init=init))
        evolve(study, space, lambda x: float(x.sum()), len(points))
        np.testing.assert_allclose(points_of(study, list(space)), points, rtol=1e-12)
