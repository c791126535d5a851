"""``python -m wpo_optuna.track``: a stored study, a server that is away, processes that are killed.

Real ``mlflow server`` processes on the loopback interface, real SQLite stores, real SIGKILL.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from following import children, start_script, wait_until
from mlflow import MlflowClient
from mlflow_servers import MlflowServer
from tracked_studies import (
    all_runs,
    assert_complete,
    finished_trials,
    make_study,
    objective,
    recorded,
)

from wpo_optuna.storage import open_storage
from wpo_optuna.study import attributes
from wpo_optuna.track.__main__ import main
from wpo_optuna.track.destination import Destination
from wpo_optuna.track.follower import Follower, TrackingWarning
from wpo_optuna.track.tracker import MlflowTracker

TRACK = ["--study-name", "quadratic"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


def stored_study(n_trials: int) -> optuna.Study:
    study = make_study(storage=open_storage("sqlite:///wpo.db"))
    study.add_trials(finished_trials(n_trials))
    return study


def strategy_of(study: optuna.Study) -> dict[str, object]:
    best = study.best_trial.user_attrs
    return {"f_lst": best["f_lst"], "g_lst_us": best["g_lst"]}


def test_a_study_run_and_tracked_with_the_server_down_is_delivered_whole_when_it_is_up(
    server: MlflowServer, working_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Strategy, settings, scores and report included."""
    server.stop()
    study = make_study(storage=open_storage("sqlite:///wpo.db"))

    def run() -> float:
        with Follower(study, Destination(server.uri, "late")) as recording:
            study.optimize(objective, n_trials=8)
            (working_directory / "results").mkdir()
            (working_directory / "results" / "report.html").write_text("<html>")
            for name, value in {
                attributes.STRATEGY: strategy_of(study),
                attributes.SETTINGS: "n_trials: 8\n",
                attributes.METRICS: {"winner_tnmse": 0.05},
                attributes.RESULTS: str(working_directory / "results"),
                attributes.STATUS: "FINISHED",
            }.items():
                study.set_user_attr(name, value)
            started = time.monotonic()
            assert recording.finish() is None
            return time.monotonic() - started

    with pytest.warns(TrackingWarning) as told:
        waited = run()
    assert waited < 20
    assert "cannot be reached: connection refused" in str(told[0].message)
    sentence = str(told[-1].message)
    assert "\n" not in sentence
    command = shlex.split(sentence.partition("deliver it with: ")[2])
    assert command[1:3] == ["-m", "wpo_optuna.track"]

    assert main(command[3:]) == 1
    error = capsys.readouterr().err
    assert f"{server.uri} cannot be reached: connection refused" in error
    assert error.count("\n") == 1
    assert main(TRACK) == 1  # the study has remembered where it goes

    server.start()
    assert main(TRACK) == 0
    client = MlflowClient(server.uri)
    found = recorded(client, "quadratic", "late")
    assert_complete(found, study, "all")
    artifacts = found.run.artifacts
    assert artifacts["report.html"] == b"<html>"
    assert json.loads(artifacts["strategy.json"]) == strategy_of(study)
    assert artifacts["settings.yaml"] == b"n_trials: 8\n"
    assert float(found.run.histories["winner_tnmse"][0][1]) == 0.05

    run_ids = {run.info.run_id for run in all_runs(client, "late")}
    assert main(TRACK) == 0
    assert recorded(client, "quadratic", "late") == found
    assert {run.info.run_id for run in all_runs(client, "late")} == run_ids


@pytest.mark.slow
def test_a_server_that_comes_late_stops_and_comes_again_gets_every_trial_once(
    server: MlflowServer, working_directory: Path
) -> None:
    server.stop()
    study = make_study("late")
    tracker = MlflowTracker(server.uri, trial_runs="all")

    def run() -> None:
        study.optimize(objective, n_trials=10, callbacks=[tracker])
        assert tracker.run_id is None
        server.start()
        wait_until(lambda: tracker.run_id)
        study.optimize(objective, n_trials=5, callbacks=[tracker])
        server.stop()
        study.optimize(objective, n_trials=10, callbacks=[tracker])
        server.start()
        assert tracker.close()

    with pytest.warns(TrackingWarning) as told:
        run()
    assert len(told) == 1
    assert_complete(recorded(MlflowClient(server.uri), "late"), study, "all")


