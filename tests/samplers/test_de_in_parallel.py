"""Several processes and threads on one study."""

from __future__ import annotations

import random
import threading
import time
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
    make_sampler,
    rdb_storage,
    start,
    wait_for,
    work,
)
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from wpo_optuna.samplers.candidate_claims import CLAIM_KEY
from wpo_optuna.sqlite import SQLiteStorage


def slowly(trial: optuna.Trial) -> float:
    time.sleep(random.uniform(0.0, 0.01))
    return evaluate(trial)


def open_storage(kind: str, directory: Path) -> BaseStorage:
    if kind == "journal":
        return JournalStorage(JournalFileBackend(str(directory / "study.log")))
    if kind == "rdb":
        return rdb_storage(directory / "study.db")
    return SQLiteStorage(directory / "study.db")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.mark.parametrize(
    ("kind", "n_trials"), [("sqlite", 5 * SIZE), ("rdb", 3 * SIZE), ("journal", 5 * SIZE)]
)
def test_processes_share_the_candidates_out_among_themselves(
    tmp_path: Path, kind: str, n_trials: int
) -> None:
    storage = open_storage(kind, tmp_path)
    optuna.create_study(storage=storage, study_name=STUDY)
    processes = [
        start(work, lambda: open_storage(kind, tmp_path), n_trials, slowly) for _ in range(3)
    ]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    study = load(storage)
    check_candidates(study)
    assert all(trial.system_attrs[CLAIM_KEY]["space"] for trial in study.trials)
    assert len({trial.system_attrs[CLAIM_KEY]["owner"][4] for trial in completed(study)}) > 1


def test_processes_find_out_the_search_space_together(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "study.db")
    optuna.create_study(storage=storage, study_name=STUDY)
    processes = [
        start(
            work,
            lambda: SQLiteStorage(tmp_path / "study.db"),
            4 * SIZE,
            slowly,
            search_space=None,
        )
        for _ in range(3)
    ]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    study = load(storage, search_space=None)
    check_candidates(study)
    draws = [trial for trial in study.trials if not trial.system_attrs[CLAIM_KEY]["space"]]
    assert 1 <= len(draws) <= 6
    assert len({trial.params["x0"] for trial in draws}) == len(draws)


def test_processes_that_end_or_die_do_not_stop_the_others(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "study.db")
    optuna.create_study(storage=storage, study_name=STUDY)
    study = load(storage)
    n_trials = 40 * SIZE
    rng = random.Random(3)
    processes = [
        start(work, lambda: SQLiteStorage(tmp_path / "study.db"), n_trials, slowly)
        for _ in range(3)
    ]
    n_kills = 0
    while len(completed(study)) < n_trials - 2 * SIZE:
        n_before = len(completed(study))
        wait_for(lambda: len(completed(study)) >= n_before + 12)  # noqa: B023
        victim = rng.randrange(len(processes))
        time.sleep(rng.uniform(0.0, 0.02))
        kill(processes[victim])
        n_kills += 1
        processes[victim] = start(
            work, lambda: SQLiteStorage(tmp_path / "study.db"), n_trials, slowly
        )
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert n_kills >= 5
    check_candidates(study)


@pytest.mark.parametrize("kind", ["sqlite", "rdb", "journal"])
def test_the_last_candidates_of_a_dead_process_are_given_to_one_that_waits(
    tmp_path: Path, kind: str
) -> None:
    storage = open_storage(kind, tmp_path)
    optuna.create_study(storage=storage, study_name=STUDY)
    study = load(storage)

    def never_finish(trial: optuna.Trial) -> float:
        evaluate(trial)
        time.sleep(60)
        raise AssertionError

    hung = start(work, lambda: open_storage(kind, tmp_path), 100, never_finish)
    wait_for(lambda: len(study.trials) == 1 and len(study.trials[0].params) == 2)
    waiting = start(work, lambda: open_storage(kind, tmp_path), 2 * SIZE)
    # The other five are done, a sixth trial waits for the first candidate.
    wait_for(lambda: len(completed(study)) == SIZE - 1 and len(study.trials) == SIZE + 1)
    time.sleep(0.2)
    assert waiting.is_alive()
    assert CLAIM_KEY not in study.trials[-1].system_attrs
    kill(hung)
    waiting.join(30)
    assert waiting.exitcode == 0
    assert study.trials[0].state == TrialState.FAIL
    assert study.trials[SIZE].system_attrs[CLAIM_KEY]["index"] == 0
    check_candidates(study)


@pytest.mark.parametrize("n_jobs", [2, 5])
def test_threads_of_one_sampler_share_the_candidates_out(n_jobs: int) -> None:
    study = optuna.create_study(sampler=make_sampler())
    study.optimize(slowly, n_trials=10 * SIZE, n_jobs=n_jobs)
    check_candidates(study)
    assert len(completed(study)) == 10 * SIZE


