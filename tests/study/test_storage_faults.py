"""Real faults: processes killed while they write, full disks, a database locked by others."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.sqlite import SQLiteStorage, StorageError
from wpo_optuna.storage import open_storage

FORK = multiprocessing.get_context("fork")
SPACE = {f"g_0_{knot}": FloatDistribution(0, 1) for knot in range(20)}
BATCH_SIZE = 50


def _ask_and_tell_batches(path: Path, committed: Callable[[str], None]) -> None:
    """Write batches for ever, as a study does, and report each once it is committed."""
    storage = SQLiteStorage(path)
    study = optuna.load_study(
        study_name="faults", storage=storage, sampler=optuna.samplers.RandomSampler()
    )
    while True:
        with storage.batch(study._study_id):
            trials = [study.ask(SPACE) for _ in range(BATCH_SIZE)]
        committed("asked")
        with storage.batch(study._study_id):
            for trial in trials:
                trial.set_user_attr("tnmse", 0.1)
                trial.set_user_attr("g_lst", [[25.0] * 11] * 4)
                study.tell(trial, trial.params["g_0_0"])
        committed("told")


def _new_study(path: Path) -> None:
    optuna.create_study(storage=SQLiteStorage(path), study_name="faults")


def _intact_trials(path: Path, judge: BaseStorage | None = None) -> list[FrozenTrial]:
    """All trials as Optuna's own storage reads them, once SQLite has found the file intact."""
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    orphans = connection.execute(
        "SELECT count(*) FROM trial_params WHERE trial_id NOT IN (SELECT trial_id FROM trials)"
    ).fetchone()
    assert orphans == (0,)
    connection.close()
    trials = (judge or RDBStorage(f"sqlite:///{path}")).get_all_trials(1)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    for trial in trials:
        assert trial.params.keys() == SPACE.keys()
        finished = trial.state == TrialState.COMPLETE
        assert trial.user_attrs.keys() == ({"tnmse", "g_lst"} if finished else set())
        assert trial.values == ([trial.params["g_0_0"]] if finished else None)
    return trials


def _batches(trials: list[FrozenTrial]) -> list[str]:
    """``"asked"`` or ``"told"`` for each batch; every batch must be wholly one or the other."""
    states = []
    for first in range(0, len(trials), BATCH_SIZE):
        batch = trials[first : first + BATCH_SIZE]
        assert len(batch) == BATCH_SIZE
        (state,) = {trial.state for trial in batch}
        states.append("told" if state == TrialState.COMPLETE else "asked")
    return states


def _reports(receiver: Connection) -> list[str]:
    reports = []
    try:
        while receiver.poll():
            reports.append(receiver.recv())
    except EOFError:
        pass
    return reports


