"""Bringing a study's cache up to date with what other processes wrote."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from optuna.trial import TrialState

from wpo_optuna.sqlite.cache import StudyCache
from wpo_optuna.sqlite.records import (
    KnownDistributions,
    OpenTrial,
    external_value,
    local_of,
    number_of,
    utc_text,
)
from wpo_optuna.sqlite.studies import directions_of

# SQLite accepts 999 variables at least, and reads much faster in blocks.
_BLOCK = 500
_STATES = {state.name: state for state in TrialState}


def refreshed(
    connection: sqlite3.Connection, study_id: int, known: StudyCache | None
) -> StudyCache:
    """The study as the database has it at this moment.

    Args:
        connection: Inside a transaction, so that all reads see the same moment.
        study_id: The study's key.
        known: What is known already; brought up to date and returned, unless the study was
            deleted and another has taken its key.

    Raises:
        KeyError: If there is no such study.
    """
    directions = directions_of(connection, study_id)
    if known is None or directions != known.directions or not _still_there(connection, known):
        known = StudyCache(study_id, directions)
    unread = [
        trial_id
        for (trial_id,) in connection.execute(
            "SELECT trial_id FROM trials WHERE study_id = ? AND trial_id > ? ORDER BY trial_id",
            (study_id, known.newest_trial_id),
        )
    ]
    for block in blocks([*sorted(known.open), *unread]):
        for trial in _read(connection, block, known.distributions):
            known.add(trial)
    return known


def _still_there(connection: sqlite3.Connection, known: StudyCache) -> bool:
    # Ids are used again after a study was deleted. Its newest finished trial would be gone, or
    # have other times, to the microsecond; an open one would be gone.
    newest = known.newest_finished
    if newest is not None:
        row = connection.execute(
            "SELECT study_id, datetime_start, datetime_complete FROM trials WHERE trial_id = ?",
            (newest._trial_id,),
        ).fetchone()
        times = utc_text(newest.datetime_start), utc_text(newest.datetime_complete)
        if row != (known.study_id, *times):
            return False
    return all(
        connection.execute(
            f"SELECT count(*) FROM trials WHERE study_id = ? AND trial_id IN ({marks(block)})",
            (known.study_id, *block),
        ).fetchone()[0]
        == len(block)
        for block in blocks(known.open)
    )


def _read(
    connection: sqlite3.Connection, trial_ids: list[int], distributions: KnownDistributions
) -> list[OpenTrial]:
    """The trials with these ids, in the order of their ids."""

    def rows(columns: str, table: str, order: str) -> Iterable[tuple]:
        return connection.execute(
            f"SELECT {columns} FROM {table} WHERE trial_id IN ({marks(trial_ids)}) "
            f"ORDER BY {order}",
            trial_ids,
        )

    trials: dict[int, OpenTrial] = {}
    columns = "trial_id, number, state, datetime_start, datetime_complete"
    for trial_id, number, state, start, complete in rows(columns, "trials", "trial_id"):
        trials[trial_id] = OpenTrial(
            trial_id, number, _STATES[state], local_of(start), local_of(complete)
        )
    columns = "trial_id, param_name, param_value, distribution_json"
    for trial_id, name, value, text in rows(columns, "trial_params", "trial_id, param_id"):
        distribution = distributions.decoded(text)
        trial, name = trials[trial_id], sys.intern(name)
        trial.params[name] = external_value(distribution, value)
        trial.distributions[name] = distribution
    columns = "trial_id, value, value_type"
    for trial_id, value, kind in rows(columns, "trial_values", "trial_id, objective"):
        trial = trials[trial_id]
        trial.values = [*(trial.values or []), number_of(value, kind)]
    columns = "trial_id, key, value_json"
    for trial_id, key, text in rows(columns, "trial_user_attributes", "trial_user_attribute_id"):
        trials[trial_id].user_attrs[sys.intern(key)] = json.loads(text)
    for trial_id, key, text in rows(
        columns, "trial_system_attributes", "trial_system_attribute_id"
    ):
        trials[trial_id].system_attrs[sys.intern(key)] = json.loads(text)
    columns = "trial_id, step, intermediate_value, intermediate_value_type"
    for trial_id, step, value, kind in rows(
        columns, "trial_intermediate_values", "trial_intermediate_value_id"
    ):
        trials[trial_id].intermediate_values[step] = number_of(value, kind)
    return list(trials.values())


def blocks(trial_ids: Iterable[Any]) -> Iterator[list[int]]:
    """The ids in lists short enough for one statement."""
    iterator = iter(trial_ids)
    while block := list(islice(iterator, _BLOCK)):
        yield block


def marks(block: list[int]) -> str:
    """A placeholder for each id."""
    return ", ".join("?" * len(block))