class Contended(InMemoryStorage):
    """Gives other threads time between any two accesses, so that claims collide."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._pauses = random.Random(seed)
        self.n_collisions = 0

    def __getattribute__(self, name: str) -> Any:
        if name in ("set_trial_system_attr", "get_trial"):
            time.sleep(self._pauses.choice([0.0, 0.0, 0.0002, 0.001]))
        return super().__getattribute__(name)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.n_collisions += key == CLAIM_KEY and value is None
        super().set_trial_system_attr(trial_id, key, value)


@pytest.mark.parametrize("seed", range(4))
def test_samplers_that_collide_all_the_time_still_evaluate_every_candidate_once(seed: int) -> None:
    # Each thread has its own sampler, and so knows of the others through the storage alone.
    storage = Contended(seed)
    optuna.create_study(storage=storage, study_name=STUDY)

    def run() -> None:
        study = load(storage)
        study.optimize(evaluate, n_trials=3 * SIZE)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    study = load(storage)
    check_candidates(study)
    assert len(completed(study)) == 18 * SIZE
    assert storage.n_collisions > 0


def test_two_processes_that_ask_before_they_tell_do_not_wait_for_each_other(
    tmp_path: Path,
) -> None:
    storage = SQLiteStorage(tmp_path / "study.db")
    optuna.create_study(storage=storage, study_name=STUDY)

    def ask_and_tell() -> None:
        study = load(SQLiteStorage(tmp_path / "study.db"))
        while len(completed(study)) < 8 * SIZE:
            trials = [study.ask(SPACE) for _ in range(4)]
            time.sleep(0.01)
            for trial in trials:
                study.tell(trial, sum(value**2 for value in trial.params.values()))

    processes = [start(ask_and_tell) for _ in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    evolved = [
        (trial.system_attrs[CLAIM_KEY]["generation"], trial.system_attrs[CLAIM_KEY]["index"])
        for trial in completed(load(storage))
        if trial.system_attrs[CLAIM_KEY]["generation"] >= 0
    ]
    assert len(evolved) == len(set(evolved))
    assert len(evolved) >= 3 * SIZE


def test_threads_do_not_wait_for_trials_asked_before_study_optimize() -> None:
    study = optuna.create_study(sampler=make_sampler())
    outstanding = study.ask(SPACE)
    study.optimize(evaluate, n_trials=SIZE + 3, n_jobs=2)
    claims = [trial.system_attrs[CLAIM_KEY] for trial in study.trials]
    assert sorted(claim["index"] for claim in claims if claim["generation"] == 0) == [*range(SIZE)]
    assert sum(claim["generation"] == -1 for claim in claims) == 4
    study.tell(outstanding, 0.0)
    assert study.sampler.generation(study) == 1


def test_a_trial_on_an_unknown_host_is_failed_when_it_is_stale(tmp_path: Path) -> None:
    storage = InMemoryStorage()
    optuna.create_study(storage=storage, study_name=STUDY)
    study = load(storage, stale_after=0.5)
    trial = study.ask(SPACE)
    claim = study.trials[0].system_attrs[CLAIM_KEY]
    elsewhere = claim | {"owner": ["elsewhere", *claim["owner"][1:]]}
    storage.set_trial_system_attr(trial._trial_id, CLAIM_KEY, elsewhere)
    study = load(storage, stale_after=0.5)
    began = time.monotonic()
    study.optimize(evaluate, n_trials=SIZE)
    assert time.monotonic() - began > 0.3
    assert study.trials[0].state == TrialState.FAIL
    assert {tuple(t.params.items()) for t in completed(study)} == {
        tuple(params.items()) for params in expected_params(SIZE)
    }


def test_with_heartbeat_a_trial_on_an_unknown_host_is_left_to_it(tmp_path: Path) -> None:
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{tmp_path}/study.db", heartbeat_interval=1, grace_period=2
    )
    optuna.create_study(storage=storage, study_name=STUDY)
    study = load(storage, stale_after=0.0)
    trial_id = study.ask(SPACE)._trial_id
    claim = study.trials[0].system_attrs[CLAIM_KEY]
    elsewhere = claim | {"owner": ["elsewhere", *claim["owner"][1:]]}
    storage.set_trial_system_attr(trial_id, CLAIM_KEY, elsewhere)
    storage.record_heartbeat(trial_id)
    study = load(storage, stale_after=0.0)
    began = time.monotonic()
    study.optimize(evaluate, n_trials=SIZE)
    assert time.monotonic() - began > 1.0
    assert study.trials[0].state == TrialState.FAIL
    check_candidates(study)
