"""Reading each trial once finds what reading all of them finds."""

from __future__ import annotations

import random
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.pruners import HyperbandPruner
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import TrialState

from wpo_optuna.samplers.shared_space import SharedSearchSpace
from wpo_optuna.samplers.trial_feed import TrialFeed

CHOICES: list[BaseDistribution] = [
    FloatDistribution(0.0, 1.0),
    FloatDistribution(0.0, 1.0),
    FloatDistribution(0.0, 2.0),
    CategoricalDistribution([1, 0]),
    CategoricalDistribution([True, False]),
]


def shown(space: dict[str, BaseDistribution]) -> list[tuple[str, str]]:
    return [(name, repr(distribution)) for name, distribution in space.items()]


@pytest.mark.parametrize("include_pruned", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_the_space_is_optunas_whatever_order_trials_finish_in(
    seed: int, include_pruned: bool
) -> None:
    chance = random.Random(seed)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    own, optunas = SharedSearchSpace(include_pruned), IntersectionSearchSpace(include_pruned)
    stable = {name: CHOICES[index] for index, name in enumerate("badce")}
    running = []
    for _ in range(60):
        space = dict(stable)
        if chance.random() < 0.1:
            space[chance.choice("abcde")] = chance.choice(CHOICES)
        if chance.random() < 0.05:
            space.pop(chance.choice("abcde"))
        running.append(study.ask({k: v for k, v in space.items() if _compatible(study, k, v)}))
        while running and chance.random() < 0.5:
            trial = running.pop(chance.randrange(len(running)))
            if chance.random() < 0.3:
                trial.report(1.0, 1)
                study.tell(trial, state=chance.choice([TrialState.FAIL, TrialState.PRUNED]))
            else:
                study.tell(trial, 1.0)
        if chance.random() < 0.7:
            assert shown(own.calculate(study)) == shown(optunas.calculate(study))


@pytest.mark.parametrize("order", [(3, 4), (4, 3)])
def test_of_equal_choices_those_of_the_newest_trial_count(order: tuple[int, int]) -> None:
    study = optuna.create_study()
    for index in order:
        study.tell(study.ask({"x": CHOICES[index]}), 1.0)
    found = SharedSearchSpace().calculate(study)
    assert shown(found) == shown(IntersectionSearchSpace().calculate(study))
    assert repr(found["x"]) == repr(CHOICES[order[1]])


def _compatible(study: optuna.Study, name: str, distribution: BaseDistribution) -> bool:
    known = [t.distributions[name] for t in study.get_trials() if name in t.distributions]
    try:
        for other in known:
            optuna.distributions.check_distribution_compatibility(other, distribution)
    except ValueError:
        return False
    return True


def finished(study: optuna.Study, n: int) -> None:
    for _ in range(n):
        study.tell(study.ask({"x": CHOICES[0]}), 1.0)


def test_what_is_returned_may_be_changed() -> None:
    study = optuna.create_study()
    finished(study, 1)
    space = SharedSearchSpace()
    space.calculate(study).clear()
    assert space.calculate(study) == {"x": CHOICES[0]}


def test_another_study_is_refused() -> None:
    storage = optuna.storages.InMemoryStorage()
    studies = [optuna.create_study(storage=storage) for _ in range(2)]
    space = SharedSearchSpace()
    space.calculate(studies[0])
    with pytest.raises(ValueError, match="multiple studies"):
        space.calculate(studies[1])


@pytest.mark.parametrize("name", ["cmaes", "tpe"])
def test_a_study_with_hyperband_is_left_to_optuna(name: str) -> None:
    from wpo_optuna.samplers import make_sampler

    plain: dict[str, Any] = {
        "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=3, warn_independent_sampling=False),
        "tpe": lambda: optuna.samplers.TPESampler(seed=3, multivariate=True),
    }

    def proposed(sampler: optuna.samplers.BaseSampler) -> list[dict[str, Any]]:
        study = optuna.create_study(
            study_name="brackets", sampler=sampler, pruner=HyperbandPruner(max_resource=9)
        )

        def objective(trial: optuna.Trial) -> float:
            x = trial.suggest_float("x", -1, 1)
            trial.report(x, 1)
            return x**2

        study.optimize(objective, n_trials=60)
        return [trial.params for trial in study.trials]

    assert proposed(make_sampler(name, seed=3)) == proposed(plain[name]())


def numbers(feed: TrialFeed, study: optuna.Study) -> tuple[bool, list[int]]:
    news = feed.look(study, study.get_trials(deepcopy=False))
    assert news is not None
    return news.begins_anew, [trial.number for trial in news.finished]


def test_each_finished_trial_is_told_once() -> None:
    study = optuna.create_study()
    feed = TrialFeed()
    assert numbers(feed, study) == (True, [])
    waiting = [study.ask() for _ in range(4)]
    study.tell(waiting[2], 1.0)
    assert numbers(feed, study) == (False, [2])
    assert feed.unfinished == {0, 1, 3}
    study.enqueue_trial({})
    study.tell(waiting[3], state=TrialState.FAIL)
    study.tell(waiting[0], 1.0)
    assert numbers(feed, study) == (False, [0, 3])
    assert feed.unfinished == {1, 4}
    assert numbers(feed, study) == (False, [])


def test_a_study_in_the_place_of_a_deleted_one_is_noticed() -> None:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage)
    feed = TrialFeed()
    finished(study, 3)
    assert numbers(feed, study) == (True, [0, 1, 2])
    other = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    finished(other, 3)
    assert study._study_id == other._study_id
    assert numbers(feed, other) == (True, [0, 1, 2])
    assert numbers(feed, other) == (False, [])


def test_trials_that_became_others_are_noticed() -> None:
    one, other = optuna.create_study(), optuna.create_study()
    finished(one, 3)
    finished(other, 5)
    feed = TrialFeed()
    feed.look(one, one.get_trials(deepcopy=False))
    assert feed.look(one, one.get_trials()) is not None  # equal ones are the same
    news = feed.look(one, other.get_trials(deepcopy=False))
    assert news is not None
    assert news.begins_anew
    assert len(news.finished) == 5


def test_fewer_trials_than_before_are_looked_at_from_the_beginning() -> None:
    study = optuna.create_study()
    finished(study, 2)
    waiting = study.ask()
    feed = TrialFeed()
    assert numbers(feed, study) == (True, [0, 1])
    news = feed.look(study, study.get_trials()[:2])
    assert news is not None
    assert news.begins_anew
    assert not feed.unfinished
    study.tell(waiting, 1.0)
    assert numbers(feed, study) == (False, [2])


def test_trials_with_gaps_cannot_be_followed() -> None:
    study = optuna.create_study()
    finished(study, 3)
    feed = TrialFeed()
    assert feed.look(study, study.get_trials()[1:]) is None
    assert numbers(feed, study) == (False, [0, 1, 2])
