"""What sampling costs does not depend on how many trials a study has."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import FrozenTrial, TrialState

from experiments.benchmark_de_sampler import (
    compare,
    evolved_trials,
    search_space,
    seconds_of_one_trial,
    study_with_history,
)
from wpo_optuna.samplers import DESampler
from wpo_optuna.sqlite import SQLiteStorage

SPACE = search_space(3)


@pytest.fixture(scope="module")
def trials() -> list[FrozenTrial]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return list(evolved_trials(6000, SPACE))


class Counted(InMemoryStorage):
    """Counts how often it is asked for what."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        if name.startswith(("get_", "set_")):
            self.calls[name] += 1
        return super().__getattribute__(name)


def calls_of_a_generation(trials: list[FrozenTrial]) -> Counter[str]:
    storage = Counted()
    study = study_with_history(storage, trials)
    study.sampler = DESampler(seed=1, search_space=SPACE)
    seconds_of_one_trial(study, SPACE)
    storage.calls.clear()
    for _ in range(45):
        seconds_of_one_trial(study, SPACE)
    return storage.calls


def test_the_storage_is_asked_equally_often_after_few_and_after_many_trials(
    trials: list[FrozenTrial],
) -> None:
    few, many = calls_of_a_generation(trials[:90]), calls_of_a_generation(trials)
    assert few == many
    assert few["get_all_trials"] == 0
    assert few["get_trial"] <= 10 * 45


def test_a_database_is_asked_for_equally_many_trials_after_few_and_after_many(
    tmp_path: Path, trials: list[FrozenTrial]
) -> None:
    def cost(name: str, history: list[FrozenTrial]) -> tuple[int, int]:
        study_with_history(SQLiteStorage(tmp_path / name), history)
        storage = _CachedStorage(RDBStorage(f"sqlite:///{tmp_path / name}"))
        study = optuna.load_study(
            study_name=None, storage=storage, sampler=DESampler(seed=1, search_space=SPACE)
        )
        seconds_of_one_trial(study, SPACE)
        counts = Counter[str]()
        read_trials = storage._backend._get_trials

        def counted(*arguments: Any, **options: Any) -> list[FrozenTrial]:
            found = read_trials(*arguments, **options)
            counts["trials"] += len(found)
            return found

        storage._backend._get_trials = counted  # type: ignore[method-assign]
        event = (storage._backend.engine, "before_cursor_execute")
        sqlalchemy.event.listen(*event, lambda *_: counts.update(["statements"]))
        for _ in range(20):
            seconds_of_one_trial(study, SPACE)
        return counts["trials"], counts["statements"]

    assert cost("few.db", trials[:90]) == cost("many.db", trials[:1500])


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_trial_takes_no_longer_after_many_trials(
    tmp_path: Path, trials: list[FrozenTrial], kind: str
) -> None:
    def open_storage(name: str) -> BaseStorage:
        return InMemoryStorage() if kind == "memory" else SQLiteStorage(tmp_path / f"{name}.db")

    few, many = compare(open_storage, [trials[:200], trials], SPACE, 90)
    # 30 times as many trials: a cost that grew with their number would show as a ratio of 30, and
    # medians of interleaved measurements differ by a few per cent.
    assert sorted(many[1:])[45] < 2.0 * sorted(few[1:])[45]


def test_enqueued_and_abandoned_trials_do_not_hide_the_finished_ones() -> None:
    study = optuna.create_study(sampler=DESampler(seed=1, search_space=SPACE, popsize=2))
    for _ in range(3):
        study._storage.create_new_trial(study._study_id)
    study.enqueue_trial({"x0": 0.5, "x1": 0.5, "x2": 0.5})
    for _ in range(13):
        trial = study.ask(SPACE)
        study.tell(trial, sum(trial.params.values()))
    finished = study.get_trials(states=(TrialState.COMPLETE,))
    assert len(finished) == 13
    assert study.sampler.generation(study) == 2
