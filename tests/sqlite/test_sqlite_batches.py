"""Batches: one transaction, seen by its own thread, undone as a whole."""

# ruff: noqa: PT012  (what is tested is what becomes of a block that raises)

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from wpo_optuna.sqlite import SQLiteStorage, StorageError
from wpo_optuna.storage import transaction

MINIMIZE = [StudyDirection.MINIMIZE]
UNIT = FloatDistribution(0, 1)


@pytest.fixture
def storage(tmp_path: Path) -> SQLiteStorage:
    return SQLiteStorage(tmp_path / "study.db")


@pytest.fixture
def study_id(storage: SQLiteStorage) -> int:
    return storage.create_new_study(MINIMIZE, "batched")


def _stored(storage: SQLiteStorage, study_id: int) -> list[tuple]:
    """What another process sees: number, state, parameters, attributes, values."""
    other = SQLiteStorage(storage.path)
    return [
        (t.number, t.state, t.params, t.user_attrs, t.values)
        for t in other.get_all_trials(study_id)
    ]


def test_nothing_is_visible_to_others_before_the_end_and_all_after(
    storage: SQLiteStorage, study_id: int
) -> None:
    with storage.batch(study_id):
        for _ in range(3):
            trial_id = storage.create_new_trial(study_id)
            storage.set_trial_param(trial_id, "x", 0.25, UNIT)
            storage.set_trial_user_attr(trial_id, "tnmse", 0.1)
            storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])
        assert _stored(storage, study_id) == []
    finished = (TrialState.COMPLETE, {"x": 0.25}, {"tnmse": 0.1}, [1.0])
    assert _stored(storage, study_id) == [(number, *finished) for number in range(3)]


def test_a_batch_sees_its_own_writes(storage: SQLiteStorage, study_id: int) -> None:
    with storage.batch(study_id):
        trial_id = storage.create_new_trial(study_id)
        storage.set_trial_param(trial_id, "x", 0.25, UNIT)
        storage.set_trial_system_attr(trial_id, "a", [1])
        storage.set_trial_intermediate_value(trial_id, 3, 0.5)
        storage.set_study_user_attr(study_id, "n", 1)
        other_study = storage.create_new_study(MINIMIZE, "made inside")
        other_trial = storage.create_new_trial(other_study)
        trial = storage.get_trial(trial_id)
        assert trial.params == {"x": 0.25}
        assert trial.system_attrs == {"a": [1]}
        assert trial.intermediate_values == {3: 0.5}
        assert storage.get_study_user_attrs(study_id) == {"n": 1}
        assert storage.get_study_id_from_name("made inside") == other_study
        assert storage.get_trial(other_trial).number == 0
        assert storage.get_n_trials(study_id, TrialState.RUNNING) == 1
        assert [study.study_name for study in storage.get_all_studies()] == [
            "batched",
            "made inside",
        ]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, KeyError])
def test_an_exception_undoes_the_batch_in_the_file_and_in_memory(
    storage: SQLiteStorage, study_id: int, error: type[BaseException]
) -> None:
    kept = storage.create_new_trial(study_id)
    before = storage.get_all_trials(study_id)
    assert storage.rollbacks == 0
    with pytest.raises(error), storage.batch(study_id):
        storage.set_trial_user_attr(kept, "undone", 1)
        storage.set_trial_state_values(kept, TrialState.COMPLETE, [1.0])
        storage.create_new_trial(study_id)
        storage.set_study_user_attr(study_id, "undone", 1)
        raise error
    assert storage.rollbacks == 1
    assert storage.get_all_trials(study_id) == before
    assert storage.get_study_user_attrs(study_id) == {}
    with pytest.raises(ValueError):
        storage.get_best_trial(study_id)
    again = storage.create_new_trial(study_id)
    assert storage.get_trial(again).number == 1
    assert [row[0] for row in _stored(storage, study_id)] == [0, 1]


def test_a_study_made_in_an_undone_batch_is_gone(storage: SQLiteStorage, study_id: int) -> None:
    with pytest.raises(RuntimeError), storage.batch(study_id):
        made = storage.create_new_study(MINIMIZE, "undone")
        storage.create_new_trial(made)
        raise RuntimeError
    with pytest.raises(KeyError):
        storage.get_n_trials(made)
    with pytest.raises(KeyError):
        storage.get_study_id_from_name("undone")


def test_a_study_deleted_in_an_undone_batch_is_back(storage: SQLiteStorage, study_id: int) -> None:
    storage.create_new_trial(study_id)
    with pytest.raises(RuntimeError), storage.batch(study_id):
        storage.delete_study(study_id)
        with pytest.raises(KeyError):
            storage.get_n_trials(study_id)
        raise RuntimeError
    assert storage.get_n_trials(study_id) == 1


def test_nested_batches_are_one_transaction(storage: SQLiteStorage, study_id: int) -> None:
    with storage.batch(study_id):
        storage.create_new_trial(study_id)
        with storage.batch(study_id):
            storage.create_new_trial(study_id)
        assert _stored(storage, study_id) == []
    assert len(_stored(storage, study_id)) == 2


