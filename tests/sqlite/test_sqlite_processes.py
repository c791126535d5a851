"""Several threads, processes and programs on one file."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from wpo_optuna.sqlite import SQLiteStorage, StorageError

MINIMIZE = [StudyDirection.MINIMIZE]
UNIT = FloatDistribution(0, 1)
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def storage(tmp_path: Path) -> SQLiteStorage:
    return SQLiteStorage(tmp_path / "study.db")


def _run_all(*targets: Callable[[], None]) -> None:
    """Run each in a process of its own; all must succeed."""
    processes = [FORK.Process(target=target) for target in targets]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def _write_trials(storage: optuna.storages.BaseStorage, worker: str, n_trials: int) -> None:
    for index in range(n_trials):
        trial_id = storage.create_new_trial(1)
        storage.set_trial_param(trial_id, "x", index / n_trials, UNIT)
        storage.set_trial_user_attr(trial_id, "worker", [worker, index])
        storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [float(index)])


def _write_batches(storage: SQLiteStorage, worker: str, n_batches: int, size: int) -> None:
    for batch in range(n_batches):
        with storage.batch(1):
            trial_ids = [storage.create_new_trial(1) for _ in range(size)]
            for trial_id in trial_ids:
                storage.set_trial_param(trial_id, "x", 0.5, UNIT)
        with storage.batch(1):
            for index, trial_id in enumerate(trial_ids):
                storage.set_trial_user_attr(trial_id, "worker", [worker, batch * size + index])
                storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])


def test_writers_in_batches_one_by_one_and_plain_rdb_storage_together_lose_nothing(
    storage: SQLiteStorage,
) -> None:
    storage.create_new_study(MINIMIZE, "shared")
    path = storage.path
    plain_url = f"sqlite:///{path}"
    patient = {"connect_args": {"timeout": 60}}
    _run_all(
        lambda: _write_batches(storage, "inherited", 10, 30),
        lambda: _write_batches(SQLiteStorage(path), "own", 10, 30),
        lambda: _write_trials(SQLiteStorage(path), "single", 40),
        lambda: _write_trials(RDBStorage(plain_url, patient), "plain", 15),
    )
    trials = RDBStorage(plain_url).get_all_trials(1)
    assert sorted(trial.number for trial in trials) == list(range(300 + 300 + 40 + 15))
    assert sorted(tuple(trial.user_attrs["worker"]) for trial in trials) == sorted(
        (worker, index)
        for worker, n in (("inherited", 300), ("own", 300), ("single", 40), ("plain", 15))
        for index in range(n)
    )
    assert all(trial.state == TrialState.COMPLETE and trial.params for trial in trials)
    # The parent's cache, older than all of this, comes to the same.
    assert storage.get_all_trials(1) == sorted(trials, key=lambda trial: trial._trial_id)


def test_each_waiting_trial_is_taken_by_exactly_one_process(storage: SQLiteStorage) -> None:
    study = optuna.create_study(storage=storage, study_name="queue")
    n_trials = 60
    with storage.batch(1):
        for index in range(n_trials):
            study.enqueue_trial({"x": index / n_trials})

    def work() -> None:
        own = optuna.load_study(study_name="queue", storage=SQLiteStorage(storage.path))
        while own.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            trial = own.ask({"x": UNIT})
            trial.set_user_attr("by", os.getpid())
            own.tell(trial, trial.params["x"])

    _run_all(work, work, work)
    queued = study.trials[:n_trials]
    assert [trial.params["x"] for trial in queued] == [i / n_trials for i in range(n_trials)]
    assert all(trial.state == TrialState.COMPLETE for trial in queued)
    # Whoever saw the queue's last trial and lost it asked for one of its own; no more than that.
    assert len(study.trials) <= n_trials + 3


def test_many_processes_may_create_the_same_new_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    barrier = FORK.Barrier(6)

    def create() -> None:
        barrier.wait()
        optuna.create_study(storage=SQLiteStorage(path), study_name="same", load_if_exists=True)

    _run_all(*[create] * 6)
    assert [study.study_name for study in SQLiteStorage(path).get_all_studies()] == ["same"]
    assert RDBStorage(f"sqlite:///{path}").get_n_trials(1) == 0


def test_a_forked_process_goes_on_after_its_parent_has_closed_the_file(
    storage: SQLiteStorage,
) -> None:
    """The parent, taking itself for the last, must not delete the child's write-ahead log."""
    storage.create_new_study(MINIMIZE)
    storage.create_new_trial(1)
    closed = FORK.Event()

    def write_before_and_after() -> None:
        storage.create_new_trial(1)
        assert closed.wait(timeout=30)
        for _ in range(20):
            storage.create_new_trial(1)
        os.kill(os.getpid(), 9)

    child = FORK.Process(target=write_before_and_after)
    child.start()
    while storage.get_n_trials(1) < 2:
        time.sleep(0.01)
    storage.close()
    closed.set()
    child.join()
    assert SQLiteStorage(storage.path).get_n_trials(1) == 22


