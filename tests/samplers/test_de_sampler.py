"""How the sampler behaves in Optuna studies of every kind."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import optuna
import pytest
from de_functions import FUNCTIONS, search_space
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState
from scipy.optimize import differential_evolution

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.samplers import DESampler, candidate_of

SPACE: dict[str, BaseDistribution] = dict(search_space("sphere", 2))


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def sampler(**options: Any) -> DESampler:
    return DESampler(**({"seed": 1, "popsize": 3, "search_space": SPACE} | options))


def value_of(params: dict[str, Any]) -> float:
    return FUNCTIONS["sphere"][0](np.array([params[name] for name in SPACE]))


def evolve(study: optuna.Study, n_trials: int) -> None:
    for _ in range(n_trials):
        trial = study.ask(SPACE)
        study.tell(trial, value_of(trial.params))


def params_of(study: optuna.Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials if trial.state == TrialState.COMPLETE]


def candidates_of(study: optuna.Study) -> list[tuple[int, int]]:
    """Generation and index of each candidate that is or was evaluated, in the trials' order."""
    candidates = [candidate_of(trial) for trial in study.trials]
    return [(c.generation, c.index) for c in candidates if c]


def reference(n_trials: int, **options: Any) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=sampler(**options))
    evolve(study, n_trials)
    return params_of(study)


# What is sampled


