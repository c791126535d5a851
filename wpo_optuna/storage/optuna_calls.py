"""Reading and writing trials by Optuna's own calls, in storages that are no databases."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from itertools import compress
from typing import TYPE_CHECKING

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.storage.urls import storage_url

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

# Of trials, and others that come before them: which of the trials are to be stored.
Choice = Callable[[Sequence[FrozenTrial], Sequence[FrozenTrial]], list[bool]]
# What was stored, what others had stored since the last reading, and for each trial whether it is.
Outcome = tuple[list[FrozenTrial], list[FrozenTrial], list[bool]]

# System attribute of a trial that was begun in order to be stored, see SharedTrials.
_BEGUN = "wpo:begun"
# How long a process may store nothing in its turn.
_PATIENCE_S, _PAUSE_S = 10.0, 0.1


class StudyTrials:
    """The trials of a study in memory or in a journal file.

    Args:
        study: the study.
        storage: where it is.
    """

    def __init__(self, study: Study, storage: BaseStorage) -> None:
        self._study, self._storage = study, storage
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._n_read = 0
        # Numbers of trials that were not finished yet, and of those written here.
        self._unread: set[int] = set()
        self._own: set[int] = set()

    def read_new(self, at_most: int | None = None) -> list[FrozenTrial]:
        """All trials finished since the last call, by number."""
        trials = self._study.get_trials(deepcopy=False)
        numbers = {*self._unread, *range(self._n_read, len(trials))} - self._own
        self._n_read = len(trials)
        self._unread = {number for number in numbers if not trials[number].state.is_finished()}
        # Copies: what a caller sets on one must not reach the storage.
        return [copy(trials[number]) for number in sorted(numbers - self._unread)]

    def append(self, trials: Sequence[FrozenTrial], choose: Choice) -> Outcome:
        """Stores those of some finished trials that are chosen, after all others."""
        with self._alone():
            others = self.read_new()
            kept = choose(trials, others)
            stored = [self._own_trial(self._create(trial)) for trial in compress(trials, kept)]
        return stored, others, kept

    def _create(self, trial: FrozenTrial) -> int:
        """Stores a trial and returns its key."""
        return self._storage.create_new_trial(self._study_id, template_trial=trial)

    def _own_trial(self, trial_id: int) -> FrozenTrial:
        """A trial that was written here."""
        trial = copy(self._storage.get_trial(trial_id))
        self._own.add(trial.number)
        return trial

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other writers away, if the storage is a journal file that can be locked."""
        url = storage_url(self._storage) or ""
        with ExitStack() as stack:
            if url.startswith("journal:///"):
                journal = stack.enter_context(open(url.removeprefix("journal:///"), "ab"))
                # Some network file systems have no locks. Those of processes that die end.
                with suppress(OSError):
                    fcntl.flock(journal, fcntl.LOCK_EX)
            yield


class SharedTrials(StudyTrials):
    """The trials of a study that other processes write, too, where nothing can be locked.

    They take turns: who has trials to store begins the first of them, whose number says when it is
    their turn, and finishes it after it has stored the others. A process that was killed in its
    turn is passed by after a while.
    """

    def append(self, trials: Sequence[FrozenTrial], choose: Choice) -> Outcome:
        """See :meth:`StudyTrials.append`."""
        others = self.read_new()
        kept = choose(trials, others)
        if not any(kept):
            return [], others, kept
        own = list(compress(trials, kept))
        first = self._create(_begun(own[0]))
        number = self._own_trial(first).number
        end: tuple[TrialState, Sequence[float] | None] = TrialState.FAIL, None
        try:
            others += self._wait_for_turn(number)
            may_stay = choose(own, others)
            keys = [self._create(trial) for trial in compress(own[1:], may_stay[1:])]
            if may_stay[0]:
                end = own[0].state, own[0].values
        finally:
            is_mine = self._finish(number, *end)
        if may_stay[0] and is_mine:
            keys = [first, *keys]
        answers = iter([may_stay[0] and is_mine, *may_stay[1:]])
        stored = [self._own_trial(key) for key in keys]
        return stored, others, [was_kept and next(answers) for was_kept in kept]

    def _wait_for_turn(self, number: int) -> list[FrozenTrial]:
        """Waits for those that came before; returns what they finished in the meantime."""
        others: list[FrozenTrial] = []
        seen: tuple[int, list[int]] | None = None
        while True:
            others += self.read_new()
            before = [n for n in self._begun_by_others() if n < number]
            if not before:
                return others
            if seen != (self._n_read, before):
                seen, deadline = (self._n_read, before), time.monotonic() + _PATIENCE_S
            elif time.monotonic() > deadline:
                self._finish(before[0], TrialState.FAIL)
            time.sleep(_PAUSE_S)

    def _begun_by_others(self) -> list[int]:
        """The numbers of trials that say when it is another one's turn."""
        trials = self._study.get_trials(deepcopy=False)
        return [n for n in sorted(self._unread) if _BEGUN in trials[n].system_attrs]

    def _finish(
        self, number: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Finishes a trial that was begun, and says whether nobody had done so before."""
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        try:
            return self._storage.set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            return False


def _begun(trial: FrozenTrial) -> FrozenTrial:
    begun = copy(trial)
    begun.system_attrs = trial.system_attrs | {_BEGUN: True}
    begun.state, begun.values, begun.datetime_complete = TrialState.RUNNING, None, None
    return begun
