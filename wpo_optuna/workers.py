"""Trials whose process died: found, and failed, so that others take their place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from wpo_optuna.samplers.claim_owner import Liveness, Owner

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

# System attribute of a running trial: the thread that evaluates it.
WORKER = "wpo:worker"


def claim(study: Study, trial: Trial) -> None:
    """Notes on a running trial that this process evaluates it."""
    owner = Owner.current(in_optimize=False)
    study._storage.set_trial_system_attr(trial._trial_id, WORKER, owner.to_json())


def fail_abandoned_trials(study: Study) -> int:
    """Fails the running trials whose process is known to have died, and says how many.

    A trial that another process fails or finishes at the same moment is left to it.
    """
    n_failed = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner = trial.system_attrs.get(WORKER)
        if owner is None or Owner.from_json(owner).liveness() is not Liveness.DEAD:
            continue
        try:
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            n_failed += 1
        except UpdateFinishedTrialError:
            continue
    return n_failed