def test_a_fork_waits_for_the_batch_of_another_thread(storage: SQLiteStorage) -> None:
    storage.create_new_study(MINIMIZE)
    inside = threading.Event()

    def batch() -> None:
        with storage.batch(1):
            storage.create_new_trial(1)
            inside.set()
            time.sleep(0.3)
            storage.create_new_trial(1)

    thread = threading.Thread(target=batch)
    thread.start()
    inside.wait()
    _run_all(lambda: storage.create_new_trial(1) and None)
    thread.join()
    assert [trial.number for trial in storage.get_all_trials(1)] == [0, 1, 2]


def test_a_process_forked_inside_a_batch_is_refused_and_the_batch_is_whole(
    storage: SQLiteStorage,
) -> None:
    storage.create_new_study(MINIMIZE)

    def write() -> None:
        with pytest.raises(Exception, match="forked while a batch was open"):
            storage.create_new_trial(1)
        assert SQLiteStorage(storage.path).get_n_trials(1) == 0

    with storage.batch(1):
        storage.create_new_trial(1)
        _run_all(write)
        storage.create_new_trial(1)
    assert SQLiteStorage(storage.path).get_n_trials(1) == 2


def test_opening_the_file_again_does_not_drop_the_locks_of_a_batch(
    storage: SQLiteStorage,
) -> None:
    """A process loses all its locks on a file when it closes any descriptor of it."""
    storage.create_new_study(MINIMIZE)

    def try_to_write() -> None:
        impatient = SQLiteStorage(storage.path, busy_timeout=0.2)
        with pytest.raises(StorageError, match="locked"):
            impatient.create_new_trial(1)

    other = FORK.Process(target=_after, args=(opened := FORK.Event(), try_to_write))
    other.start()
    with storage.batch(1):
        storage.create_new_trial(1)
        again = SQLiteStorage(storage.path)
        assert again.get_n_trials(1) == 0
        again.close()
        opened.set()
        other.join()
    assert other.exitcode == 0
    assert again.get_n_trials(1) == 1


def _after(event: Event, action: Callable[[], None]) -> None:
    assert event.wait(timeout=30)
    action()


def test_threads_of_one_study_share_the_storage(storage: SQLiteStorage) -> None:
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=1))

    def objective(trial: optuna.Trial) -> float:
        trial.report(0.5, 0)
        trial.set_user_attr("thread", threading.get_ident())
        return trial.suggest_float("x", 0, 1)

    study.optimize(objective, n_trials=80, n_jobs=4)
    trials = RDBStorage(f"sqlite:///{storage.path}").get_all_trials(1)
    assert [trial.number for trial in trials] == list(range(80))
    assert [trial.values for trial in trials] == [[trial.params["x"]] for trial in trials]
    assert study.trials == trials


