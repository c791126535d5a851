"""The loop of a study: ask a batch of trials, evaluate it at once, tell it."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from wpo_optuna.storage import transaction
from wpo_optuna.study.objective import Evaluation, HypercubeObjective
from wpo_optuna.study.workers import awaited_trials, claim, fail_abandoned_trials

if TYPE_CHECKING:
    from optuna import Study

_logger = logging.getLogger(__name__)

# How long to wait before looking again whether other processes have finished their trials.
_POLL_INTERVAL_S = 0.05

# After waiting for others for so long, a message says for whom.
_FIRST_MESSAGE_S = 20.0

# User attributes of trials that the loop did not ask for; see Origin.
PHASE, PHASE_TOTAL, PHASE_INDEX = "phase", "phase_total", "phase_index"


@dataclass(frozen=True)
class Origin:
    """What found a trial that the loop did not ask for; no study has two trials of one origin.

    Attributes:
        phase: the kind of search.
        total: the total of trials that the study was to be brought to.
        index: number among the trials of this search.
    """

    phase: str
    total: int
    index: int

    def attributes(self) -> dict[str, Any]:
        """The trial's user attributes."""
        return {PHASE: self.phase, PHASE_TOTAL: self.total, PHASE_INDEX: self.index}

    @classmethod
    def of(cls, trial: FrozenTrial) -> Origin | None:
        """A trial's origin; None if a sampler proposed it."""
        values = trial.user_attrs
        if PHASE not in values:
            return None
        return cls(values[PHASE], values.get(PHASE_TOTAL, 0), values.get(PHASE_INDEX, 0))


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
    towards the total, so that it is not exceeded (but by less than a batch for each process on
    storages without transactions); if such a process dies, its trials are failed and replaced.

    Args:
        study: the study, with its sampler.
        objective: evaluates points.
        n_trials: total of completed trials to reach, those of earlier runs included.
        batch_size: largest number of trials evaluated at once. Differential evolution's batches
            end with a generation, so that they hold the trials of a one-by-one loop.
        on_finished: called with the trials of each finished batch.
        should_stop: asked before each batch.
    """
    patience = _Patience()
    while not should_stop():
        trials = _ask(study, objective, n_trials, batch_size)
        if trials is None:
            return
        if trials:
            on_finished(_evaluate_and_tell(study, objective, trials))
            patience = _Patience()
        else:
            patience.explain(study)
            time.sleep(_POLL_INTERVAL_S)


class _Patience:
    """Says now and then for whom the loop waits."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._silence_s = _FIRST_MESSAGE_S

    def explain(self, study: Study) -> None:
        waited_s = time.monotonic() - self._began
        if waited_s < self._silence_s:
            return
        self._silence_s *= 4
        numbers = ", ".join(str(trial.number) for trial in awaited_trials(study))
        _logger.warning(
            f"Waiting for {waited_s:.0f} s for other processes to finish trials {numbers} of study "
            f"{study.study_name!r}. One that will never finish can be given up: "
            "study.tell(number, state=TrialState.FAIL)."
        )


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
        n_running = len(awaited_trials(study))
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
    origins: Sequence[Origin],
) -> list[FrozenTrial]:
    """Adds points that were evaluated outside the loop as completed trials.

    Those that the study has already, because it is resumed or another process was faster, are not
    added again.

    Args:
        study: the study.
        objective: knows the parameters and the loss.
        x: points ``(n, d)``.
        tnmse: their TNMSE ``(n,)``.
        origins: what found them.

    Returns:
        the trials that were added.
    """
    storage, study_id = study._storage, study._study_id
    evaluations = objective.evaluate(x, tnmse=tnmse)
    with transaction(study):
        present = recorded(study)
        added = [
            storage.create_new_trial(
                study_id,
                template_trial=create_trial(
                    value=evaluation.loss,
                    params=dict(zip(objective.distributions, point, strict=True)),
                    distributions=objective.distributions,
                    user_attrs=evaluation.attributes() | origin.attributes(),
                ),
            )
            for point, evaluation, origin in zip(x.tolist(), evaluations, origins, strict=True)
            if origin not in present
        ]
        return [storage.get_trial(trial_id) for trial_id in added]


def recorded(study: Study) -> set[Origin]:
    """The origins of all completed trials that no sampler proposed."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return {origin for trial in trials if (origin := Origin.of(trial)) is not None}


def _count(study: Study, state: TrialState | None = None) -> int:
    return study._storage.get_n_trials(study._study_id, state)
