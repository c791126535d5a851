"""Opening MLflow's database: what cannot be opened is told at once, a new one writes quickly."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from wpo_optuna.track.delivery import database_store


def journal_mode(path: Path) -> str:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return str(database.execute("PRAGMA journal_mode").fetchone()[0])


@pytest.fixture
def without_listener() -> Iterator[None]:
    """Connections made by other tests are not touched by what these tests listen to."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    yield
    if event.contains(Engine, "connect", database_store._set_up_connection):
        event.remove(Engine, "connect", database_store._set_up_connection)
    database_store._is_listening = False


@pytest.mark.usefixtures("without_listener")
def test_a_new_database_gets_a_write_ahead_log_and_an_existing_one_keeps_its_journal(
    tmp_path: Path,
) -> None:
    existing = tmp_path / "existing.db"
    with contextlib.closing(sqlite3.connect(existing)) as database:
        database.execute("CREATE TABLE runs (name TEXT)")
    new = tmp_path / "deep" / "new.db"
    for path in (existing, new):
        with database_store.preparing(f"sqlite:///{path}"):
            pass
    database_store.close_connections()
    assert journal_mode(existing) == "delete"
    assert journal_mode(new) == "wal"
    assert {path.name for path in new.parent.iterdir()} == {"new.db"}


@pytest.mark.usefixtures("without_listener")
@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite:///{}/notes.txt", "file is not a database"),
        ("sqlite:////proc/nowhere/mlflow.db", "/proc/nowhere"),
        ("sqlite:///{}", "unable to open database file"),
    ],
)
def test_a_database_that_cannot_be_opened_is_told_at_once(
    tmp_path: Path, uri: str, message: str
) -> None:
    """MLflow alone tries for two minutes."""
    (tmp_path / "notes.txt").write_text("no database, but long enough to be read as one" * 9)
    started = time.monotonic()
    with (
        pytest.raises(Exception, match=message),
        database_store.preparing(uri.format(tmp_path)),
    ):
        pass
    assert time.monotonic() - started < 5


def test_servers_are_left_alone(tmp_path: Path) -> None:
    with database_store.preparing("http://127.0.0.1:9"):
        pass
