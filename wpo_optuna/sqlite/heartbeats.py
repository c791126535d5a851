"""Signs of life of running trials, in Optuna's table."""

from __future__ import annotations

import sqlite3

from wpo_optuna.sqlite.reading import blocks, marks


def record(connection: sqlite3.Connection, trial_id: int) -> None:
    """Note that a trial is alive now."""
    connection.execute(
        "INSERT INTO trial_heartbeats (trial_id, heartbeat) VALUES (?, CURRENT_TIMESTAMP) "
        "ON CONFLICT (trial_id) DO UPDATE SET heartbeat = excluded.heartbeat",
        (trial_id,),
    )


def stale(connection: sqlite3.Connection, trial_ids: list[int], grace_period: int) -> list[int]:
    """Those trials whose last sign of life is longer ago than ``grace_period`` seconds.

    A trial that never gave one is not among them.
    """
    age = "strftime('%s', CURRENT_TIMESTAMP) - strftime('%s', heartbeat)"
    return [
        trial_id
        for block in blocks(trial_ids)
        for (trial_id,) in connection.execute(
            f"SELECT trial_id FROM trial_heartbeats WHERE trial_id IN ({marks(block)}) "
            f"AND {age} > ? ORDER BY trial_id",
            (*block, grace_period),
        )
    ]