@settings(max_examples=25, deadline=None)
@given(
    low=st.integers(-50, 50),
    n_values=st.integers(1, 40),
    step=st.integers(1, 7),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_parameter_keeps_its_range_step_and_type(
    low: int, n_values: int, step: int, seed: int
) -> None:
    space: dict[str, BaseDistribution] = {
        "float": FloatDistribution(low, low + n_values),
        "stepped": FloatDistribution(low, low + 0.1 * n_values, step=0.1),
        "log": FloatDistribution(10.0**low, 10.0 ** (low + n_values), log=True),
        "int": IntDistribution(low, low + n_values * step, step=step),
        "logint": IntDistribution(1, n_values, log=True),
        "single": IntDistribution(low, low),
        "choice": CategoricalDistribution(["a", None, 3.5]),
    }
    study = optuna.create_study(
        sampler=DESampler(seed=seed, popsize=1, search_space=space, warn_independent_sampling=False)
    )
    for _ in range(12):
        trial = study.ask(space)
        for name, value in trial.params.items():
            distribution = space[name]
            assert distribution._contains(distribution.to_internal_repr(value))
            if isinstance(distribution, IntDistribution):
                assert type(value) is int
            elif isinstance(distribution, FloatDistribution):
                assert type(value) is float
        study.tell(trial, trial.params["float"])


def test_categorical_parameters_are_random_while_the_others_evolve() -> None:
    def objective(trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("kind", ["a", "b"])
        x = trial.suggest_float("x", -5, 5)
        return x**2 + (kind == "b")

    study = optuna.create_study(sampler=DESampler(seed=0, warn_independent_sampling=False))
    study.optimize(objective, n_trials=120)
    last = study.trials[-30:]
    assert {trial.params["kind"] for trial in last} == {"a", "b"}
    assert np.std([trial.params["x"] for trial in last]) < 0.5


def test_a_parameter_left_out_of_the_evolution_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = optuna.create_study(sampler=sampler())
    for _ in range(4):
        trial = study.ask(SPACE | {"kind": CategoricalDistribution(["a", "b"])})
        study.tell(trial, 1.0)
    assert caplog.text.count("'kind' is sampled independently") == 1


def test_the_evolution_starts_anew_where_the_common_search_space_shrinks() -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -5, 5)
        if trial.number < 5:
            return x**2 + trial.suggest_float("y", -5, 5) ** 2
        return x**2 + trial.suggest_float("z", -5, 5) ** 2

    study = optuna.create_study(sampler=DESampler(seed=0, popsize=5))
    study.optimize(objective, n_trials=60)
    first = [(0, index) for index in range(5)]
    assert candidate_of(study.trials[0]) is None
    assert candidates_of(study)[:10] == first + first
    assert abs(study.best_params["x"]) < 0.5


def test_trials_of_other_origin_take_no_part_in_the_evolution() -> None:
    study = optuna.create_study(sampler=sampler())
    study.enqueue_trial({"x0": 0.0, "x1": 0.0})
    study.enqueue_trial({"x0": 1.0})
    study.add_trial(
        optuna.create_trial(params={"x0": 0.0, "x1": 0.0}, distributions=SPACE, value=0)
    )
    evolve(study, 20)
    assert candidate_of(study.trials[0]) is None
    assert study.trials[1].params["x0"] == 1.0
    assert candidate_of(study.trials[1]) is None
    assert params_of(study)[3:] == reference(18)


def test_fixing_a_parameter_evolves_the_others() -> None:
    fixed = optuna.samplers.PartialFixedSampler({"x0": 2.0}, sampler())
    study = optuna.create_study(sampler=fixed)
    evolve(study, 40)
    assert {trial.params["x0"] for trial in study.trials} == {2.0}
    assert abs(study.best_params["x1"]) < 0.2
    assert candidates_of(study)[:6] == [(0, index) for index in range(5)] + [(1, 0)]


# Trials without a value


def test_a_failed_candidate_is_evaluated_again_at_once() -> None:
    study = optuna.create_study(sampler=sampler())
    evolve(study, 3)
    study.tell(study.ask(SPACE), state=TrialState.FAIL)
    evolve(study, 15)
    assert candidates_of(study)[3] == candidates_of(study)[4]
    assert params_of(study) == reference(18)


def test_a_candidate_counts_as_infinite_after_its_attempts() -> None:
    s = sampler(max_attempts=2)
    study = optuna.create_study(sampler=s)
    expected = optuna.create_study(sampler=sampler(max_attempts=2))
    for index in range(30):
        trial = expected.ask(SPACE)
        expected.tell(trial, math.inf if index == 3 else value_of(trial.params))
    for index in range(31):
        trial = study.ask(SPACE)
        study.tell(trial, math.nan if index in (3, 4) else value_of(trial.params))
    assert candidates_of(study)[3:6] == [(0, 3), (0, 3), (0, 4)]
    assert params_of(study) == [p for i, p in enumerate(params_of(expected)) if i != 3]


def test_an_objective_that_always_fails_does_not_stop_the_study() -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x0", -5.12, 5.12) + trial.suggest_float("x1", -5.12, 5.12)
        raise RuntimeError(x)

    s = sampler(max_attempts=1)
    study = optuna.create_study(sampler=s)
    study.optimize(objective, n_trials=14, catch=(RuntimeError,))
    assert s.generation(study) == 2
    assert candidates_of(study)[12:] == [(2, 0), (2, 1)]


def test_a_pruned_candidate_counts_with_its_last_report_or_as_infinite() -> None:
    told = [0.5, 3.0, None, 1.0, 2.0, 4.0]
    s = sampler()
    study = optuna.create_study(sampler=s)
    for value in told:
        trial = study.ask(SPACE)
        if value is not None:
            trial.report(value, step=1)
        study.tell(trial, state=TrialState.PRUNED)
    assert sorted(s.population(study).values) == [0.5, 1.0, 2.0, 3.0, 4.0, math.inf]
    assert not s.converged(study)


# Asking before telling


def test_asking_more_than_a_generation_evaluates_some_candidates_once_more() -> None:
    study = optuna.create_study(sampler=sampler())
    trials = [study.ask(SPACE) for _ in range(9)]
    asked = candidates_of(study)
    assert asked[:6] == [(0, index) for index in range(6)]
    assert len(set(asked[6:])) == 3
    for trial in trials:
        study.tell(trial, value_of(trial.params))
    evolve(study, 12)
    params = params_of(study)
    assert params[:6] + params[9:] == reference(18)


def test_the_trial_finished_first_counts() -> None:
    study = optuna.create_study(sampler=sampler())
    trials = [study.ask(SPACE) for _ in range(7)]
    repeated = candidates_of(study)[6][1]
    for trial in reversed(trials):
        study.tell(trial, 100.0 * trial.number)
    energies = (
        sampler()
        .population(
            replayed := optuna.load_study(
                study_name=study.study_name, storage=study._storage, sampler=sampler()
            )
        )
        .values
    )
    assert study.sampler.generation(study) == replayed.sampler.generation(replayed) == 1
    expected = [100.0 * (6 if index == repeated else index) for index in range(6)]
    assert sorted(energies) == sorted(expected)


def test_candidates_left_counts_what_can_be_asked_in_this_generation() -> None:
    s = sampler()
    study = optuna.create_study(sampler=s)
    assert s.candidates_left(study) == 6
    trials = [study.ask(SPACE) for _ in range(4)]
    assert s.candidates_left(study) == 2
    trials += [study.ask(SPACE) for _ in range(2)]
    assert s.candidates_left(study) == 0
    for trial in trials:
        assert s.generation(study) == 0
        study.tell(trial, 1.0)
    assert (s.generation(study), s.candidates_left(study)) == (1, 6)


def test_while_the_search_space_is_unknown_one_trial_is_left_to_ask() -> None:
    s = sampler(search_space=None)
    study = optuna.create_study(sampler=s)
    assert s.candidates_left(study) == 1
    assert s.population(study) is None
    assert not s.converged(study)
    evolve(study, 1)
    assert s.candidates_left(study) == 6


# Settings and seeds


@pytest.mark.parametrize(
    ("changed", "begun", "sentence"),
    [
        ({"seed": 2}, {}, "seed = 2: the study 'one' was begun with seed = 1"),
        ({"strategy": "rand1exp"}, {}, "strategy = rand1exp: .* with strategy = best1bin"),
        ({"mutation": 0.4}, {}, r"mutation = \[0.4\]: .* with mutation = \[0.5, 1.0\]"),
        ({"popsize": 4, "recombination": 0.2}, {}, "popsize = 4, recombination = 0.2: "),
        ({"init": np.zeros((9, 2))}, {}, "init = array .* with init = latinhypercube"),
        ({"max_attempts": 7}, {}, "max_attempts = 7"),
        ({"search_space": None}, {}, "search_space = inferred"),
        ({"seed": None, "popsize": 4}, {}, "popsize = 4"),
        ({"popsize": 4}, {"search_space": None}, "popsize = 4"),
    ],
)
def test_a_study_begun_with_other_settings_is_refused(
    changed: dict[str, Any], begun: dict[str, Any], sentence: str
) -> None:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="one", sampler=sampler(**begun))
    evolve(study, 8)
    other = sampler(**(begun | changed))
    resumed = optuna.load_study(storage=storage, study_name="one", sampler=other)
    n_trials = len(study.trials)
    with pytest.raises(InvalidArgument, match=sentence):
        other.candidates_left(resumed)
    assert len(study.trials) == n_trials
    with pytest.raises(InvalidArgument, match=sentence):
        resumed.ask(SPACE)


