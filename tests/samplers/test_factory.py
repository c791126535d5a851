"""Samplers by name, and going on with them in a later process."""

from __future__ import annotations

import warnings
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import InMemoryStorage

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.samplers import SAMPLER_NAMES, DESampler, make_sampler

SPACE: dict[str, BaseDistribution] = {f"x{index}": FloatDistribution(0, 1) for index in range(3)}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


def run(study: optuna.Study, n_trials: int) -> list[dict[str, Any]]:
    """Runs a study on, and gives the parameters of its new trials."""
    for _ in range(n_trials):
        trial = study.ask(SPACE)
        study.tell(trial, sum(trial.params.values()))
    return [trial.params for trial in study.trials[-n_trials:]]


def resumed(study: optuna.Study, storage: InMemoryStorage, **options: Any) -> optuna.Study:
    """The study in a later process: with its trials and system attributes, and a new sampler."""
    memory = InMemoryStorage()
    new = optuna.create_study(storage=memory, study_name="one", sampler=make_sampler(**options))
    study_id = storage.get_study_id_from_name("one")
    for name, value in storage.get_study_system_attrs(study_id).items():
        memory.set_study_system_attr(memory.get_study_id_from_name("one"), name, value)
    new.add_trials(study.trials)
    return new


@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_a_later_process_proposes_new_points(name: str) -> None:
    storage = InMemoryStorage()
    study = optuna.create_study(
        storage=storage, study_name="one", sampler=make_sampler(name, seed=1)
    )
    first = run(study, 12)
    later = resumed(study, storage, name=name, seed=1, n_earlier_trials=12)
    points = {tuple(params.values()) for params in first + run(later, 12)}
    assert len(points) == 24


@pytest.mark.parametrize("name", ["de", "qmc"])
def test_differential_evolution_and_qmc_go_on_as_if_uninterrupted(name: str) -> None:
    storage = InMemoryStorage()
    study = optuna.create_study(
        storage=storage, study_name="one", sampler=make_sampler(name, seed=1)
    )
    run(study, 20)
    later = resumed(study, storage, name=name, seed=1, n_earlier_trials=20, n_earlier_sessions=1)
    assert run(later, 30) == run(study, 30)


def test_cmaes_goes_on_with_its_distribution() -> None:
    storage = InMemoryStorage()
    study = optuna.create_study(
        storage=storage, study_name="one", sampler=make_sampler("cmaes", seed=1)
    )
    first = run(study, 200)
    later = run(resumed(study, storage, name="cmaes", seed=1, n_earlier_trials=200), 20)
    assert max(sum(params.values()) for params in later) < 0.2 * sum(first[1].values())


def test_one_seed_is_one_sequence_and_histories_have_their_own() -> None:
    def first_point(**options: Any) -> dict[str, Any]:
        sampler = make_sampler("random", **options)
        return run(optuna.create_study(sampler=sampler), 1)[0]

    points = [
        first_point(seed=1),
        first_point(seed=2),
        first_point(seed=1, n_earlier_trials=1),
        first_point(seed=1, n_earlier_sessions=1),
    ]
    assert len({tuple(point.values()) for point in points}) == 4
    assert first_point(seed=1) == points[0]


def test_options_reach_the_sampler() -> None:
    sampler = make_sampler("de", seed=1, search_space=SPACE, popsize=2)
    assert isinstance(sampler, DESampler)
    assert sampler.candidates_left(optuna.create_study(sampler=sampler)) == 6
    assert isinstance(make_sampler("tpe", n_startup_trials=3), optuna.samplers.TPESampler)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("cma-es", {}, r"sampler = 'cma-es': .*cmaes.*did you mean 'cmaes'\?"),
        ("de", {"popsiz": 3}, r"sampler 'de' has no option 'popsiz'.*popsize"),
        ("tpe", {"popsize": 3}, r"sampler 'tpe' has no option 'popsize'"),
    ],
)
def test_an_unknown_name_or_option_is_refused(
    name: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        make_sampler(name, **options)
