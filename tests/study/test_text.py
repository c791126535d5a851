"""What the study's command prints: commands that can be copied, and pages that exist."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wpo_optuna.strategy import ProgrammingStrategy
from wpo_optuna.study.environment import program_here
from wpo_optuna.study.estimate import Estimate
from wpo_optuna.study.scoring import Finalist, Scores
from wpo_optuna.study.settings import StudySettings
from wpo_optuna.study.text import describe, resume_command

NARROW = Estimate(0.1, 0.0998, 0.1002, 24)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "--n-trials 80"),
        (["--sampler", "de", "--n-trials", "40"], "--sampler de --n-trials 80"),
        (["--n-trials=40", "--nbins", "5"], "--nbins 5 --n-trials 80"),
        (["--maxiter", "3", "--popsize", "2"], "--popsize 2 --n-trials 80"),
        (["--stop-at-margin", "--seed", "3"], "--seed 3 --n-trials 80"),
        (["--study-name", "two words"], "--study-name 'two words' --n-trials 80"),
    ],
)
def test_the_command_to_go_on_keeps_everything_but_what_ended_the_study(
    given: list[str], expected: str
) -> None:
    go_on = f"{program_here('python')} -m wpo_optuna.study"
    assert resume_command(given, 80) == f"{go_on} {expected}"


def test_programs_are_called_by_name_where_the_shell_finds_them_and_by_path_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binaries = tmp_path / "my venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("python", "mlflow"):
        (binaries / name).write_text("#!/bin/sh\n")
        (binaries / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(binaries / "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert program_here("mlflow") == "my venv/bin/mlflow"
    assert resume_command([], 8) == "'my venv/bin/python' -m wpo_optuna.study --n-trials 8"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert program_here("mlflow") == str(binaries / "mlflow")
    monkeypatch.setenv("PATH", f"{binaries}:/usr/bin")
    assert program_here("mlflow") == "mlflow"
    assert program_here("not-installed") == "not-installed"


def text_of(settings: StudySettings, scores: Scores, n_trials: int = 40, **changes: Any) -> str:
    values: dict[str, Any] = {
        "scores": scores,
        "strategy": ProgrammingStrategy((1.0,), ((0.0, 5.0), (5.0, 0.0)), 0.0, 25.0),
        "objective": SimpleNamespace(engine=SimpleNamespace(name="expected")),
        "study": SimpleNamespace(study_name="mine"),
        "run_id": "abc",
        "experiment_id": "7",
        "n_new_trials": 3,
        "search_time": 1.0,
        "results": None,
        "page": None,
    }
    return describe(settings, SimpleNamespace(**(values | changes)), n_trials, "go on", 12.3)  # type: ignore[arg-type]


@pytest.fixture
def scores() -> Scores:
    return Scores(40, 1, (Finalist(3, 0.1, NARROW),), NARROW, NARROW)


def test_a_server_is_opened_and_a_database_is_served_first(
    scores: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    server = text_of(StudySettings(tracking_uri="http://me:secret@host:5000"), scores)
    assert "mlflow ui" not in server
    assert "\n  http://host:5000/#/experiments/7/runs" in server
    assert "secret" not in server
    assert "Model training" in server
    database = text_of(StudySettings(tracking_uri="sqlite:///other.db"), scores)
    assert "mlflow ui --backend-store-uri sqlite:///other.db" in database
    assert "http://127.0.0.1:5000/#/experiments/7/runs" in database
    away = text_of(StudySettings(tracking_uri="postgresql://me:secret@host/db"), scores)
    pasted = 'mlflow ui --backend-store-uri postgresql://me:"$TRACKING_URI_PASSWORD"@host/db\n'
    assert pasted in away
    assert "secret" not in away
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there:1")
    assert "http://there:1/#/experiments/7" in text_of(StudySettings(), scores)
    assert "To look at it" not in text_of(StudySettings(tracking_uri="none"), scores)


def test_the_page_of_the_trials_is_told_where_there_are_runs_of_trials(scores: Scores) -> None:
    told = text_of(StudySettings(), scores)
    assert told.count("/#/experiments/7/runs?") == 2
    assert "this study's trials" in told
    assert "this study's trials" not in text_of(StudySettings(trial_runs="none"), scores)
    undelivered = text_of(StudySettings(), scores, run_id=None, experiment_id=None)
    assert "open:\n  http://127.0.0.1:5000\n" in undelivered


def test_a_study_that_ended_early_says_why(scores: Scores) -> None:
    assert "ended before" not in text_of(StudySettings(), scores)
    assert "ended before 100: the population converged" in text_of(StudySettings(), scores, 100)
    stopped = text_of(StudySettings(stop_at_margin=True), scores, 100)
    assert "ended before 100: the margin was reached" in stopped


def test_an_interval_that_stayed_wide_is_told(scores: Scores) -> None:
    wide = dataclasses.replace(scores, winner=Estimate(0.1, 0.098, 0.102, 400))
    assert "stayed wider than 1 %" not in text_of(StudySettings(), scores)
    assert "stayed wider than 1 %" in text_of(StudySettings(), wide)
