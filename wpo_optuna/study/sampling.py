"""The loop of a study: ask a batch of trials, evaluate it at once, store it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import numpy as np
from optuna.samplers import CmaEsSampler, TPESampler

from wpo_optuna.samplers import DESampler
from wpo_optuna.study.mirror import Mirror, OnFinished


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


def default_batch_size(mirror: Mirror) -> int:
    """How many trials to evaluate at once, if the user does not say.

    An engine's cost per trial falls with the batch until its arrays leave the cache. CMA-ES and
    TPE learn after each batch, so that theirs are small.
    """
    problem, engine = mirror.objective.problem, mirror.objective.engine
    if isinstance(mirror.memory.sampler, CmaEsSampler):
        # The population size of the algorithm: Hansen, "The CMA evolution strategy", 2016.
        return 4 + int(3 * np.log(problem.hypercube.dimension))
    if isinstance(mirror.memory.sampler, TPESampler):
        return 8
    return {"expected": 256, "montecarlo": 64}.get(engine.name, 8)


def sample(
    mirror: Mirror,
    *,
    total: int,
    batch_size: int,
    on_finished: OnFinished,
    should_stop: Callable[[], bool],
) -> None:
    """Brings a study to a total number of completed trials.

    Args:
        mirror: the study, with its sampler.
        total: of completed trials, those of earlier runs and other processes included.
        batch_size: largest number of trials evaluated at once. Differential evolution's batches
            end with a generation, so that they hold the trials of a one-by-one loop.
        on_finished: called with the trials that each batch added to the study.
        should_stop: asked before each batch.
    """
    while mirror.n_complete < total and not should_stop():
        sampler = mirror.memory.sampler
        n_possible = batch_size
        if isinstance(sampler, DESampler):
            n_possible = max(1, sampler.candidates_left(mirror.memory))
        elif mirror.n_complete == 0:
            n_possible = 1  # Optuna's samplers learn the search space from a completed trial
        n = min(n_possible, batch_size, total - mirror.n_complete)
        on_finished(mirror.evaluate(mirror.ask(n), total))
