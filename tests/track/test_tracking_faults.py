"""MLflow slow, away or failing, and processes killed: nothing lost, nothing twice, no study stops.

Real ``mlflow server`` processes on the loopback interface, real SQLite stores, real SIGKILL.
"""

from __future__ import annotations

import itertools
import os
import random
import resource
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from mlflow_servers import (
    BREAK_OFF,
    CARRY_OUT_AND_FAIL,
    PASS,
    REFUSE,
    FailingProxy,
    MlflowServer,
)
from tracked_studies import assert_complete, make_study, objective, recorded

from wpo_optuna.storage import open_storage
from wpo_optuna.track import __main__ as track
from wpo_optuna.track.delivery import backlog, ending
from wpo_optuna.track.tracker import MlflowTracker, TrackingWarning

_names = (f"study-{i}" for i in itertools.count())


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    shared_memory = Path("/dev/shm")
    usable = shared_memory.is_dir() and os.access(shared_memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=shared_memory if usable else None) as path:
        yield Path(path)


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[MlflowServer]:
    """A server that is not started yet."""
    server = MlflowServer(directory)
    yield server
    server.stop()


@pytest.fixture
def running_server(server: MlflowServer) -> MlflowServer:
    if not server.is_running:
        server.start()
    return server


@pytest.fixture
def working_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=directory) as path:
        monkeypatch.chdir(path)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Path(path)


@pytest.fixture(scope="module")
def new_store(directory: Path) -> Path:
    MlflowClient(f"sqlite:///{directory}/new.db")
    return directory / "new.db"


@pytest.fixture
def store(new_store: Path, working_directory: Path) -> str:
    shutil.copy(new_store, working_directory / "mlflow.db")
    return f"sqlite:///{working_directory}/mlflow.db"


