"""The loop of a study: ask a batch of trials, evaluate it at once, tell it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from wpo_optuna.objective import Evaluation, HypercubeObjective
from wpo_optuna.storage import transaction
from wpo_optuna.workers import claim, fail_abandoned_trials

if TYPE_CHECKING:
    from optuna import Study

# How long to wait before looking again whether other processes have finished their trials.
_POLL_INTERVAL_S = 0.05

PHASE = "phase"


@runtime_checkable
class GenerationalSampler(Protocol):
    """A sampler whose next trials depend on all of the generation before.

    It keeps track itself of who evaluates what, and replaces the trials of dead processes.
    """

    def candidates_left(self, study: Study) -> int:
        """How many trials can be asked now; 0 while other processes evaluate the last ones."""


@dataclass
class Interruption:
    """Whether the user asked to stop (Ctrl-C)."""

    requested: bool = False


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turns a first Ctrl-C into a request to stop after the batch at hand.

    A second one interrupts at once. Outside the main thread nothing is changed.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def request(signum: int, frame: FrameType | None) -> None:
        if interruption.requested:
            raise KeyboardInterrupt
        interruption.requested = True

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, previous)


def optimize(
    study: Study,
    objective: HypercubeObjective,
    *,
    n_trials: int,
    batch_size: int,
    on_finished: Callable[[Sequence[FrozenTrial]], None],
    should_stop: Callable[[], bool],
) -> None:
    """Brings a study to a total number of completed trials.

    Several processes may work on one study. Trials that other processes are evaluating count
    towards the total, so that it is not exceeded; if such a process dies, its trials are failed
    and replaced.

    Args:
        study: the study, with its sampler.
        objective: evaluates points.
        n_trials: total of completed trials to reach, those of earlier runs included.
        batch_size: largest number of trials evaluated at once. Differential evolution's batches
            end with a generation, so that they hold the trials of a one-by-one loop.
        on_finished: called with the trials of each finished batch.
        should_stop: asked before each batch.
    """
    while not should_stop():
        trials = _ask(study, objective, n_trials, batch_size)
        if trials is None:
            return
        if trials:
            on_finished(_evaluate_and_tell(study, objective, trials))
        else:
            time.sleep(_POLL_INTERVAL_S)


def _ask(
    study: Study, objective: HypercubeObjective, n_trials: int, batch_size: int
) -> list[Trial] | None:
    """A new batch of trials; empty if others hold the last ones, None if all are completed."""
    if not isinstance(study.sampler, GenerationalSampler):
        fail_abandoned_trials(study)
    with transaction(study):
        n_complete = _count(study, TrialState.COMPLETE)
        if n_complete >= n_trials:
            return None
        if isinstance(study.sampler, GenerationalSampler):
            n_possible = study.sampler.candidates_left(study)
        else:
            # Optuna's samplers learn the search space from a completed trial.
            n_possible = batch_size if n_complete else 1
        # Counted after the trials of dead processes have been failed.
        n_running = _count(study, TrialState.RUNNING)
        n = min(n_possible, batch_size, n_trials - n_complete - n_running)
        if isinstance(study.sampler, GenerationalSampler):
            return [study.ask(objective.distributions) for _ in range(n)]
        return [_ask_and_claim(study, objective) for _ in range(n)]


def _ask_and_claim(study: Study, objective: HypercubeObjective) -> Trial:
    trial = study.ask(objective.distributions)
    claim(study, trial)
    return trial


def _evaluate_and_tell(
    study: Study, objective: HypercubeObjective, trials: Sequence[Trial]
) -> list[FrozenTrial]:
    try:
        evaluations = objective.evaluate([objective.point(trial.params) for trial in trials])
    except BaseException:
        with transaction(study):
            for trial in trials:
                study.tell(trial, state=TrialState.FAIL)
        raise
    with transaction(study):
        return [
            _tell(study, trial, evaluation)
            for trial, evaluation in zip(trials, evaluations, strict=True)
        ]


def _tell(study: Study, trial: Trial, evaluation: Evaluation) -> FrozenTrial:
    for name, value in evaluation.attributes().items():
        trial.set_user_attr(name, value)
    return study.tell(trial, evaluation.loss)


def record(
    study: Study,
    objective: HypercubeObjective,
    x: NDArray[np.float64],
    tnmse: NDArray[np.float64],
    phase: str,
) -> list[FrozenTrial]:
    """Adds points that were evaluated outside the loop as completed trials.

    Args:
        study: the study.
        objective: knows the parameters and the loss.
        x: points ``(n, d)``.
        tnmse: their TNMSE ``(n,)``.
        phase: what found them, kept as the user attribute ``phase``.
    """
    trials = [
        create_trial(
            value=evaluation.loss,
            params=dict(zip(objective.distributions, point, strict=True)),
            distributions=objective.distributions,
            user_attrs=evaluation.attributes() | {PHASE: phase},
        )
        for point, evaluation in zip(x.tolist(), objective.evaluate(x, tnmse=tnmse), strict=True)
    ]
    n_before = _count(study)
    with transaction(study):
        study.add_trials(trials)
    return study.get_trials(deepcopy=False)[n_before:]


def _count(study: Study, state: TrialState | None = None) -> int:
    return study._storage.get_n_trials(study._study_id, state)
