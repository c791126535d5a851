"""Which process evaluates a trial, and whether it still lives."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

# System attribute of a trial: "host:process id:start of the process".
WORKER = "wpo:worker"


def current_worker() -> str:
    """Name of this process, different from that of any other, past or present, on any host."""
    pid = os.getpid()
    return f"{socket.gethostname()}:{pid}:{_start_of(pid)}"


def is_dead(worker: str) -> bool:
    """Whether a process is known to have ended; never True for those of other hosts."""
    host, pid, started = worker.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    # The number may have gone to another process since.
    return _start_of(int(pid)) != started


def claim(study: Study, trial: Trial) -> None:
    """Notes on a running trial that this process evaluates it."""
    study._storage.set_trial_system_attr(trial._trial_id, WORKER, current_worker())


def fail_abandoned_trials(study: Study) -> int:
    """Fails the running trials whose process has died, and says how many.

    A trial that another process fails or finishes at the same moment is left to it.
    """
    n_failed = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.system_attrs.get(WORKER)
        if worker is None or not is_dead(worker):
            continue
        try:
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            n_failed += 1
        except UpdateFinishedTrialError:
            continue
    return n_failed


def _start_of(pid: int) -> str:
    """When a process started, in clock ticks since the host did; empty where this is unknown."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            # The name in parentheses may contain anything; the start is the 22nd field.
            return stat.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