def test_a_study_is_delivered_to_where_it_was_recorded_unless_told_otherwise(
    store: str, working_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one whose first delivery was by this command."""
    uri = f"sqlite:///{(working_directory / 'mlflow.db').rename('elsewhere.db').absolute()}"
    client = MlflowClient(uri)
    study = stored_study(4)
    options = ["--experiment", "late", "--trial-runs", "none", "--tracking-uri", uri]
    assert main(TRACK + options) == 0
    assert main(TRACK) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert "all 4 finished trials of study 'quadratic'" in first
    assert_complete(recorded(client, "quadratic", "late"), study, "none")
    assert main([*TRACK, "--trial-runs", "all"]) == 0
    assert_complete(recorded(client, "quadratic", "late"), study, "all")
    assert client.get_experiment_by_name("wpo") is None
    assert not Path("mlflow.db").exists()


def test_what_cannot_be_delivered_is_told_in_one_sentence_and_nothing_is_written(
    working_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored_study(1)
    wrong = {
        ("--study-name", "nobody"): "has no such study",
        ("--study-name", "q", "--storage", "sqlite:///no.db"): "no.db",
        ("--study-name", "quadratic", "--tracking-uri", "ftp://x"): "--tracking-uri 'ftp://x'",
        ("--study-name", "quadratic", "--tracking-uri", "sqlite:///wpo.db"): (
            "Optuna keeps the study in this file"
        ),
        ("--study-name", "quadratic", "--tracking-uri", "http://me:secret@127.0.0.1:9"): (
            "http://me:***@127.0.0.1:9 cannot be reached: connection refused"
        ),
        ("--study-name", "quadratic"): "give --tracking-uri with it",
    }
    for arguments, message in wrong.items():
        assert main(list(arguments)) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "secret" not in error
        assert error.count("\n") == 1
    assert {path.name for path in working_directory.iterdir() if "wpo.db" not in path.name} == set()
    with pytest.raises(SystemExit) as refusal:
        main([])
    assert refusal.value.code == 2


STUDY = """
    from tracked_studies import make_study, objective
    from wpo_optuna.storage import open_storage
    from wpo_optuna import MlflowTracker
    study = make_study("killed", storage=open_storage("sqlite:///wpo.db"))
    tracker = MlflowTracker(trial_runs="all")
    study.optimize(objective, n_trials=2000, callbacks=[tracker])
    tracker.close()
"""


def n_trial_runs(status: str = "FINISHED") -> int:
    """Counted in MLflow's database without MLflow, which would take too long to be in time."""
    with sqlite3.connect("file:mlflow.db?mode=ro", uri=True) as database:
        query = "SELECT COUNT(*) FROM runs WHERE name LIKE '% trial %' AND status = ?"
        return int(database.execute(query, [status]).fetchone()[0])


def test_processes_killed_while_they_deliver_leave_no_run_incomplete(store: str) -> None:
    process = start_script(STUDY)
    wait_until(lambda: n_trial_runs() >= 10, 120)
    for pid in (process.pid, *children(process.pid)):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert 10 <= n_trial_runs() < 2000
    assert n_trial_runs("RUNNING") == 0
    assert main(["--study-name", "killed", "--trial-runs", "all"]) == 0
    study = optuna.load_study(study_name="killed", storage="sqlite:///wpo.db")
    assert_complete(recorded(MlflowClient(store), "killed"), study, "all", ended="KILLED")


def test_a_study_that_is_delivered_by_hand_while_it_is_run_is_there_once(store: str) -> None:
    client = MlflowClient(store)
    study = make_study(storage=open_storage("sqlite:///wpo.db"))
    tracker = MlflowTracker()
    study.optimize(objective, n_trials=3, callbacks=[tracker])
    assert tracker.run_id
    assert main(TRACK) == 0
    wait_until(lambda: client.get_run(str(tracker.run_id)).info.status == "RUNNING")
    study.optimize(objective, n_trials=3, callbacks=[tracker])
    assert tracker.close("KILLED")
    assert_complete(recorded(client, "quadratic"), study, "all", ended="KILLED")
