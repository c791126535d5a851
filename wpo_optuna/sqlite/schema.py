"""Whether an SQLite file is Optuna's, of the schema known here; and making a new one."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna

from wpo_optuna.errors import InvalidArgument, WeightProgrammingError
from wpo_optuna.sqlite import known_schema
from wpo_optuna.sqlite.connection import (
    LOCK_ATTEMPT_S,
    LOCK_WARNING_S,
    StorageError,
    explain,
    is_busy,
    tell_of_lock,
)

#: The head of Optuna's schema migrations whose tables this package reads and writes.
KNOWN_SCHEMA_VERSIONS = frozenset({known_schema.VERSION})

# Where the installed Optuna keeps its migrations, one file each.
_MIGRATIONS = Path(optuna.__file__).parent / "storages" / "_rdb" / "alembic" / "versions"
_REVISION = re.compile(r"""^revision\b[^=\n]*=\s*["']([^"']+)["']""", re.MULTILINE)
_DOWN_REVISION = re.compile(r"""^down_revision\b[^=\n]*=\s*["']([^"']+)["']""", re.MULTILINE)

_SMALLEST_DATABASE_BYTES = 512


class UnknownSchemaError(WeightProgrammingError):
    """The installed Optuna keeps its tables in a way that is not known here."""


@dataclass(frozen=True)
class OptunaSchema:
    """The tables which the installed Optuna makes in a new SQLite database.

    Attributes:
        version: Its schema version, the head of its migrations.
        tables: The names of its tables.
        statements: The SQL that makes them, with their indexes and first rows.
    """

    version: str
    tables: frozenset[str]
    statements: tuple[str, ...]


@functools.cache
def installed_schema() -> OptunaSchema:
    """What the installed Optuna makes of an empty database: known here, or else tried out."""
    if head_of_migrations(_MIGRATIONS) != known_schema.VERSION:
        return _tried_out()
    return OptunaSchema(
        known_schema.VERSION, known_schema.NAMES, known_schema.statements(optuna.__version__)
    )


def head_of_migrations(folder: Path) -> str | None:
    """The newest schema version among Optuna's migrations, or None if it cannot be told.

    Read as text, since importing them brings SQLAlchemy and alembic along.

    Args:
        folder: Where the migrations are.
    """
    texts = [path.read_text(encoding="utf-8") for path in folder.glob("*.py")]
    revisions = {match[1] for match in map(_REVISION.search, texts) if match}
    older = {match[1] for match in map(_DOWN_REVISION.search, texts) if match}
    heads = revisions - older
    # A migration written in another manner might be newer than those understood.
    return heads.pop() if len(heads) == 1 and len(revisions) == len(texts) else None


def _tried_out() -> OptunaSchema:
    """What Optuna itself makes of an empty database in memory."""
    reference = optuna.storages.RDBStorage("sqlite:///:memory:")
    connection = reference.engine.raw_connection()
    try:
        assert connection.driver_connection is not None
        dump = tuple(connection.driver_connection.iterdump())
        tables = frozenset(_tables(connection.driver_connection))
    finally:
        connection.close()
    version = reference.get_head_version()
    reference.engine.dispose()
    statements = tuple(line for line in dump if line not in ("BEGIN TRANSACTION;", "COMMIT;"))
    return OptunaSchema(version, tables, statements)


def check_schema_is_known() -> None:
    """Make sure that the installed Optuna's tables are those read and written here.

    Raises:
        UnknownSchemaError: If they are not.
    """
    version = installed_schema().version
    if version not in KNOWN_SCHEMA_VERSIONS:
        raise UnknownSchemaError(
            f"Optuna {optuna.__version__} has the database schema {version}, and the fast SQLite "
            f"storage knows {', '.join(sorted(KNOWN_SCHEMA_VERSIONS))} only"
        )


def prepare(path: Path, busy_timeout: float) -> None:
    """Make sure that ``path`` is an Optuna database of the installed version's schema.

    A file that does not exist, or is empty, becomes one, wholly or not at all. Nothing is written
    into a file that is anything else.

    Args:
        path: Where the database is or shall be.
        busy_timeout: How long to wait for a lock held by somebody else, in seconds.

    Raises:
        InvalidArgument: If the file cannot be used; the sentence says why.
        StorageError: If it is locked for longer, or cannot be read or written.
    """
    if not refuse_foreign(path, busy_timeout):
        with _connection(path, busy_timeout) as connection:
            connection.execute("BEGIN IMMEDIATE")
            # Another process may have made the tables while this one waited.
            if not _is_optuna(connection, path):
                for statement in installed_schema().statements:
                    connection.execute(statement)
            connection.execute("COMMIT")


def refuse_foreign(path: Path, busy_timeout: float) -> bool:
    """Refuse a file that Optuna may not write into, and write nothing.

    Args:
        path: Where the database is or shall be.
        busy_timeout: How long to wait for a lock held by somebody else, in seconds.

    Returns:
        True for an Optuna database, False for a file that is empty or does not exist.

    Raises:
        InvalidArgument: If the file cannot be used; the sentence says why.
        StorageError: If it is locked for longer, or cannot be read.
    """
    check_path(path, _url(path))
    size = path.stat().st_size if path.exists() else 0
    if size == 0:
        return False
    # The file itself is left to SQLite: closing it elsewhere in this process would take away the
    # locks of every connection to it. SQLite takes a file of one byte for an empty one.
    if size < _SMALLEST_DATABASE_BYTES:
        raise _refusal(path, "it is not an SQLite database")
    # Closing the last writable connection empties a write-ahead log into the file, which is for
    # its owner to do; where there is no log, a read-only connection would leave an empty one.
    mode = "ro" if Path(f"{path}-wal").exists() else "rw"
    try:
        return _is_optuna_when_unlocked(path, busy_timeout, mode)
    except StorageError:
        if mode == "rw":
            raise
    # After a crash the log or journal may need repair before anybody can read.
    return _is_optuna_when_unlocked(path, busy_timeout, "rwc")


def _is_optuna_when_unlocked(path: Path, busy_timeout: float, mode: str) -> bool:
    """Whether a file is Optuna's, once nobody locks it; Ctrl-C is heard meanwhile."""
    started = time.monotonic()
    is_told = False
    while True:
        try:
            with _connection(path, min(LOCK_ATTEMPT_S, busy_timeout), mode) as connection:
                return _is_optuna(connection, path)
        except StorageError as error:
            waited = time.monotonic() - started
            cause = error.__cause__
            if not (isinstance(cause, sqlite3.Error) and is_busy(cause)):
                raise
            if waited >= busy_timeout:
                raise StorageError(explain(cause, path, round(waited, 1))) from cause
            if waited >= LOCK_WARNING_S and not is_told:
                is_told = True
                tell_of_lock(path, busy_timeout)