def test_an_inner_batch_that_fails_undoes_the_outer_even_if_its_exception_is_swallowed(
    storage: SQLiteStorage, study_id: int
) -> None:
    with pytest.raises(StorageError, match="the batch was undone"), storage.batch(study_id):
        storage.create_new_trial(study_id)
        with pytest.raises(ValueError), storage.batch(study_id):
            storage.create_new_trial(study_id)
            raise ValueError
    assert storage.get_n_trials(study_id) == 0
    assert _stored(storage, study_id) == []


def test_a_refused_call_leaves_the_batch_intact(storage: SQLiteStorage, study_id: int) -> None:
    finished = storage.create_new_trial(study_id)
    storage.set_trial_param(finished, "x", 0.5, UNIT)
    storage.set_trial_state_values(finished, TrialState.COMPLETE, [1.0])
    with storage.batch(study_id):
        trial_id = storage.create_new_trial(study_id)
        with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
            storage.set_trial_state_values(finished, TrialState.FAIL)
        with pytest.raises(KeyError):
            storage.set_trial_user_attr(10**6, "a", 1)
        with pytest.raises(ValueError):
            storage.set_trial_param(trial_id, "x", 0, optuna.distributions.IntDistribution(0, 1))
        with pytest.raises(optuna.exceptions.DuplicatedStudyError):
            storage.create_new_study(MINIMIZE, "batched")
    assert [row[1] for row in _stored(storage, study_id)] == [
        TrialState.COMPLETE,
        TrialState.RUNNING,
    ]


def test_a_batch_of_an_unknown_study_is_refused(storage: SQLiteStorage) -> None:
    with pytest.raises(KeyError), storage.batch(99):
        pytest.fail("the block must not run")
    assert storage.create_new_study(MINIMIZE) == 1


def test_a_row_that_sqlite_refuses_undoes_the_batch_and_the_storage_goes_on(
    storage: SQLiteStorage, study_id: int
) -> None:
    with pytest.raises(OverflowError), storage.batch(study_id):
        trial_id = storage.create_new_trial(study_id)
        storage.set_trial_intermediate_value(trial_id, 2**70, 0.5)
    assert storage.get_n_trials(study_id) == 0
    storage.create_new_trial(study_id)
    assert len(_stored(storage, study_id)) == 1


def test_other_threads_wait_for_the_end_of_a_batch_and_never_join_it(
    storage: SQLiteStorage, study_id: int
) -> None:
    inside, numbers = threading.Event(), []

    def write() -> None:
        inside.wait()
        numbers.append(storage.get_trial(storage.create_new_trial(study_id)).number)

    thread = threading.Thread(target=write)
    thread.start()
    with pytest.raises(RuntimeError), storage.batch(study_id):
        storage.create_new_trial(study_id)
        inside.set()
        thread.join(timeout=0.2)
        assert thread.is_alive()
        raise RuntimeError
    thread.join()
    assert numbers == [0]
    assert len(_stored(storage, study_id)) == 1


def test_a_thread_kept_waiting_too_long_says_so(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "study.db", busy_timeout=0.1)
    study_id = storage.create_new_study(MINIMIZE)
    errors = []

    def write() -> None:
        try:
            storage.create_new_trial(study_id)
        except StorageError as error:
            errors.append(str(error))

    with storage.batch(study_id):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert len(errors) == 1
    assert "another thread of this process has kept a batch open" in errors[0]


def test_study_transaction_is_one_transaction_here_and_harmless_elsewhere(
    storage: SQLiteStorage,
) -> None:
    fast = optuna.create_study(storage=storage)
    with transaction(fast):
        fast.ask({"x": UNIT})
        assert _stored(storage, fast._study_id) == []
    assert len(_stored(storage, fast._study_id)) == 1
    in_memory = optuna.create_study()
    with transaction(in_memory):
        in_memory.ask({"x": UNIT})
    assert len(in_memory.trials) == 1


def test_a_batch_of_two_hundred_trials_is_one_commit(storage: SQLiteStorage, study_id: int) -> None:
    watcher = sqlite3.connect(storage.path)
    before = watcher.execute("PRAGMA data_version").fetchone()
    statements: list[str] = []
    storage._database._open().set_trace_callback(statements.append)
    with storage.batch(study_id):
        for _ in range(200):
            trial_id = storage.create_new_trial(study_id)
            for name in "abcdefghijklmnopqrst":
                storage.set_trial_param(trial_id, name, 0.5, UNIT)
    storage._database._open().set_trace_callback(None)
    assert watcher.execute("PRAGMA data_version").fetchone() != before
    assert [s for s in statements if s.startswith(("BEGIN", "COMMIT"))] == [
        "BEGIN IMMEDIATE",
        "COMMIT",
    ]
    assert watcher.execute("SELECT count(*) FROM trial_params").fetchone() == (4000,)
    watcher.close()
