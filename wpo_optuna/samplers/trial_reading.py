"""Reading from a storage only the trials that can have changed since the last reading."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna.storages._cached_storage import _CachedStorage

from wpo_optuna.sqlite import SQLiteStorage

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class TrialPosition:
    """Where a trial is kept.

    Attributes:
        number: its number within the study.
        trial_id: its key in the storage.
    """

    number: int
    trial_id: int


def read_trials(
    storage: BaseStorage, study_id: int, known: Iterable[TrialPosition], first_unread: int
) -> list[FrozenTrial]:
    """Reads trials that are known, and all that were created since.

    The cost grows with the number of trials returned, not with that of the study; asking the
    storage for all trials would copy, or even sort, the whole list.

    Args:
        storage: where the study is.
        study_id: the study's key.
        known: trials to read again.
        first_unread: the smallest number of which no trial is known; all from there are read.

    Returns:
        The trials, the storage's own objects where it hands them out: not to be changed.

    Raises:
        KeyError: the study or a known trial is gone.
    """
    if isinstance(storage, SQLiteStorage):
        ids = [position.trial_id for position in known]
        return storage.read_trials(study_id, ids, first_unread)
    if isinstance(storage, _CachedStorage):
        return _read_from_cache(storage, study_id, known, first_unread)
    trials = [storage.get_trial(position.trial_id) for position in known]
    number = first_unread
    while True:
        try:
            trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
        except KeyError:
            return trials
        trials.append(storage.get_trial(trial_id))
        number += 1


def _read_from_cache(
    storage: _CachedStorage, study_id: int, known: Iterable[TrialPosition], first_unread: int
) -> list[FrozenTrial]:
    # Optuna's cache of a relational database. Its get_trial would ask the database for every
    # trial that is not finished; this brings the cache up to date with a few queries for all.
    storage._read_trials_from_remote_storage(study_id)
    with storage._lock:
        cached = storage._studies[study_id].trials
        trials = [cached[position.number] for position in known]
        number = first_unread
        while number in cached:
            trials.append(cached[number])
            number += 1
    return trials