def _kill_while_writing(path: Path, delay_s: float) -> list[str]:
    """Start a writer, kill it ``delay_s`` after its first commit; what it had reported by then."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_ask_and_tell_batches, args=(path, sender.send))
    process.start()
    sender.close()
    first = receiver.recv()
    time.sleep(delay_s)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return [first, *_reports(receiver)]


def _check_survival_of_kills(path: Path, n_kills: int) -> None:
    # The moments of the kills are random, and no outcome of a right storage fails the test:
    # false-alarm rate 0.
    moments = random.Random(20)
    _new_study(path)
    told = 0
    for _ in range(n_kills):
        before = len(_batches(_intact_trials(path, SQLiteStorage(path))))
        reports = _kill_while_writing(path, moments.uniform(0, 0.15))
        # Reading thousands of trials through RDBStorage takes seconds; it judges at the end.
        batches = _batches(_intact_trials(path, SQLiteStorage(path)))[before:]
        counts = Counter(reports)
        # Everything reported is there; at most the one commit at hand is there unreported.
        assert 0 <= len(batches) - counts["asked"] <= 1
        assert 0 <= batches.count("told") - counts["told"] <= 1
        assert len(batches) + batches.count("told") - len(reports) <= 1
        assert batches[:-1] == ["told"] * (len(batches) - 1)
        told += batches.count("told")
    assert told > 0, "no kill came late enough to test anything"
    _finish_a_batch(path)


def _finish_a_batch(path: Path) -> None:
    """After any fault the storage must simply go on."""
    before = len(_intact_trials(path))
    storage = SQLiteStorage(path)
    study = optuna.load_study(study_name="faults", storage=storage)
    with storage.batch(study._study_id):
        trials = [study.ask(SPACE) for _ in range(BATCH_SIZE)]
    with storage.batch(study._study_id):
        for trial in trials:
            trial.set_user_attr("tnmse", 0.1)
            trial.set_user_attr("g_lst", [])
            study.tell(trial, trial.params["g_0_0"])
    after = _intact_trials(path)
    assert len(after) == before + BATCH_SIZE
    assert {trial.state for trial in after[before:]} == {TrialState.COMPLETE}


def test_a_batch_killed_at_any_moment_is_wholly_there_or_wholly_absent(tmp_path: Path) -> None:
    _check_survival_of_kills(tmp_path / "study.db", n_kills=8)


@pytest.mark.slow
def test_thirty_kills_lose_no_committed_batch(tmp_path: Path) -> None:
    _check_survival_of_kills(tmp_path / "study.db", n_kills=30)


def test_kills_lose_nothing_with_a_rollback_journal_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"36 1 0:32 / {tmp_path} rw - nfs4 server:/export rw\n")
    monkeypatch.setattr("wpo_optuna.sqlite.file_systems._MOUNT_TABLE", mounts)
    _check_survival_of_kills(tmp_path / "study.db", n_kills=4)


def test_creating_the_file_is_all_or_nothing_when_killed(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    SQLiteStorage(tmp_path / "warm.db").close()  # So that children fork with everything imported.
    moments = random.Random(3)
    for _ in range(25):
        path.unlink(missing_ok=True)
        child = FORK.Process(target=SQLiteStorage, args=(path,))
        child.start()
        time.sleep(moments.uniform(0, 0.03))
        child.kill()
        child.join()
        assert SQLiteStorage(path).get_all_studies() == []
        assert RDBStorage(f"sqlite:///{path}").get_all_studies() == []


# Full disks


def _write_until_refused(path: Path, reporter: Connection) -> None:
    """In a child: write batches until the disk is full, then say how that was reported."""
    try:
        _ask_and_tell_batches(path, reporter.send)
    except StorageError as error:
        reporter.send(f"refused: {error}")


def _write_into_a_limited_file(path: Path, reporter: Connection) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    storage = SQLiteStorage(path)
    study = optuna.load_study(study_name="faults", storage=storage)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, unlimited[1]))
    _write_until_refused(path, reporter)
    # The same storage, which has a transaction to forget, goes on once there is space.
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    known = storage.get_all_trials(study._study_id)
    assert known == SQLiteStorage(path).get_all_trials(study._study_id)
    _finish_a_batch(path)
    reporter.send("went on")


def _run_and_collect(target: Callable[[Path, Connection], None], path: Path) -> list[str]:
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=target, args=(path, sender))
    process.start()
    sender.close()
    reports = []
    while True:
        try:
            reports.append(receiver.recv())
        except EOFError:
            break
    process.join()
    assert process.exitcode == 0
    return reports


def test_a_file_size_limit_is_one_clear_sentence_and_loses_no_committed_batch(
    tmp_path: Path,
) -> None:
    path = tmp_path / "study.db"
    _new_study(path)
    reports = _run_and_collect(_write_into_a_limited_file, path)
    (refused,) = (report for report in reports if report.startswith("refused"))
    assert f"storage 'sqlite:///{path}': " in refused
    assert "what was committed before is intact" in refused
    assert "\n" not in refused
    assert reports[-1] == "went on"
    batches = _batches(_intact_trials(path))
    assert batches[:-1].count("told") == reports.count("told") > 0
    assert len(batches) == reports.count("asked") + 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root; the file-size limit is tested without")
    yield disk
    # Lazily: connections that await the garbage collector would keep it busy.
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_one_clear_sentence_and_loses_no_committed_batch(small_disk: Path) -> None:
    path = small_disk / "study.db"
    _new_study(path)
    reports = _run_and_collect(_write_until_refused, path)
    assert reports[-1].startswith(f"refused: storage 'sqlite:///{path}': ")
    assert "\n" not in reports[-1]
    assert "full" in reports[-1]
    batches = _batches(_intact_trials(path))
    assert len(batches) == reports.count("asked") > 0
    assert batches.count("told") == reports.count("told") > 0
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    _finish_a_batch(path)


# Locks


def _hold_lock(path: Path, seconds: float, kind: str, held: Connection) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"BEGIN {kind}")
    held.send("held")
    time.sleep(seconds)
    connection.execute("COMMIT")
    connection.close()


def _locked_by_another_process(path: Path, seconds: float, kind: str) -> BaseProcess:
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_hold_lock, args=(path, seconds, kind, sender))
    process.start()
    assert receiver.recv() == "held"
    return process


def _check_waits_for_the_lock(path: Path, seconds: float, kind: str) -> None:
    _new_study(path)
    storage = open_storage(f"sqlite:///{path}")
    study = optuna.load_study(study_name="faults", storage=storage)
    study.tell(study.ask(SPACE), 0.5)
    process = _locked_by_another_process(path, seconds, kind)
    started = time.monotonic()
    with storage.batch(study._study_id):
        waited = time.monotonic() - started
        trials = [study.ask(SPACE) for _ in range(3)]
    process.join()
    assert process.exitcode == 0
    assert seconds - 0.5 <= waited < seconds + 5
    assert [trial.number for trial in trials] == [1, 2, 3]
    assert RDBStorage(f"sqlite:///{path}").get_n_trials(1) == 4


@pytest.mark.parametrize("kind", ["IMMEDIATE", "EXCLUSIVE"])
def test_a_database_locked_by_another_process_is_waited_for(tmp_path: Path, kind: str) -> None:
    _check_waits_for_the_lock(tmp_path / "study.db", 1.5, kind)


@pytest.mark.slow
def test_a_database_locked_for_thirty_seconds_is_waited_for(tmp_path: Path) -> None:
    _check_waits_for_the_lock(tmp_path / "study.db", 30, "IMMEDIATE")


def test_opening_waits_for_a_lock_as_well(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    RDBStorage(f"sqlite:///{path}")  # A rollback journal, where the lock keeps readers out too.
    process = _locked_by_another_process(path, 1.0, "EXCLUSIVE")
    assert open_storage(f"sqlite:///{path}").get_all_studies() == []
    process.join()


def test_opening_a_locked_database_says_so_and_hears_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("wpo_optuna.sqlite.schema.LOCK_WARNING_S", 0.3)
    path = tmp_path / "study.db"
    RDBStorage(f"sqlite:///{path}")
    process = _locked_by_another_process(path, 5.0, "EXCLUSIVE")
    timer = threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        open_storage(f"sqlite:///{path}")
    assert time.monotonic() - began < 4
    assert "which another program has locked (giving up after 60 s)" in caplog.text
    process.terminate()
    process.join()


def test_a_lock_held_for_too_long_is_one_clear_sentence_and_the_storage_goes_on(
    tmp_path: Path,
) -> None:
    path = tmp_path / "study.db"
    _new_study(path)
    storage = SQLiteStorage(path, busy_timeout=0.3)
    assert storage.get_n_trials(1) == 0
    process = _locked_by_another_process(path, 1.2, "IMMEDIATE")
    with pytest.raises(StorageError) as caught:
        storage.create_new_trial(1)
    assert str(caught.value) == (
        f"storage 'sqlite:///{path}': it is locked by another program (waited 0.3 s for it)"
    )
    assert storage.get_n_trials(1) == 0  # Reading is not kept out by a writer.
    process.join()
    assert storage.get_trial(storage.create_new_trial(1)).number == 0


def test_control_c_is_heard_while_waiting_for_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    _new_study(path)
    storage = SQLiteStorage(path)
    process = _locked_by_another_process(path, 3.0, "IMMEDIATE")
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            storage.create_new_trial(1)
        assert time.monotonic() - started < 2.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    process.kill()
    process.join()
    assert storage.get_trial(storage.create_new_trial(1)).number == 0


def test_a_file_made_read_only_under_a_running_study_is_one_clear_sentence(
    tmp_path: Path,
) -> None:
    """As after a remount; SQLite is asked to refuse, which root's rights do not hinder."""
    path = tmp_path / "study.db"
    _new_study(path)
    storage = SQLiteStorage(path)
    connection = storage._database._open()
    connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StorageError, match="it cannot be written"), storage.batch(1):
        storage.create_new_trial(1)
    connection.execute("PRAGMA query_only = OFF")
    assert storage.get_n_trials(1) == 0
    storage.create_new_trial(1)
    assert SQLiteStorage(path).get_n_trials(1) == 1


def test_a_damaged_file_is_one_clear_sentence(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    _new_study(path)
    with open(path, "r+b") as file:
        file.seek(100)
        file.write(os.urandom(4 * 4096))
    with pytest.raises(StorageError, match="damaged"):
        SQLiteStorage(path).get_all_trials(1)
