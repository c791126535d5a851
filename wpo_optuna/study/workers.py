"""Trials whose process died: found, and failed, so that others take their place."""

from __future__ import annotations

import datetime
import math
from typing import TYPE_CHECKING

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from wpo_optuna.samplers.candidate_claims import CLAIM_KEY
from wpo_optuna.samplers.claim_owner import Liveness, Owner

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

# System attribute of a running trial: the thread that evaluates it.
WORKER = "wpo:worker"


# How long a trial may run whose process cannot be known to live, as on another host.
STALE_AFTER_S = 3600.0

# A trial without an owner is that of another program, or of a process that died before it could
# write its name. After so long nobody waits for it.
_OWNERLESS_S = 60.0


def claim(study: Study, trial: Trial) -> None:
    """Notes on a running trial that this process evaluates it."""
    owner = Owner.current(in_optimize=False)
    study._storage.set_trial_system_attr(trial._trial_id, WORKER, owner.to_json())


def fail_abandoned_trials(study: Study) -> int:
    """Fails the running trials whose process has died, and says how many.

    So are those of processes about which nothing can be known, after an hour.

    A trial that another process fails or finishes at the same moment is left to it.
    """
    n_failed = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner = trial.system_attrs.get(WORKER)
        if owner is None:
            continue
        liveness = Owner.from_json(owner).liveness()
        is_stale = liveness is Liveness.UNKNOWN and _age_s(trial) > STALE_AFTER_S
        if liveness is not Liveness.DEAD and not is_stale:
            continue
        try:
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            n_failed += 1
        except UpdateFinishedTrialError:
            continue
    return n_failed


def awaited_trials(study: Study) -> list[FrozenTrial]:
    """The running trials that are expected to be finished, by this process or another one."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if WORKER in trial.system_attrs
        or CLAIM_KEY in trial.system_attrs
        or _age_s(trial) < _OWNERLESS_S
    ]


def _age_s(trial: FrozenTrial) -> float:
    started = trial.datetime_start
    if started is None:
        return math.inf
    return (datetime.datetime.now(started.tzinfo) - started).total_seconds()
