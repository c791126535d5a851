"""The algorithm alone, against scipy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from de_functions import FUNCTIONS, bounds, candidates_of_scipy, initial_array
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import differential_evolution

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.samplers.differential_evolution import (
    INITIALISATIONS,
    STRATEGIES,
    DifferentialEvolution,
    DifferentialEvolutionSettings,
)

N_GENERATIONS = 20


def candidates(
    function: Any, limits: Any, n_generations: int, seed: int, **options: Any
) -> np.ndarray:
    evolution = DifferentialEvolution(limits, DifferentialEvolutionSettings(**options), seed)
    seen: list[np.ndarray] = []
    for _ in range(n_generations):
        points = evolution.points()
        seen.extend(points)
        evolution.tell([function(x) for x in points])
    return np.array(seen)


def _grid() -> Iterator[Any]:
    """All combinations, of which every run takes a quarter."""
    lists = (FUNCTIONS, [*INITIALISATIONS, "array"], STRATEGIES)
    for places in itertools.product(*(range(len(options)) for options in lists)):
        names = [list(options)[place] for options, place in zip(lists, places, strict=True)]
        yield pytest.param(*names, marks=[pytest.mark.slow] if sum(places) % 4 else [])


@pytest.mark.parametrize(("name", "init", "strategy"), _grid())
def test_twenty_generations_are_those_of_scipy(name: str, init: str, strategy: str) -> None:
    options: dict[str, Any] = {
        "strategy": strategy,
        "init": initial_array(name) if init == "array" else init,
        "popsize": 2,
    }
    function, limits = FUNCTIONS[name][0], bounds(name)
    expected = candidates_of_scipy(function, limits, N_GENERATIONS, seed=7, **options)
    np.testing.assert_array_equal(
        candidates(function, limits, N_GENERATIONS, seed=7, **options), expected
    )


@settings(max_examples=60, deadline=None)
@given(
    strategy=st.sampled_from(STRATEGIES),
    init=st.sampled_from(INITIALISATIONS),
    dimension=st.integers(1, 7),
    popsize=st.integers(1, 9),
    mutation=st.one_of(
        st.floats(0, 1.99), st.tuples(st.floats(0, 1.99), st.floats(0, 1.99)), st.just((0.5, 1))
    ),
    recombination=st.floats(0, 1),
    low=st.floats(-1e3, 1e3),
    width=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_settings_give_the_candidates_of_scipy(
    strategy: str,
    init: str,
    dimension: int,
    popsize: int,
    mutation: Any,
    recombination: float,
    low: float,
    width: float,
    seed: int,
) -> None:
    if strategy.startswith("rand2") and popsize * dimension < 6:
        popsize = 6  # scipy fails with five members.
    function = FUNCTIONS["rastrigin"][0]
    limits = [(low, low + width)] * dimension
    options: dict[str, Any] = {
        "strategy": strategy,
        "init": init,
        "popsize": popsize,
        "mutation": mutation,
        "recombination": recombination,
    }
    np.testing.assert_array_equal(
        candidates(function, limits, 5, seed, **options),
        candidates_of_scipy(function, limits, 5, seed, **options),
    )


def rand1_with_half_crossover(
    candidate: int, population: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    a, b, c = rng.choice(len(population), size=3, replace=False)
    mutant = population[a] + 0.7 * (population[b] - population[c])
    return np.where(rng.uniform(size=mutant.shape) < 0.5, mutant, population[candidate])


def test_a_strategy_of_ones_own_gives_the_candidates_of_scipy() -> None:
    function, limits = FUNCTIONS["ackley"][0], bounds("ackley", 4)
    options = {"strategy": rand1_with_half_crossover, "popsize": 3}
    np.testing.assert_array_equal(
        candidates(function, limits, 10, seed=3, **options),
        candidates_of_scipy(function, limits, 10, seed=3, **options),
    )


def test_infinite_values_are_handled_as_by_scipy() -> None:
    def walled(x: np.ndarray) -> float:
        return np.inf if x[0] > 0.5 else FUNCTIONS["sphere"][0](x)

    limits = bounds("sphere", 3)
    np.testing.assert_array_equal(
        candidates(walled, limits, 15, seed=2, popsize=4),
        candidates_of_scipy(walled, limits, 15, seed=2, popsize=4),
    )


@pytest.mark.parametrize(("tol", "atol"), [(0.01, 0.0), (0.0, 1e-3), (0.3, 0.02)])
@pytest.mark.parametrize("name", ["sphere", "rastrigin"])
def test_it_converges_in_the_generation_in_which_scipy_stops(
    name: str, tol: float, atol: float
) -> None:
    function, limits = FUNCTIONS[name][0], [(-1.0, 2.0)] * 2
    result = differential_evolution(
        function, limits, rng=4, updating="deferred", polish=False, tol=tol, atol=atol, maxiter=500
    )
    evolution = DifferentialEvolution(limits, DifferentialEvolutionSettings(), seed=4)
    n_evaluations = 0
    while not evolution.converged(tol, atol):
        energies = [function(x) for x in evolution.points()]
        evolution.tell(energies)
        n_evaluations += len(energies)
    assert n_evaluations == result.nfev
    np.testing.assert_array_equal(evolution.population_points(), result.population)
    np.testing.assert_array_equal(evolution.energies, result.population_energies)


@pytest.mark.parametrize("last", [1.0, np.inf])
def test_only_evolved_and_finite_members_converge(last: float) -> None:
    evolution = DifferentialEvolution([(0, 1)] * 2, DifferentialEvolutionSettings(), seed=0)
    for is_evolved in (False, True):
        evolution.tell([*np.ones(evolution.size - 1), last])
        assert evolution.converged(tol=0.01, atol=0.0) == (is_evolved and last == 1.0)


def test_the_smallest_population_suffices_for_every_strategy() -> None:
    for strategy in STRATEGIES:
        choice = DifferentialEvolutionSettings(strategy=strategy, popsize=1)
        evolution = DifferentialEvolution([(0, 1)], choice, seed=0)
        for _ in range(3):
            evolution.tell(evolution.points()[:, 0])
        assert evolution.size == (6 if strategy.startswith("rand2") else 5)


def test_an_initial_population_may_be_computed_from_the_bounds() -> None:
    def corners(limits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return limits[np.arange(2), rng.integers(2, size=(7, 2))]

    choice = DifferentialEvolutionSettings(init=corners)
    evolution = DifferentialEvolution([(-3, 1), (2, 8)], choice, seed=0)
    assert evolution.size == 7
    assert set(evolution.points().ravel()) == {-3, 1, 2, 8}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("strategy", "best3bin"),
        ("strategy", None),
        ("popsize", 0),
        ("popsize", 2.5),
        ("popsize", True),
        ("init", "sobols"),
        ("mutation", 2.0),
        ("mutation", (0.5, np.nan)),
        ("mutation", -0.1),
        ("mutation", (0.1, 0.2, 0.3)),
        ("mutation", "0.5"),
        ("recombination", 1.01),
        ("recombination", None),
    ],
)
def test_a_bad_option_is_named_with_its_value(option: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as refused:
        DifferentialEvolutionSettings(**{option: value})
    assert str(refused.value).startswith(f"{option} = {value!r}: ")
    assert "needed" in str(refused.value)


@pytest.mark.parametrize(
    "points", [np.zeros((4, 2)), np.zeros((9, 3)), np.zeros(9), np.full((9, 2), np.nan)]
)
def test_a_bad_initial_population_is_refused(points: np.ndarray) -> None:
    choice = DifferentialEvolutionSettings(init=points)
    with pytest.raises(InvalidArgument, match="init of shape"):
        DifferentialEvolution([(0, 1)] * 2, choice, seed=0)


@pytest.mark.parametrize("energies", [np.ones(3), np.full(30, np.nan), np.ones((30, 1))])
def test_values_of_the_wrong_number_or_nan_are_refused(energies: np.ndarray) -> None:
    evolution = DifferentialEvolution([(0, 1)] * 2, DifferentialEvolutionSettings(), seed=0)
    with pytest.raises(InvalidArgument, match="energies"):
        evolution.tell(energies)
