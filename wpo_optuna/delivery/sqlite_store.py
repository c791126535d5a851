"""MLflow's SQLite store, made so that a commit does not wait for the disk several times."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry

_created_here: set[str] = set()
_is_listening = False


@contextmanager
def preparing(tracking_uri: str) -> Iterator[None]:
    """Surrounds the opening of a store, which creates an SQLite database if there is none.

    A new database gets a write-ahead log: a trial's run then takes a third of the time on a busy
    disk, and whoever looks at the runs in MLflow's UI does not keep them from being written. One
    that exists stays as it is. With a write-ahead log, ``synchronous = NORMAL`` keeps the database
    whole through a power cut; what it loses of the last seconds is delivered again.

    Several processes that open the same new store take turns: MLflow creates its tables without
    looking whether somebody else is doing the same.

    Args:
        tracking_uri: MLflow's tracking URI; anything but SQLite's is left alone.
    """
    path = _sqlite_path(tracking_uri)
    if path is None:
        yield
        return
    _listen()
    name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    with Path(tempfile.gettempdir(), f"wpo_mlflow_{os.getuid()}_{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists() and not _is_on_network(path):
            _created_here.add(str(path))
        yield


def _sqlite_path(tracking_uri: str) -> Path | None:
    from sqlalchemy.engine import make_url

    if not tracking_uri.startswith("sqlite"):
        return None
    database = make_url(tracking_uri).database
    if not database or database == ":memory:" or database.startswith("file:"):
        return None
    return Path(database).absolute()


def _is_on_network(path: Path) -> bool:
    from wpo_optuna.sqlite.file_systems import network_file_system

    return network_file_system(path) is not None


def _listen() -> None:
    global _is_listening
    if _is_listening:
        return
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    event.listen(Engine, "connect", _set_up_connection)
    _is_listening = True


def _set_up_connection(connection: Any, entry: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    try:
        file = cursor.execute("PRAGMA database_list").fetchone()[2]
        if file in _created_here:
            cursor.execute("PRAGMA journal_mode = WAL")
        if cursor.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            cursor.execute("PRAGMA synchronous = NORMAL")
    finally:
        cursor.close()