def wait_until(condition: object, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_a_server_that_comes_late_stops_and_comes_again_gets_every_trial_once(
    server: MlflowServer, monkeypatch: pytest.MonkeyPatch, working_directory: Path
) -> None:
    """More trials than memory is given are finished while it is away."""
    monkeypatch.setattr(backlog, "MOST_WAITING", 10)
    study = make_study(next(_names))
    tracker = MlflowTracker(server.uri, trial_runs="all")

    def run() -> None:
        study.optimize(objective, n_trials=25, callbacks=[tracker])
        assert tracker.run_id is None
        server.start()
        study.optimize(objective, n_trials=5, callbacks=[tracker])
        client = MlflowClient(server.uri)
        wait_until(lambda: tracker._feeder.n_delivered >= 10)  # type: ignore[union-attr]
        assert client.get_run(tracker.run_id).info.status == "RUNNING"
        server.stop()
        study.optimize(objective, n_trials=25, callbacks=[tracker])
        server.start()
        assert tracker.close()

    with pytest.warns(TrackingWarning, match="cannot be reached: connection refused") as told:
        run()
    assert len(told) == 1
    assert_complete(recorded(MlflowClient(server.uri), study.study_name), study, "all")


def test_a_server_that_answers_500_or_not_at_all_gets_every_trial_once(
    running_server: MlflowServer, working_directory: Path
) -> None:
    """Every seventh to thirteenth request fails, in three ways; two of them are carried out."""
    generator = random.Random(5)
    failing: dict[int, str] = {}
    n = 0
    for _ in range(1000):
        n += generator.randint(7, 13)
        failing[n] = generator.choice([REFUSE, CARRY_OUT_AND_FAIL, BREAK_OFF])
    proxy = FailingProxy(running_server.port, lambda number: failing.get(number, PASS))
    study = make_study(next(_names))
    tracker = MlflowTracker(proxy.uri)
    tracker.log_text("what was done", "notes.txt")
    with pytest.warns(TrackingWarning) as told, tracker:
        study.optimize(objective, n_trials=16, callbacks=[tracker])
    proxy.close()
    assert tracker.undelivered is None
    assert len(told) == 1
    assert proxy.n_failed >= 5
    client = MlflowClient(running_server.uri)
    found = recorded(client, study.study_name)
    assert_complete(found, study, "all")
    assert bytes.fromhex(found.run.artifacts["notes.txt"]) == b"what was done"


def test_what_an_absent_server_lacks_at_the_end_is_delivered_by_the_command_that_is_named(
    running_server: MlflowServer, working_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the program is not held up; extras are delivered later too."""
    monkeypatch.setattr(ending, "_AWAY_S", 3.0)
    proxy = FailingProxy(running_server.port, lambda number: REFUSE)
    name = f"{next(_names)} with a 'quote'"
    study = make_study(name, storage="sqlite:///wpo.db")
    figure = working_directory / "figure.svg"
    figure.write_text("<svg/>")

    def run() -> tuple[str, float]:
        tracker = MlflowTracker(proxy.uri, trial_runs="best", experiment_name="late")
        study.optimize(objective, n_trials=20, callbacks=[tracker])
        tracker.log_artifact(figure)
        started = time.monotonic()
        assert not tracker.close("KILLED")
        assert tracker.undelivered is not None
        return tracker.undelivered, time.monotonic() - started

    with pytest.warns(TrackingWarning):
        sentence, waited = run()
    assert waited < 10
    assert "\n" not in sentence
    assert "lacks 20 trials" in sentence
    assert "answers with server errors" in sentence
    proxy.decide = lambda number: PASS
    command = shlex.split(sentence[sentence.index("python -m") :])
    assert command[:3] == ["python", "-m", "wpo_optuna.track"]
    assert track.main(command[3:]) == 0
    proxy.close()
    found = recorded(MlflowClient(running_server.uri), name, "late")
    assert_complete(found, study, "best", ended="KILLED")
    assert "figure.svg" in found.run.artifacts


@pytest.mark.slow
def test_a_server_that_accepts_and_never_answers_does_not_hold_up_the_end(
    working_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the user's own limit on the time of a request, which is respected."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        study = make_study(next(_names))
        tracker = MlflowTracker(f"http://127.0.0.1:{silent.getsockname()[1]}")

        def run() -> float:
            study.optimize(objective, n_trials=5, callbacks=[tracker])
            assert tracker.run_id is None  # waits for the first contact
            started = time.monotonic()
            tracker.close()
            return time.monotonic() - started

        with pytest.warns(TrackingWarning, match="does not answer in time"):
            waited = run()
    assert waited < 15
    assert tracker.undelivered is not None


STUDY = """
    from tracked_studies import make_study, objective
    from wpo_optuna.storage import open_storage
    from wpo_optuna.track.tracker import MlflowTracker
    study = make_study("killed", storage=open_storage("sqlite:///wpo.db"))
    tracker = MlflowTracker(trial_runs="all")
    study.optimize(objective, n_trials=80, callbacks=[tracker])
    tracker.close()
"""


def start_script(script: str) -> subprocess.Popen[str]:
    """Runs a program in a process group of its own, with the modules of these tests."""
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def n_trial_runs(status: str = "FINISHED") -> int:
    """Counted in MLflow's database without MLflow, which would take too long to be in time."""
    with sqlite3.connect("file:mlflow.db?mode=ro", uri=True) as database:
        query = "SELECT COUNT(*) FROM runs WHERE name LIKE '% trial %' AND status = ?"
        return int(database.execute(query, [status]).fetchone()[0])


def children(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


@pytest.mark.parametrize(
    "killed", ["both", "delivering process", pytest.param("study", marks=pytest.mark.slow)]
)
def test_processes_killed_during_a_flush_leave_at_most_one_run_incomplete_and_it_is_completed(
    killed: str, store: str
) -> None:
    seed = {"both": 1, "study": 2, "delivering process": 3}[killed]
    process = start_script(STUDY)
    enough = random.Random(seed).randint(5, 50)
    wait_until(lambda: n_trial_runs() >= enough, 120)
    (worker,) = children(process.pid)
    if killed == "both":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        os.kill(worker if killed == "delivering process" else process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    study = optuna.load_study(study_name="killed", storage="sqlite:///wpo.db")
    client = MlflowClient(store)
    status = "FINISHED"
    if killed == "delivering process":
        assert process.returncode == 0, errors
        assert errors.count("TrackingWarning") == 1
    else:
        wait_until(lambda: not Path(f"/proc/{worker}").exists())
        assert 5 <= n_trial_runs() < 80
        assert n_trial_runs("RUNNING") <= 1
        if killed == "study":
            status = "KILLED"
            assert n_trial_runs("RUNNING") == 0
        assert track.main(["--study-name", "killed", "--trial-runs", "all"]) == 0
    assert_complete(recorded(client, "killed"), study, "all", status)


@pytest.mark.slow
def test_a_store_locked_by_another_program_for_30_s_gets_every_trial_once(store: str) -> None:
    study = make_study("locked")
    database = sqlite3.connect("mlflow.db", check_same_thread=False, isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    threading.Timer(30, lambda: database.execute("ROLLBACK")).start()

    def run() -> float:
        started = time.monotonic()
        tracker = MlflowTracker()
        study.optimize(objective, n_trials=50, callbacks=[tracker])
        needed = time.monotonic() - started
        time.sleep(31)
        assert tracker.close()
        return needed

    with warnings.catch_warnings():
        # MLflow itself waits for the lock, and may or may not be in time.
        warnings.simplefilter("ignore", TrackingWarning)
        assert run() < 10
    database.close()
    assert_complete(recorded(MlflowClient(store), "locked"), study, "all")


@pytest.mark.slow
def test_a_full_disk_stops_the_delivery_and_not_the_study(store: str) -> None:
    """A limit on the size of the files that the delivering process writes stands for the disk."""
    study = make_study("full", storage=open_storage("sqlite:///wpo.db"))

    def run() -> str:
        tracker = MlflowTracker(trial_runs="all")
        tracker.attach(study)
        assert tracker.run_id
        limit = Path("mlflow.db").stat().st_size + 50_000
        worker = tracker._feeder._worker  # type: ignore[union-attr]
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (limit, limit))
        study.optimize(objective, n_trials=200, callbacks=[tracker])
        assert not tracker.close()
        assert tracker.undelivered
        return tracker.undelivered

    with pytest.warns(TrackingWarning):
        sentence = run()
    assert "python -m wpo_optuna.track --study-name full --storage sqlite:///wpo.db" in sentence
    assert track.main(["--study-name", "full", "--trial-runs", "all"]) == 0
    assert_complete(recorded(MlflowClient(store), "full"), study, "all")
