"""The rows of a transaction, gathered and written together."""

from __future__ import annotations

import sqlite3

_STATEMENTS = {
    "trials": (
        "INSERT INTO trials (trial_id, number, study_id, state, datetime_start, "
        "datetime_complete) VALUES (?, ?, ?, ?, ?, ?)"
    ),
    "params": (
        "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) "
        "VALUES (?, ?, ?, ?)"
    ),
    "user_attrs": (
        "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?) "
        "ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json"
    ),
    "system_attrs": (
        "INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES (?, ?, ?) "
        "ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json"
    ),
    "intermediate_values": (
        "INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, "
        "intermediate_value_type) VALUES (?, ?, ?, ?) ON CONFLICT (trial_id, step) DO UPDATE SET "
        "intermediate_value = excluded.intermediate_value, "
        "intermediate_value_type = excluded.intermediate_value_type"
    ),
    "values": (
        "INSERT INTO trial_values (trial_id, objective, value, value_type) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (trial_id, objective) DO UPDATE SET value = excluded.value, "
        "value_type = excluded.value_type"
    ),
    "states": (
        "UPDATE trials SET state = ?, datetime_start = coalesce(?, datetime_start), "
        "datetime_complete = coalesce(?, datetime_complete) WHERE trial_id = ?"
    ),
}


class PendingWrites:
    """Rows waiting for the end of their transaction, one list for each statement.

    One ``executemany`` for a whole batch costs a third of as many single statements. The order
    within a list is kept; between the lists it does not matter except that trials come first and
    their states last.
    """

    def __init__(self) -> None:
        self.trials: list[tuple] = []
        self.params: list[tuple] = []
        self.user_attrs: list[tuple] = []
        self.system_attrs: list[tuple] = []
        self.intermediate_values: list[tuple] = []
        self.values: list[tuple] = []
        self.states: list[tuple] = []
        self._next_trial_id: int | None = None

    def new_trial_id(self, connection: sqlite3.Connection) -> int:
        """The id of the next trial row, as SQLite itself would choose it.

        Only the holder of the write lock may ask, so nobody else can take the same.
        """
        if self._next_trial_id is None:
            row = connection.execute("SELECT max(trial_id) FROM trials").fetchone()
            self._next_trial_id = (row[0] or 0) + 1
        trial_id = self._next_trial_id
        self._next_trial_id += 1
        return trial_id

    def flush(self, connection: sqlite3.Connection) -> None:
        """Write all rows inside the running transaction."""
        for name, statement in _STATEMENTS.items():
            rows = getattr(self, name)
            if rows:
                connection.executemany(statement, rows)
                rows.clear()
        # The next transaction must look again: others may have written in between.
        self._next_trial_id = None

    def clear(self) -> None:
        """Forget all rows."""
        for name in _STATEMENTS:
            getattr(self, name).clear()
        self._next_trial_id = None
