"""Which process evaluates a trial, and what happens when it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import optuna
from optuna.trial import TrialState

from wpo_optuna.workers import WORKER, claim, current_worker, fail_abandoned_trials, is_dead


def test_a_living_process_is_not_dead_and_a_killed_one_is() -> None:
    assert not is_dead(current_worker())
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from wpo_optuna.workers import current_worker; import time;"
            "print(current_worker(), flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    worker = child.stdout.readline().strip()
    assert not is_dead(worker)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert is_dead(worker)


def test_a_process_id_that_was_reused_does_not_revive_its_worker() -> None:
    host, pid, started = current_worker().rsplit(":", 2)
    assert is_dead(f"{host}:{pid}:{int(started) - 1}")


def test_a_worker_of_another_host_is_never_declared_dead() -> None:
    assert not is_dead("some.other.host:1:1")


def test_only_trials_of_dead_workers_are_failed() -> None:
    study = optuna.create_study()
    host, pid, started = current_worker().rsplit(":", 2)
    alive, dead, unknown = study.ask(), study.ask(), study.ask()
    claim(study, alive)
    killed = f"{host}:{pid}:{int(started) - 1}"
    study._storage.set_trial_system_attr(dead._trial_id, WORKER, killed)
    assert fail_abandoned_trials(study) == 1
    states = {trial.number: trial.state for trial in study.trials}
    assert states == {
        alive.number: TrialState.RUNNING,
        dead.number: TrialState.FAIL,
        unknown.number: TrialState.RUNNING,
    }
