"""MLflow's database store: opened without waiting for nothing, and quick to write if SQLite."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from wpo_optuna.track.delivery.tracking_uri import DATABASES

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry

_created_here: set[str] = set()
_connections: list[Any] = []
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
        tracking_uri: MLflow's tracking URI; a server's is left alone.

    Raises:
        SQLAlchemyError: there is no such database, or it does not answer.
    """
    path = _sqlite_path(tracking_uri)
    if path is None:
        _check_that_it_answers(tracking_uri)
        yield
        return
    _listen()
    name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    with Path(tempfile.gettempdir(), f"wpo_mlflow_{os.getuid()}_{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists() and not _is_on_network(path):
            _created_here.add(str(path))
            path.parent.mkdir(parents=True, exist_ok=True)
        _check_that_it_answers(tracking_uri)
        yield


def _check_that_it_answers(tracking_uri: str) -> None:
    """Reads a database once: MLflow would try for two minutes before it says anything."""
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.engine import make_url

    if urlsplit(tracking_uri).scheme.partition("+")[0] not in DATABASES:
        return
    engine = create_engine(make_url(tracking_uri))
    try:
        inspect(engine).get_table_names()
    finally:
        engine.dispose()


def close_connections() -> None:
    """Closes what MLflow leaves open, so that the write-ahead log goes into the database.

    Until then the database's file alone does not have everything.
    """
    while _connections:
        _connections.pop().close()


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
    _connections.append(connection)
    cursor = connection.cursor()
    try:
        file = cursor.execute("PRAGMA database_list").fetchone()[2]
        if file in _created_here:
            cursor.execute("PRAGMA journal_mode = WAL")
        if cursor.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            cursor.execute("PRAGMA synchronous = NORMAL")
    finally:
        cursor.close()