def test_tolerances_may_change_when_a_study_is_resumed() -> None:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="one", sampler=sampler())
    evolve(study, 8)
    other = sampler(tol=0.5, atol=1.0)
    resumed = optuna.load_study(storage=storage, study_name="one", sampler=other)
    evolve(resumed, 8)
    assert params_of(resumed) == reference(16)


def test_without_a_seed_the_seed_of_the_study_is_taken_over() -> None:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="one", sampler=sampler(seed=None))
    evolve(study, 7)
    for _ in range(4):
        s = sampler(seed=None)
        evolve(optuna.load_study(storage=storage, study_name="one", sampler=s), 5)
    seeds = {candidate_of(trial).seed for trial in study.trials}
    assert len(seeds) == 1
    assert params_of(study) == reference(27, seed=seeds.pop())


# The sampler object and its studies


def test_one_sampler_object_serves_several_studies_in_turn() -> None:
    s = sampler()
    studies = [optuna.create_study(sampler=s) for _ in range(3)]
    for _ in range(10):
        for study in studies:
            evolve(study, 2)
    assert [params_of(study) for study in studies] == [reference(20)] * 3


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copied_or_pickled_sampler_continues_the_study(duplicate: Any) -> None:
    study = optuna.create_study(sampler=sampler())
    evolve(study, 8)
    study.sampler = duplicate(study.sampler)
    evolve(study, 8)
    assert params_of(study) == reference(16)


def test_it_stops_a_study_in_the_generation_in_which_scipy_stops() -> None:
    function, low, high = FUNCTIONS["rosenbrock"]
    result = differential_evolution(
        function, [(low, high)] * 2, rng=1, updating="deferred", polish=False, tol=0.5, popsize=3
    )
    s = sampler(tol=0.5, search_space=search_space("rosenbrock", 2))
    study = optuna.create_study(sampler=s)

    def objective(trial: optuna.Trial) -> float:
        return function(np.array([trial.suggest_float(name, low, high) for name in SPACE]))

    study.optimize(objective, n_trials=5000, callbacks=[s.stop_when_converged])
    assert len(study.trials) == result.nfev
    assert s.converged(study)
    assert study.best_value == result.fun


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seed", -1),
        ("seed", 1.5),
        ("seed", "one"),
        ("tol", -0.1),
        ("tol", math.nan),
        ("atol", None),
        ("max_attempts", 0),
        ("search_space", {"x": CategoricalDistribution([1, 2])}),
        ("search_space", {}),
        ("search_space", {"x": (0, 1)}),
    ],
)
def test_a_bad_option_is_named_with_its_value(option: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as refused:
        DESampler(**{option: value})
    assert str(refused.value).startswith(f"{option} = {value!r}: ")
