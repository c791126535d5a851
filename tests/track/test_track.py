"""``python -m wpo_optuna.track``: delivering a stored study, a lost MLflow store, twice."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState
from tracked_studies import (
    all_runs,
    assert_complete,
    finished_trial,
    make_study,
    objective,
    random_points,
    recorded,
)

from wpo_optuna.storage import open_storage, transaction
from wpo_optuna.track.__main__ import main
from wpo_optuna.track.delivery import destination, ending
from wpo_optuna.track.delivery.description import DeliveryState
from wpo_optuna.track.delivery.destination import Destination
from wpo_optuna.track.delivery.feeder import Feeder
from wpo_optuna.track.delivery.messages import Open
from wpo_optuna.track.delivery.presence import Presence
from wpo_optuna.track.tracker import MlflowTracker


def test_a_lost_store_is_rebuilt_completely_and_a_second_time_changes_nothing(
    new_store: Path, store: str, working_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(storage="sqlite:///wpo.db")
    study.add_trials(
        [
            finished_trial([0.1, 0.2, 0.3, 0.4], n_knots=401),
            finished_trial([0.9, 0.2, 0.3, 0.4], state=TrialState.PRUNED),
            finished_trial([0.2, 0.2, 0.3, 0.4], tnmse=float("inf")),
        ]
    )
    figure = working_directory / "figure.svg"
    figure.write_text("<svg/>")
    with MlflowTracker(trial_runs="all") as tracker:
        study.optimize(objective, n_trials=9, callbacks=[tracker])
        tracker.log_artifact(figure)
        tracker.log_text("what was done", "notes.txt")
        tracker.log_metrics({"winner_tnmse": 0.06}, step=4)
        tracker.set_status("KILLED")
    before = recorded(MlflowClient(store), "quadratic")
    assert before.run.status == "KILLED"
    assert set(before.run.artifacts) >= {"figure.svg", "notes.txt", "trials.parquet"}

    shutil.rmtree("mlruns")
    again = f"sqlite:///{working_directory}/again.db"
    shutil.copy(new_store, working_directory / "again.db")
    command = ["--study-name", "quadratic", "--tracking-uri", again, "--trial-runs", "all"]
    assert main(command) == 0
    assert recorded(MlflowClient(again), "quadratic") == before
    run_ids = {run.info.run_id for run in all_runs(MlflowClient(again))}
    assert main(command) == 0
    assert recorded(MlflowClient(again), "quadratic") == before
    assert {run.info.run_id for run in all_runs(MlflowClient(again))} == run_ids
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert "all 12 finished trials of study 'quadratic'" in first


def test_a_study_that_was_never_tracked_is_delivered(store: str) -> None:
    study = make_study(storage=open_storage("sqlite:///plain.db"))
    with transaction(study):
        study.add_trials([finished_trial(x) for x in random_points(1100)])
    study.ask()
    command = ["--study-name", "quadratic", "--storage", "sqlite:///plain.db"]
    assert main(command) == 0
    assert_complete(recorded(MlflowClient(store), "quadratic"), study, "best")


def test_a_study_is_delivered_to_where_it_was_recorded_unless_told_otherwise(
    store: str, working_directory: Path
) -> None:
    """Also one whose first delivery was by this command."""
    uri = f"sqlite:///{(working_directory / 'mlflow.db').rename('elsewhere.db')}"
    client = MlflowClient(uri)
    study = make_study(storage="sqlite:///wpo.db")
    with MlflowTracker(uri, experiment_name="family", trial_runs="best") as tracker:
        study.optimize(objective, n_trials=8, callbacks=[tracker])
    run_ids = {run.info.run_id for run in all_runs(client, "family")}
    assert main(["--study-name", "quadratic"]) == 0
    assert {run.info.run_id for run in all_runs(client, "family")} == run_ids
    assert_complete(recorded(client, "quadratic", "family"), study, "best")
    assert main(["--study-name", "quadratic", "--trial-runs", "all"]) == 0
    assert_complete(recorded(client, "quadratic", "family"), study, "all")
    assert client.get_experiment_by_name("wpo") is None
    assert not Path("mlflow.db").exists()

    untracked = make_study("untracked", storage=study._storage)
    untracked.add_trials([finished_trial(x) for x in random_points(4)])
    command = ["--study-name", "untracked"]
    options = ["--experiment", "late", "--trial-runs", "none", "--tracking-uri", uri]
    assert main(command + options) == 0
    assert main(command) == 0
    assert_complete(recorded(client, "untracked", "late"), untracked, "none")
    assert client.get_experiment_by_name("wpo") is None


def test_a_study_recorded_by_an_earlier_version_is_delivered(store: str) -> None:
    study = make_study(storage="sqlite:///wpo.db")
    study.add_trials([finished_trial(x) for x in random_points(3)])
    stored = {
        "identity": "old", "versions": {"optuna": "5.0"}, "status": "KILLED", "delivered": [],
        "undelivered": [{"kind": "text", "text": "hello", "artifact_file": "notes.txt"}],
    }  # fmt: skip
    study._storage.set_study_system_attr(study._study_id, "wpo:mlflow", stored)
    assert main(["--study-name", "quadratic"]) == 0
    found = recorded(MlflowClient(store), "quadratic")
    assert_complete(found, study, "all", ended="KILLED")
    assert found.run.tags["wpo.study_id"] == "old"
    assert "notes.txt" in found.run.artifacts


def test_a_password_is_not_kept_and_asked_for(
    working_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(storage="sqlite:///wpo.db")
    uri = "http://me:secret@127.0.0.1:9"
    DeliveryState("identity", ()).at(Destination(uri, "wpo", "all", 0, (), (), True)).write(study)
    assert "secret" not in str(study._storage.get_study_system_attrs(study._study_id))
    assert main(["--study-name", "quadratic"]) == 1
    error = capsys.readouterr().err
    assert "tracking_uri = 'http://me:***@127.0.0.1:9'" in error
    assert "give --tracking-uri with it" in error


def test_a_study_that_grew_past_where_auto_goes_over_is_rebuilt_as_it_was(
    new_store: Path, store: str, working_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first session decides: its plan was within the limit, that of the second is not."""
    monkeypatch.setattr(destination, "AUTO_ALL_TRIALS", 6)
    study = make_study(storage="sqlite:///wpo.db")
    study.add_trial(finished_trial([0.9, 0.9, 0.9, 0.9]))
    for planned in (4, 24):
        with MlflowTracker(planned_trials=planned) as tracker:
            n_trials = planned - len(study.get_trials(deepcopy=False))
            study.optimize(objective, n_trials=n_trials, callbacks=[tracker])
    study.add_trial(finished_trial([0.3, 0.3, 0.3, 0.3]))  # the best
    with MlflowTracker() as tracker:
        tracker(study, study.trials[-1])
    before = recorded(MlflowClient(store), "quadratic")
    assert {*range(6), 24} <= set(before.trials)
    assert len(before.trials) < 15
    shutil.copy(new_store, "again.db")
    again = f"sqlite:///{working_directory}/again.db"
    assert main(["--study-name", "quadratic", "--tracking-uri", again]) == 0
    rebuilt = recorded(MlflowClient(again), "quadratic")
    assert rebuilt.trials == before.trials
    assert rebuilt.run.artifacts == before.run.artifacts