def test_a_pickled_storage_works_in_a_spawned_process(storage: SQLiteStorage) -> None:
    storage.create_new_study(MINIMIZE)
    storage.create_new_trial(1)
    spawned = multiprocessing.get_context("spawn").Process(
        target=SQLiteStorage.create_new_trial, args=(storage, 1)
    )
    spawned.start()
    spawned.join(timeout=60)
    assert spawned.exitcode == 0
    assert storage.get_n_trials(1) == 2
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.get_all_trials(1) == storage.get_all_trials(1)
    assert (copy.path, repr(copy)) == (storage.path, repr(storage))


def test_a_study_that_another_program_deleted_and_made_anew_is_read_anew(
    storage: SQLiteStorage,
) -> None:
    other = RDBStorage(f"sqlite:///{storage.path}")
    study_id = storage.create_new_study(MINIMIZE, "same")
    for value in (1.0, 2.0):
        trial_id = storage.create_new_trial(study_id)
        storage.set_trial_user_attr(trial_id, "old", True)
        storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [value])
    assert storage.get_best_trial(study_id).value == 1.0
    other.delete_study(study_id)
    assert other.create_new_study(MINIMIZE, "same") == study_id
    for value in (4.0, 3.0):
        again = other.create_new_trial(study_id)
        other.set_trial_state_values(again, TrialState.COMPLETE, [value])
    assert again == trial_id  # SQLite gives the ids out again, which is what makes this hard.
    assert [t.values for t in storage.get_all_trials(study_id)] == [[4.0], [3.0]]
    assert storage.get_trial(trial_id).user_attrs == {}
    assert storage.get_best_trial(study_id).value == 3.0


def test_a_running_trial_of_a_study_deleted_elsewhere_is_unknown(storage: SQLiteStorage) -> None:
    other = SQLiteStorage(storage.path)
    study_id = storage.create_new_study(MINIMIZE)
    trial_id = storage.create_new_trial(study_id)
    other.delete_study(study_id)
    for call in (
        lambda: storage.get_trial(trial_id),
        lambda: storage.set_trial_user_attr(trial_id, "a", 1),
        lambda: storage.get_all_trials(study_id),
        lambda: storage.create_new_trial(study_id),
    ):
        with pytest.raises(KeyError):
            call()
    assert other.create_new_study([StudyDirection.MAXIMIZE]) == study_id
    assert storage.get_study_directions(study_id) == [StudyDirection.MAXIMIZE]
    assert storage.get_trial(storage.create_new_trial(study_id)).number == 0


def test_the_earliest_of_equally_good_trials_is_the_best(storage: SQLiteStorage) -> None:
    study_id = storage.create_new_study(MINIMIZE)
    early, late = storage.create_new_trial(study_id), storage.create_new_trial(study_id)
    for trial_id in (late, early):
        storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])
    assert storage.get_best_trial(study_id).number == 0
    assert SQLiteStorage(storage.path).get_best_trial(study_id).number == 0


def test_a_dead_workers_trial_is_failed_for_want_of_heartbeats_and_retried(
    tmp_path: Path,
) -> None:
    options = {
        "heartbeat_interval": 1,
        "grace_period": 1,
        "heartbeat_stale_trial_callback": optuna.storages.RetryHeartbeatStaleTrialCallback(
            max_retry=1
        ),
    }
    path = tmp_path / "study.db"
    study = optuna.create_study(storage=SQLiteStorage(path, **options), study_name="alive")

    def die(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 0, 1)
        time.sleep(0.2)
        os.kill(os.getpid(), 9)
        return 0.0

    worker = FORK.Process(target=lambda: study.optimize(die, n_trials=1))
    worker.start()
    worker.join()
    assert study.trials[0].state == TrialState.RUNNING
    time.sleep(2.1)  # The table's clock counts whole seconds.
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    dead, retried = study.trials
    assert dead.state == TrialState.FAIL
    assert (retried.state, retried.params) == (TrialState.COMPLETE, dead.params)
    heartbeats = RDBStorage(f"sqlite:///{path}", heartbeat_interval=1, grace_period=60)
    assert heartbeats._get_stale_trial_ids(1) == []
