"""``python -m wpo_optuna.track``: delivering a stored study, a lost MLflow store, twice."""

from __future__ import annotations

import shutil
from pathlib import Path

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

from wpo_optuna.delivery import ending
from wpo_optuna.storage import open_storage, transaction
from wpo_optuna.track import main
from wpo_optuna.tracking import MlflowTracker


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
        ("--study-name", "quadratic", "--tracking-uri", "http://127.0.0.1:9"): (
            "http://127.0.0.1:9 cannot be reached: connection refused"
        ),
    }
    for arguments, message in wrong.items():
        assert main(list(arguments)) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert {path.name for path in working_directory.iterdir()} == files
    with pytest.raises(SystemExit) as refusal:
        main([])
    assert refusal.value.code == 2
