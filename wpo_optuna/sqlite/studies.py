"""Studies, their directions and attributes, in Optuna's tables."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy

_TRIAL_TABLES = (
    "trial_heartbeats",
    "trial_intermediate_values",
    "trial_params",
    "trial_system_attributes",
    "trial_user_attributes",
    "trial_values",
)
_STUDY_TABLES = (
    "trials",
    "study_directions",
    "study_system_attributes",
    "study_user_attributes",
    "studies",
)


def find_id(connection: sqlite3.Connection, name: str) -> int | None:
    """The id of the study called ``name``, or None."""
    row = connection.execute("SELECT study_id FROM studies WHERE study_name = ?", (name,))
    found = row.fetchone()
    return None if found is None else found[0]


def name_of(connection: sqlite3.Connection, study_id: int) -> str:
    """A study's name.

    Raises:
        KeyError: If there is no such study.
    """
    row = connection.execute("SELECT study_name FROM studies WHERE study_id = ?", (study_id,))
    found = row.fetchone()
    if found is None:
        raise KeyError(f"No study with study_id {study_id} exists.")
    return found[0]


def create(connection: sqlite3.Connection, name: str, directions: Sequence[StudyDirection]) -> int:
    """Add a study and return its id."""
    study_id = connection.execute("INSERT INTO studies (study_name) VALUES (?)", (name,)).lastrowid
    assert study_id is not None
    connection.executemany(
        "INSERT INTO study_directions (direction, study_id, objective) VALUES (?, ?, ?)",
        [(direction.name, study_id, objective) for objective, direction in enumerate(directions)],
    )
    return study_id


def delete(connection: sqlite3.Connection, study_id: int) -> None:
    """Remove a study with all its trials."""
    for table in _TRIAL_TABLES:
        connection.execute(
            f"DELETE FROM {table} WHERE trial_id IN "
            "(SELECT trial_id FROM trials WHERE study_id = ?)",
            (study_id,),
        )
    for table in _STUDY_TABLES:
        connection.execute(f"DELETE FROM {table} WHERE study_id = ?", (study_id,))


def directions_of(connection: sqlite3.Connection, study_id: int) -> list[StudyDirection]:
    """The direction of each objective.

    Raises:
        KeyError: If there is no such study.
    """
    rows = connection.execute(
        "SELECT direction FROM study_directions WHERE study_id = ? ORDER BY objective", (study_id,)
    ).fetchall()
    if not rows:
        raise KeyError(f"No study with study_id {study_id} exists.")
    return [StudyDirection[name] for (name,) in rows]


def set_attribute(
    connection: sqlite3.Connection, table: str, study_id: int, key: str, text: str
) -> None:
    """Set or replace one attribute, given as JSON.

    Raises:
        KeyError: If there is no such study.
    """
    name_of(connection, study_id)
    connection.execute(
        f"INSERT INTO {table} (study_id, key, value_json) VALUES (?, ?, ?) "
        "ON CONFLICT (study_id, key) DO UPDATE SET value_json = excluded.value_json",
        (study_id, key, text),
    )


def attributes(connection: sqlite3.Connection, table: str, study_id: int) -> dict[str, Any]:
    """All attributes of a study.

    Raises:
        KeyError: If there is no such study.
    """
    name_of(connection, study_id)
    rows = connection.execute(
        f"SELECT key, value_json FROM {table} WHERE study_id = ?", (study_id,)
    )
    return {key: json.loads(text) for key, text in rows}


def read_all(connection: sqlite3.Connection) -> list[FrozenStudy]:
    """All studies, in order of their ids."""
    directions = defaultdict(list)
    for study_id, name in connection.execute(
        "SELECT study_id, direction FROM study_directions ORDER BY study_id, objective"
    ):
        directions[study_id].append(StudyDirection[name])
    user_attrs, system_attrs = (
        _attributes_by_study(connection, table)
        for table in ("study_user_attributes", "study_system_attributes")
    )
    return [
        FrozenStudy(
            study_name=name,
            direction=None,
            directions=directions[study_id],
            user_attrs=user_attrs[study_id],
            system_attrs=system_attrs[study_id],
            study_id=study_id,
        )
        for study_id, name in connection.execute(
            "SELECT study_id, study_name FROM studies ORDER BY study_id"
        )
    ]


def _attributes_by_study(
    connection: sqlite3.Connection, table: str
) -> defaultdict[int, dict[str, Any]]:
    found: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    for study_id, key, text in connection.execute(f"SELECT study_id, key, value_json FROM {table}"):
        found[study_id][key] = json.loads(text)
    return found
