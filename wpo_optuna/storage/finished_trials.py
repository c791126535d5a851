"""The finished trials of a study, read and appended in bulk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any, TypeVar

from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.storage.urls import relational

if TYPE_CHECKING:
    from optuna import Study

    from wpo_optuna.storage.optuna_tables import DatabaseTrials

Identity = Callable[[FrozenTrial], Hashable]
_Result = TypeVar("_Result")


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
    enters. Other storages go through ``Study.get_trials`` and ``Study.add_trial``, where several
    processes may exceed a total together.

    Args:
        study: the study.
        attributes: names of the trials' user attributes that are read; None reads all. Storages
            that are no relational databases always read all.
        reads_only: whether nothing will be appended; what was read is not remembered then.
    """

    def __init__(
        self,
        study: Study,
        attributes: Collection[str] | None = None,
        *,
        reads_only: bool = False,
    ) -> None:
        self._store = _store_of(study, attributes)
        self._reads_only = reads_only
        self._n_complete = 0
        self._unidentified: list[FrozenTrial] = []
        self._identities: set[Hashable] = set()

    def read_new(self) -> list[FrozenTrial]:
        """The trials finished since the last call, by number; what it costs grows with them.

        Raises:
            StorageError: the storage cannot be read.
        """
        trials = self._store.read_new()
        self._note(trials)
        return trials

    def append(
        self, trials: Sequence[FrozenTrial], total: int | None, identity: Identity
    ) -> Appended:
        """Stores finished trials, unless the study has the same already or is complete.

        Args:
            trials: finished trials; their numbers do not matter.
            total: how many completed trials the study may have; None for no limit.
            identity: says what a trial is. Of completed trials of one identity only the first is
                stored; None is like no other. It is to be the same function each time.

        Raises:
            StorageError: the storage cannot be written; nothing was stored.
        """
        self._identities.update(map(identity, self._unidentified))
        self._unidentified.clear()
        appended = self._store.alone(lambda: self._append(trials, total, identity))
        self._note(appended.others)
        self._note(appended.stored)
        return appended

    def _append(
        self, trials: Sequence[FrozenTrial], total: int | None, identity: Identity
    ) -> Appended:
        others = self._store.read_new()
        present = {identity(trial) for trial in others if _is_complete(trial)}
        n_complete = self._n_complete + sum(map(_is_complete, others))
        kept = []
        for trial in trials:
            what = identity(trial)
            is_new = what is None or (what not in self._identities and what not in present)
            is_too_many = total is not None and n_complete >= total
            kept.append(is_new and not (_is_complete(trial) and is_too_many))
            if kept[-1] and _is_complete(trial):
                n_complete += 1
                present.add(what)
        stored = self._store.write(list(compress(trials, kept)))
        return Appended(stored, others, n_complete, kept)

    def _note(self, trials: Sequence[FrozenTrial]) -> None:
        complete = [trial for trial in trials if _is_complete(trial)]
        self._n_complete += len(complete)
        if not self._reads_only:
            self._unidentified.extend(complete)


class _StudyTrials:
    """The trials of a study in any storage, through the study itself."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._n_read = 0
        # Where trials are that were not finished yet, or not looked at.
        self._unread: set[int] = set()

    def read_new(self) -> list[FrozenTrial]:
        """The trials finished since the last call, by number."""
        trials = self._study.get_trials(deepcopy=False)
        places = [*sorted(self._unread), *range(self._n_read, len(trials))]
        self._n_read = len(trials)
        self._unread = {place for place in places if not trials[place].state.is_finished()}
        # Copies: what a caller sets on one must not reach the storage.
        return [copy(trials[place]) for place in places if place not in self._unread]

    def write(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Stores finished trials after all others, which have just been read."""
        self._study.add_trials(trials)
        present = self._study.get_trials(deepcopy=False)
        points = [frozenset(trial.params.items()) for trial in trials]
        places = defaultdict[frozenset[tuple[str, Any]], list[int]](list)
        for place in range(self._n_read, len(present)):
            point = frozenset(present[place].params.items())
            if point in points:
                places[point].append(place)
            else:
                # Another process has added it meanwhile.
                self._unread.add(place)
        self._n_read = len(present)
        return [copy(present[places[point].pop(0)]) for point in points]

    def alone(self, work: Callable[[], _Result]) -> _Result:
        """Reads and writes; other writers are not kept away."""
        return work()


def _store_of(study: Study, attributes: Collection[str] | None) -> DatabaseTrials | _StudyTrials:
    # Optuna's study has no public way to its storage.
    database = relational(study._storage)
    if database is None:
        return _StudyTrials(study)
    try:
        from wpo_optuna.storage.optuna_tables import DatabaseTrials
    except ImportError:  # Another Optuna, whose tables are elsewhere.
        return _StudyTrials(study)
    return DatabaseTrials(database.engine, study.study_name, attributes)


def _is_complete(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE
