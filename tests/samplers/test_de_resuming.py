"""Killing a study's process and going on with another one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
from de_processes import (
    SIZE,
    SPACE,
    STUDY,
    check_candidates,
    completed,
    evaluate,
    expected_params,
    kill,
    load,
    rdb_storage,
    start,
    wait_for,
    work,
)
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from wpo_optuna.samplers import DESampler
from wpo_optuna.samplers.candidate_claims import CLAIM_KEY, INDEPENDENT
from wpo_optuna.sqlite import SQLiteStorage

WRITES = ("create_new_trial", "set_trial_system_attr", "set_trial_param", "set_trial_state_values")


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resuming") / "empty.db"
    optuna.create_study(storage=rdb_storage(path), study_name=STUDY)
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty_database, tmp_path / "study.db"))


def killed_at_write(storage: BaseStorage, n_writes: int, *, before: bool) -> BaseStorage:
    """A storage whose process is killed at its n-th write."""
    remaining = iter(range(n_writes, 0, -1))

    def counted(write: Any) -> Any:
        def perform(*arguments: Any, **options: Any) -> Any:
            is_last = next(remaining) == 1
            if is_last and before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = write(*arguments, **options)
            if is_last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return perform

    for name in WRITES:
        setattr(storage, name, counted(getattr(storage, name)))
    return storage


# A trial of two parameters makes five writes: these are all points of three trials.
@pytest.mark.parametrize("n_writes", range(1, 16))
def test_a_kill_between_any_two_writes_changes_no_completed_trial(
    database: Path, n_writes: int
) -> None:
    def open_killer() -> BaseStorage:
        return killed_at_write(SQLiteStorage(database), n_writes, before=False)

    process = start(work, open_killer, 100)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    work(lambda: SQLiteStorage(database), 14)
    study = load(SQLiteStorage(database))
    assert [trial.params for trial in completed(study)] == expected_params(14)
    check_candidates(study)


@pytest.mark.parametrize(("open_storage", "n_trials"), [(rdb_storage, 10), (SQLiteStorage, 30)])
def test_kills_at_any_moment_change_no_completed_trial(
    database: Path, open_storage: Callable[[Path], BaseStorage], n_trials: int
) -> None:
    moments = random.Random(0)
    study = load(SQLiteStorage(database))
    n_kills = 0
    while len(completed(study)) < n_trials:
        n_before = len(study.trials)
        process = start(work, lambda: open_storage(database), n_trials, slowly)
        wait_for(lambda: len(study.trials) >= n_before + 2 or not process.is_alive())  # noqa: B023
        time.sleep(moments.uniform(0.0, 0.05))
        n_kills += process.is_alive()
        kill(process)
    assert n_kills >= 2
    assert [(trial.params, trial.value) for trial in completed(study)] == [
        (params, params["x0"] ** 2 + params["x1"] ** 2) for params in expected_params(n_trials)
    ]
    check_candidates(study)


def slowly(trial: optuna.Trial) -> float:
    time.sleep(0.01)
    return evaluate(trial)


def test_a_kill_changes_no_trial_where_the_search_space_has_to_be_found_out(
    database: Path,
) -> None:
    def objective(trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("kind", ["a", "b", "c"])
        return evaluate(trial) + ord(kind)

    options: dict[str, Any] = {"search_space": None}
    uninterrupted = optuna.create_study(sampler=DESampler(seed=1, popsize=3))
    uninterrupted.optimize(objective, n_trials=16)
    for n_writes in (2, 5, 9, 20):
        process = start(
            work,
            lambda n=n_writes: killed_at_write(SQLiteStorage(database), n, before=True),
            100,
            objective,
            **options,
        )
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    work(lambda: SQLiteStorage(database), 16, objective, **options)
    study = load(SQLiteStorage(database), **options)
    assert [(t.params, t.value) for t in completed(study)] == [
        (t.params, t.value) for t in uninterrupted.trials
    ]


def test_more_kills_than_attempts_are_no_failure_of_the_candidate(database: Path) -> None:
    def open_killer() -> BaseStorage:
        return killed_at_write(SQLiteStorage(database), 5, before=True)

    for _ in range(4):
        process = start(work, open_killer, 100, max_attempts=1)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    work(lambda: SQLiteStorage(database), 12, max_attempts=1)
    study = load(SQLiteStorage(database), max_attempts=1)
    assert [trial.params for trial in completed(study)] == expected_params(12)
    assert len(study.get_trials(states=(TrialState.FAIL,))) == 4


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_a_trial_that_could_not_be_told_is_made_good_by_the_same_process(n_jobs: int) -> None:
    class Failing(optuna.storages.InMemoryStorage):
        fails_at = 4

        def set_trial_state_values(self, *arguments: Any, **options: Any) -> bool:
            self.fails_at -= 1
            if self.fails_at == 0:
                raise optuna.exceptions.StorageInternalError("the disk is full")
            return super().set_trial_state_values(*arguments, **options)

    storage = Failing()
    optuna.create_study(storage=storage, study_name=STUDY)
    study = load(storage)
    # Optuna turns the error into an AssertionError, or loses it with the thread.
    with suppress(optuna.exceptions.StorageInternalError, AssertionError):
        study.optimize(evaluate, n_trials=SIZE, n_jobs=n_jobs)
    assert storage.fails_at <= 0
    study.optimize(evaluate, n_trials=3 * SIZE - len(completed(study)), n_jobs=n_jobs)
    assert len(study.get_trials(states=(TrialState.FAIL,))) == 1
    assert len(completed(study)) == 3 * SIZE
    check_candidates(study)


def test_a_running_trial_that_is_handed_on_half_way_keeps_its_candidate() -> None:
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(storage=storage, study_name=STUDY)
    study, other_study = load(storage), load(storage)
    for _ in range(2 * SIZE):
        trial = study.ask({"x0": SPACE["x0"]})
        handed_on = optuna.Trial(other_study, trial._trial_id)
        other_study.tell(handed_on, evaluate(handed_on))
    assert [trial.params for trial in completed(study)] == expected_params(2 * SIZE)


def test_a_trial_whose_claim_could_not_be_written_loses_no_candidate() -> None:
    class Failing(optuna.storages.InMemoryStorage):
        n_failures = 2

        def set_trial_system_attr(self, *arguments: Any, **options: Any) -> None:
            if self.n_failures > 0:
                self.n_failures -= 1
                raise optuna.exceptions.StorageInternalError("the disk is full")
            super().set_trial_system_attr(*arguments, **options)

    storage = Failing()
    optuna.create_study(storage=storage, study_name=STUDY)
    study = load(storage)
    for _ in range(2):
        with pytest.raises(optuna.exceptions.StorageInternalError):
            study.optimize(evaluate, n_trials=1)
    study.optimize(evaluate, n_trials=14)
    assert [trial.params for trial in completed(study)] == expected_params(14)


def test_a_batch_that_was_undone_is_asked_again(database: Path) -> None:
    storage = SQLiteStorage(database)
    study = load(storage)
    study.optimize(evaluate, n_trials=8)
    with suppress(ZeroDivisionError), storage.batch(study._study_id):
        study.optimize(evaluate, n_trials=9)
        raise ZeroDivisionError
    assert len(study.trials) == 8
    study.optimize(evaluate, n_trials=12)
    assert [trial.params for trial in completed(study)] == expected_params(20)


def test_claims_of_a_batch_that_was_undone_are_forgotten(database: Path) -> None:
    storage, other = SQLiteStorage(database), SQLiteStorage(database)
    study, other_study = load(storage), load(other)
    with suppress(ZeroDivisionError), storage.batch(study._study_id):
        for _ in range(4):
            study.ask(SPACE)
        raise ZeroDivisionError
    # The other sampler's trials get the numbers, and claim the candidates, that were undone.
    for _ in range(2):
        other_study.ask(SPACE)
    for _ in range(4):
        study.ask(SPACE)
    claims = [trial.system_attrs[CLAIM_KEY] for trial in study.trials]
    assert [(claim["generation"], claim["index"]) for claim in claims] == [
        (0, index) for index in range(6)
    ]


def test_inside_a_batch_nobody_waits(database: Path) -> None:
    storage, other = SQLiteStorage(database), SQLiteStorage(database)
    study, other_study = load(storage), load(other)
    process = start(work_until_killed, database)
    wait_for(lambda: study.sampler.candidates_left(study) == 0)
    with storage.batch(study._study_id):
        trial = study.ask(SPACE)
    claim = study.trials[trial.number].system_attrs[CLAIM_KEY]
    assert claim["generation"] == INDEPENDENT
    kill(process)
    assert other_study.sampler.candidates_left(other_study) == SIZE


def work_until_killed(database: Path) -> None:
    study = load(SQLiteStorage(database))
    for _ in range(SIZE):
        study.ask(SPACE)
    time.sleep(60)
