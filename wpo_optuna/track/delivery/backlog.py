"""Trials on their way to MLflow, put in the order of their numbers."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

# Trials waiting in memory, about 10 kB each. Beyond that only their numbers are kept, and they
# are fetched from the storage when MLflow takes trials again.
MOST_WAITING = 2000

# The series of the best TNMSE is right only if a trial comes after all with smaller numbers.
# One that is missing is looked for in the storage, where another process may have finished it,
# and waited for no longer than a worker that is alive would take between two trials.
_LOOK_AFTER_S = 2.0
_GIVE_UP_AFTER_S = 10.0
# Looking may take this share of the time.
_LOOKING_SHARE = 0.02


class Backlog:
    """Trials that MLflow may lack.

    ``put`` is for the threads that run the study; everything else is for the one that feeds the
    delivering process.

    Args:
        study: the study.

    Attributes:
        has_foreign: whether trials were met that were not put: MLflow may get them, or have got
            them, from another process.
    """

    def __init__(self, study: Study) -> None:
        self.has_foreign = False
        self._study = study
        self._began = datetime.datetime.now()
        self._lock = threading.Lock()
        self._own: set[int] = set()
        self._waiting: dict[int, FrozenTrial] = {}
        self._left_out: set[int] = set()
        self._frontier = 0
        self._sent: set[int] = set()
        self._in_mlflow: set[int] = set()
        self._passed: set[int] = set()
        self._foreign: list[FrozenTrial] = []
        self._gap_since: float | None = None
        self._next_look = 0.0

    def put(self, trial: FrozenTrial) -> None:
        """Takes a finished trial."""
        with self._lock:
            self._own.add(trial.number)
            if len(self._waiting) < MOST_WAITING:
                self._waiting[trial.number] = trial
            else:
                self._left_out.add(trial.number)

    @property
    def n_left(self) -> int:
        """How many trials were put and not acknowledged."""
        return len(self._waiting) + len(self._left_out)

    def restart(self) -> None:
        """Forgets what was sent: the delivering process is a new one."""
        self._sent.clear()

    def opened(self, in_mlflow: Iterable[int]) -> None:
        """Takes note of the trials MLflow has."""
        self._in_mlflow = set(in_mlflow)

    def send(self, trials: Iterable[FrozenTrial]) -> None:
        """Takes note that the delivering process gets trials."""
        self._sent.update(trial.number for trial in trials)

    def acknowledge(self, trials: Iterable[FrozenTrial]) -> None:
        """Takes note that trials are delivered."""
        numbers = [trial.number for trial in trials]
        self._in_mlflow.update(numbers)
        with self._lock:
            self._left_out.difference_update(numbers)

    def give_back(self, trials: Iterable[FrozenTrial]) -> None:
        """Takes back trials that were not delivered."""
        for trial in trials:
            is_own = trial.number in self._own
            self._sent.discard(trial.number)
            self.put(trial)
            if not is_own:
                self._own.discard(trial.number)

    def next_own(self, size: int) -> list[FrozenTrial]:
        """Trials to be delivered, at most ``size``, in order."""
        with self._lock:
            numbers = sorted(number for number in self._waiting if number < self._frontier)[:size]
            while len(numbers) < size:
                if self._frontier in self._waiting:
                    numbers.append(self._frontier)
                elif not self._is_settled(self._frontier):
                    break
                self._frontier += 1
            trials = [self._waiting.pop(number) for number in numbers]
        self.send(trials)
        if trials:
            self._gap_since = None
        return trials

    def next_foreign(self, size: int) -> list[FrozenTrial]:
        """Trials that other processes deliver, at most ``size``, to be regarded only.

        Looks for missing trials in the storage, if it is time to. Those that belong to this
        process, or were finished before it began, are put.
        """
        if not self._foreign and self._is_time_to_look():
            self._look()
        trials, self._foreign = self._foreign[:size], self._foreign[size:]
        self.has_foreign |= bool(trials)
        self.send(trials)
        return trials

    def rest(self) -> list[FrozenTrial]:
        """Every finished trial of the study that the delivering process has not brought."""
        brought = self._sent & self._in_mlflow
        with self._lock:
            waiting = dict(self._waiting)
            self._waiting.clear()
        n_trials = self._study._storage.get_n_trials(self._study._study_id)
        if len(brought | waiting.keys()) < n_trials:
            for trial in self._study.get_trials(deepcopy=False):
                if trial.state.is_finished() and trial.number not in brought:
                    waiting[trial.number] = trial
        self.has_foreign |= not waiting.keys() <= self._own
        return [waiting[number] for number in sorted(waiting)]

    def _is_settled(self, number: int) -> bool:
        return number in self._sent or number in self._in_mlflow or number in self._passed

    def _is_time_to_look(self) -> bool:
        if not self._waiting and not self._left_out:
            return False
        now = time.monotonic()
        if self._gap_since is None:
            self._gap_since = now
        return now >= max(self._gap_since + _LOOK_AFTER_S, self._next_look)

    def _look(self) -> None:
        started = time.monotonic()
        trials = self._study.get_trials(deepcopy=False)
        now = time.monotonic()
        self._next_look = now + max(_LOOK_AFTER_S, (now - started) / _LOOKING_SHARE)
        is_late = self._gap_since is not None and now > self._gap_since + _GIVE_UP_AFTER_S
        n_fetched = 0
        with self._lock:
            last = max(self._waiting.keys() | self._left_out, default=-1)
            for trial in trials:
                number = trial.number
                if number > last:
                    break
                if number < self._frontier and number not in self._left_out:
                    continue
                if number in self._waiting or self._is_settled(number):
                    continue
                if not trial.state.is_finished():
                    if is_late:
                        self._passed.add(number)
                elif number not in self._left_out and self._is_foreign(trial):
                    self._foreign.append(trial)
                elif n_fetched < MOST_WAITING:
                    self._waiting[number] = trial
                    self._left_out.discard(number)
                    n_fetched += 1

    def _is_foreign(self, trial: FrozenTrial) -> bool:
        """Whether another process finished a trial while this one was at work."""
        return trial.datetime_complete is not None and trial.datetime_complete > self._began