def check_path(path: Path, url: str) -> None:
    """Refuse a path that cannot be a file which may be read and written.

    Args:
        path: Where the file is or shall be.
        url: What the user wrote, for the message.

    Raises:
        InvalidArgument: With the reason.
    """
    directory = path.absolute().parent
    reason = None
    if not directory.is_dir():
        reason = f"its directory {directory} does not exist"
    elif path.is_dir():
        reason = "it is a directory"
    elif path.exists() and not path.is_file():
        reason = "it is not a regular file"
    elif not os.access(directory, os.W_OK | os.X_OK):
        reason = f"no permission to write in its directory {directory}"
    elif path.exists() and not os.access(path, os.R_OK | os.W_OK):
        reason = "no permission to read and write it"
    if reason is not None:
        raise InvalidArgument(
            f"storage {url!r}: {reason}; accepted is a file that may be written, or its path if "
            "it does not exist yet"
        )


def _is_optuna(connection: sqlite3.Connection, path: Path) -> bool:
    tables = _tables(connection)
    if not tables:
        return False
    schema = installed_schema()
    if not (tables <= schema.tables or {"studies", "trials", "version_info"} <= tables):
        shown = ", ".join(sorted(tables)[:3]) + (", …" if len(tables) > 3 else "")
        raise _refusal(path, f"it is an SQLite database of another program (tables {shown})")
    version = _schema_version(connection) if "alembic_version" in tables else None
    if version != schema.version or not schema.tables <= tables:
        found = version or "that of an old or interrupted program"
        raise InvalidArgument(
            f"storage {_url(path)!r}: its schema is {found}, and Optuna {optuna.__version__} "
            f"needs {schema.version}; run `optuna storage upgrade --storage {_url(path)}`, "
            "or, if a newer Optuna wrote it, install that version"
        )
    return True


def _tables(connection: sqlite3.Connection) -> set[str]:
    rows = connection.execute(
        "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') "
        "AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    )
    return {name for (name,) in rows}


def _schema_version(connection: sqlite3.Connection) -> str | None:
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else row[0]


@contextlib.contextmanager
def _connection(path: Path, busy_timeout: float, mode: str = "rwc") -> Iterator[sqlite3.Connection]:
    started = time.monotonic()
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=busy_timeout,
            isolation_level=None,
        )
        with contextlib.closing(connection):
            yield connection
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", None) == "SQLITE_NOTADB":
            raise _refusal(path, "it is not an SQLite database") from error
        waited = round(time.monotonic() - started, 1)
        raise StorageError(explain(error, path, waited)) from error


def _refusal(path: Path, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"storage {_url(path)!r}: {reason}; accepted is an Optuna SQLite database, or the path of "
        "a file that does not exist yet"
    )


def _url(path: Path) -> str:
    return f"sqlite:///{path}"
