"""The finished trials of a study, read and appended in bulk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna.storages import GrpcStorageProxy
from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.storage.optuna_calls import SharedTrials, StudyTrials
from wpo_optuna.storage.reconnecting import repeated_if_away
from wpo_optuna.storage.urls import relational

if TYPE_CHECKING:
    from optuna import Study

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
    enters. A restart of a database server is waited for. Other storages go through Optuna's own
    calls, one process at a time: with a journal file by a lock on it, through a gRPC proxy by the
    numbers of trials that are begun.

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
        stored, others, kept = self._store.append(
            trials, lambda own, others: self._choose(own, others, total)
        )
        self._note(others)
        self._note(stored)
        return Appended(stored, others, self._n_complete, kept)

    def _choose(
        self, trials: Sequence[FrozenTrial], others: Sequence[FrozenTrial], total: int | None
    ) -> list[bool]:
        """Which trials are to be stored after others that have not been noted yet."""
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
        return kept

    def _note(self, trials: Sequence[FrozenTrial]) -> None:
        complete = [trial for trial in trials if _is_complete(trial)]
        self._n_complete += len(complete)
        self._identities.update(map(self._identity, complete))


def _store_of(study: Study, attributes: Collection[str] | None) -> DatabaseTrials | StudyTrials:
    storage = study._storage  # Optuna's study has no public way to it.
    database = relational(storage)
    if database is not None:
        # Another Optuna may have its tables elsewhere.
        with suppress(ImportError):
            from wpo_optuna.storage.optuna_tables import DatabaseTrials

            return DatabaseTrials(database.engine, study.study_name, attributes)
    if isinstance(storage, GrpcStorageProxy):
        return SharedTrials(study, storage)
    return StudyTrials(study, storage)


def _is_complete(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE
