"""The finished trials of a study, read and appended in bulk."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.storage.reconnecting import repeated_if_away
from wpo_optuna.storage.urls import relational, storage_url

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

    from wpo_optuna.storage.optuna_tables import DatabaseTrials

Identity = Callable[[FrozenTrial], Hashable]


@dataclass(frozen=True)
class Appended:
    """What became of trials that were to be appended.

    Attributes:
        stored: those that are stored now, with their final numbers.
        others: what other processes have finished since the last reading, by number.
        n_complete: the study's completed trials.
        kept: for each trial that was given, whether it is stored.
    """

    stored: list[FrozenTrial]
    others: list[FrozenTrial]
    n_complete: int
    kept: list[bool]


class FinishedTrials:
    """The finished trials (completed, pruned, failed) of one study.

    In relational databases (Optuna's ``RDBStorage``) trials are read and written in bulk, in
    Optuna's own tables, and :meth:`append` is one transaction that only one process at a time
    enters; so it is for a journal file. A restart of a database server is waited for. Other
    storages go through Optuna's own calls, where several processes may exceed a total together.

    Args:
        study: the study.
        attributes: names of the trials' user attributes that are read; None reads all. Storages
            that are no relational databases always read all.
        identity: says what a trial is. Of completed trials of one identity only the first is
            stored; None is like no other. Without it each is stored.
    """

    def __init__(
        self,
        study: Study,
        attributes: Collection[str] | None = None,
        identity: Identity = lambda trial: None,
    ) -> None:
        self._store = _store_of(study, attributes)
        self._identity = identity
        self._identities: set[Hashable] = set()
        self._n_complete = 0

    @repeated_if_away
    def read_new(self, at_most: int | None = None) -> list[FrozenTrial]:
        """The trials finished since the last call, by number; what it costs grows with them.

        Args:
            at_most: how many to read from a relational database, so that not all are in memory
                at once; none are returned if there are no more.

        Raises:
            StorageError: the storage cannot be read.
        """
        trials = self._store.read_new(at_most)
        self._note(trials)
        return trials

    @repeated_if_away
    def append(self, trials: Sequence[FrozenTrial], total: int | None = None) -> Appended:
        """Stores finished trials, unless the study has the same already or is complete.

        Args:
            trials: finished trials; their numbers do not matter.
            total: how many completed trials the study may have; None for no limit.

        Raises:
            StorageError: the storage cannot be written; nothing was stored.
        """
        # Repeated after a commit that was carried out unheard, it finds its own trials as others.
        with self._store.alone():
            others = self._store.read_new()
            present = {self._identity(trial) for trial in others if _is_complete(trial)}
            n_complete = self._n_complete + sum(map(_is_complete, others))
            kept = []
            for trial in trials:
                what = self._identity(trial)
                is_new = what is None or (what not in self._identities and what not in present)
                is_too_many = total is not None and n_complete >= total
                kept.append(is_new and not (_is_complete(trial) and is_too_many))
                if kept[-1] and _is_complete(trial):
                    n_complete += 1
                    present.add(what)
            stored = self._store.write(list(compress(trials, kept)))
        self._note(others)
        self._note(stored)
        return Appended(stored, others, n_complete, kept)

    def _note(self, trials: Sequence[FrozenTrial]) -> None:
        complete = [trial for trial in trials if _is_complete(trial)]
        self._n_complete += len(complete)
        self._identities.update(map(self._identity, complete))


class _StudyTrials:
    """The trials of a study in any storage, through the study itself."""

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

    def write(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Stores finished trials after all others."""
        create = self._storage.create_new_trial
        ids = [create(self._study_id, template_trial=trial) for trial in trials]
        stored = [copy(self._storage.get_trial(trial_id)) for trial_id in ids]
        self._own.update(trial.number for trial in stored)
        return stored

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other writers away, if the storage is a journal file that can be locked."""
        url = storage_url(self._storage) or ""
        with ExitStack() as stack:
            if url.startswith("journal:///"):
                journal = stack.enter_context(open(url.removeprefix("journal:///"), "ab"))
                # Some network file systems have no locks. Those of processes that die end.
                with suppress(OSError):
                    fcntl.flock(journal, fcntl.LOCK_EX)
            yield


def _store_of(study: Study, attributes: Collection[str] | None) -> DatabaseTrials | _StudyTrials:
    storage = study._storage  # Optuna's study has no public way to it.
    database = relational(storage)
    if database is not None:
        # Another Optuna may have its tables elsewhere.
        with suppress(ImportError):
            from wpo_optuna.storage.optuna_tables import DatabaseTrials

            return DatabaseTrials(database.engine, study.study_name, attributes)
    return _StudyTrials(study, storage)


def _is_complete(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE
