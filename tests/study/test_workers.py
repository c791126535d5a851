"""What happens to the trials of a process that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from wpo_optuna.study.workers import claim, fail_abandoned_trials

ASK_AND_HANG = """
import sys, time, optuna
from wpo_optuna.study.workers import claim
study = optuna.load_study(study_name="s", storage=sys.argv[1])
claim(study, study.ask())
print("asked", flush=True)
time.sleep(60)
"""


def test_trials_of_unknown_hosts_are_failed_after_a_long_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = optuna.create_study()
    trial = study.ask()
    monkeypatch.setattr("wpo_optuna.samplers.claim_owner.socket.gethostname", lambda: "elsewhere")
    claim(study, trial)
    monkeypatch.undo()
    assert fail_abandoned_trials(study) == 0
    monkeypatch.setattr("wpo_optuna.study.workers.STALE_AFTER_S", 0.0)
    assert fail_abandoned_trials(study) == 1


def test_only_trials_of_dead_processes_are_failed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="s", storage=url)
    child = subprocess.Popen(
        [sys.executable, "-c", ASK_AND_HANG, url], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "asked\n"
    mine, of_unknown_origin = study.ask(), study.ask()
    claim(study, mine)

    assert fail_abandoned_trials(study) == 0
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert fail_abandoned_trials(study) == 1
    assert [trial.state for trial in study.trials] == [
        TrialState.FAIL,
        TrialState.RUNNING,
        TrialState.RUNNING,
    ]
    assert of_unknown_origin.number == 2
    assert fail_abandoned_trials(study) == 0