def count_openings(monkeypatch: pytest.MonkeyPatch) -> list[Feeder]:
    """The feeders that ask MLflow what it has of a study, as often as they do."""
    openings: list[Feeder] = []
    original = Feeder._open

    def counted(feeder: Feeder) -> Open:
        openings.append(feeder)
        return original(feeder)

    monkeypatch.setattr(Feeder, "_open", counted)
    return openings


def test_a_study_that_is_delivered_while_it_is_run_is_there_once_and_ended_by_its_tracker(
    store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command brings trials that the tracker, which opened the run before, brings again."""
    openings = count_openings(monkeypatch)
    client = MlflowClient(store)
    study = make_study(storage="sqlite:///wpo.db")
    tracker = MlflowTracker()
    tracker.attach(study)
    assert tracker.run_id
    study.optimize(objective, n_trials=5)
    command = ["--study-name", "quadratic"]
    assert main(command) == 0
    assert f"process {os.getpid()} on {socket.gethostname()} is recording" in (
        capsys.readouterr().out
    )
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    assert set(recorded(client, "quadratic").trials) == set(range(5))
    for trial in study.trials:
        tracker(study, trial)
    study.optimize(objective, n_trials=2, callbacks=[tracker])
    assert tracker.close("KILLED")
    assert_complete(recorded(client, "quadratic"), study, "all", ended="KILLED")

    # Where nobody interferes, MLflow is asked once; and the command has nothing to wait for.
    openings.clear()
    another = make_study("another", storage=study._storage)
    with MlflowTracker() as tracker:
        another.optimize(objective, n_trials=2, callbacks=[tracker])
    assert len(openings) == 1
    assert main(["--study-name", "another"]) == 0
    assert "recording" not in capsys.readouterr().out
    assert_complete(recorded(client, "another"), another, "all")


def test_a_study_whose_process_ends_while_it_is_delivered_is_delivered_to_its_end(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(storage="sqlite:///wpo.db")
    study.add_trials([finished_trial(x) for x in random_points(3)])
    asked = []

    def recorder(presence: Presence) -> str | None:
        asked.append(presence)
        if len(asked) == 2:
            study.add_trial(finished_trial([0.3, 0.3, 0.3, 0.3]))
        return "process 1 on tram" if len(asked) == 1 else None

    monkeypatch.setattr(Presence, "recorder", property(recorder))
    assert main(["--study-name", "quadratic"]) == 0
    assert_complete(recorded(MlflowClient(store), "quadratic"), study, "all")


def test_a_process_that_is_gone_does_not_record(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study()
    presence, other = Presence(study), Presence(study)
    assert other.recorder is None
    presence.say_recording()
    assert other.recorder == f"process {os.getpid()} on {socket.gethostname()}"
    other.say_recorded()
    assert other.recorder is not None
    presence.say_recorded()
    assert other.recorder is None

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mark = {"token": "t", "host": socket.gethostname(), "pid": ended.pid, "said_at": time.time()}
    for changed, is_recording in (
        ({}, False),
        ({"host": "elsewhere"}, True),
        ({"host": "elsewhere", "said_at": time.time() - 3600}, False),
    ):
        study._storage.set_study_system_attr(study._study_id, "wpo:mlflow_recorder", mark | changed)
        assert (other.recorder is not None) == is_recording


def test_what_cannot_be_delivered_is_told_in_one_sentence_and_nothing_is_written(
    working_directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "_AWAY_S", 0.5)
    make_study(storage="sqlite:///wpo.db").add_trial(finished_trial(random_points(1)[0]))
    files = {path.name for path in working_directory.iterdir()}
    wrong = {
        ("--study-name", "nobody"): "sqlite:///wpo.db has no such study; it has quadratic",
        ("--study-name", "q", "--storage", "sqlite:///no.db"): "there is no such file",
        ("--study-name", "q", "--storage", "oracle://x"): "accepted is",
        ("--study-name", "quadratic", "--tracking-uri", "ftp://x"): "tracking_uri = 'ftp://x'",
        ("--study-name", "quadratic", "--tracking-uri", "sqlite:///wpo.db"): (
            "tracking_uri = 'sqlite:///wpo.db': Optuna keeps the study in this file"
        ),
        ("--study-name", "quadratic", "--tracking-uri", "http://me:secret@127.0.0.1:9"): (
            "http://me:***@127.0.0.1:9 cannot be reached: connection refused"
        ),
        ("--study-name", "quadratic", "--tracking-uri", "http://127.0.0.1:9"): (
            "http://127.0.0.1:9 cannot be reached: connection refused"
        ),
    }
    for arguments, message in wrong.items():
        assert main(list(arguments)) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "secret" not in error
        assert error.count("\n") == 1
    assert {path.name for path in working_directory.iterdir()} == files
    with pytest.raises(SystemExit) as refusal:
        main([])
    assert refusal.value.code == 2
