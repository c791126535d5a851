"""Opening an SQLite file for safe and fast writing, and saying what went wrong with one."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from optuna.exceptions import StorageInternalError

from wpo_optuna.errors import WeightProgrammingError
from wpo_optuna.sqlite.file_systems import network_file_system

_logger = logging.getLogger(__name__)

_PAGE_CACHE_KIB = 16 * 1024

# A lock is asked for again this often, so that Ctrl-C is heard while waiting.
LOCK_ATTEMPT_S = 0.25
# After so long a message says what is waited for.
LOCK_WARNING_S = 5.0


class StorageError(WeightProgrammingError, StorageInternalError):
    """The database could not be read or written; the message says why in one sentence."""


def explain(error: sqlite3.Error, path: Path, waited_s: float) -> str:
    """What went wrong with a database, in one sentence.

    Args:
        error: As raised by ``sqlite3``.
        path: The database file.
        waited_s: How long a lock was waited for, in seconds.
    """
    code = getattr(error, "sqlite_errorname", None) or ""
    reasons = {
        "SQLITE_BUSY": f"it is locked by another program (waited {waited_s:g} s for it)",
        "SQLITE_PROTOCOL": f"it is locked by another program (waited {waited_s:g} s for it)",
        "SQLITE_FULL": "the disk is full; free some space and run the same command again",
        "SQLITE_IOERR": f"reading or writing failed ({error}): the disk, a quota or a file-size "
        "limit may be full; what was committed before is intact",
        "SQLITE_READONLY": "it cannot be written: the file, its directory or the file system is "
        "read-only",
        "SQLITE_CANTOPEN": "it cannot be opened: the file is missing, or may not be read and "
        "written",
        "SQLITE_PERM": "it cannot be opened: the file may not be read and written",
        "SQLITE_NOTADB": "it is not an SQLite database",
        "SQLITE_CORRUPT": "the file is damaged; `sqlite3 FILE .recover` may save its contents",
    }
    reason = next((text for prefix, text in reasons.items() if code.startswith(prefix)), str(error))
    return f"storage 'sqlite:///{path}': {reason}"


def connect(path: Path, busy_timeout: float) -> sqlite3.Connection:
    """Open an existing database for safe and fast writing.

    A write-ahead log lets others read while one writes, and needs one fsync per transaction.
    Where it cannot be had (a network file system, which cannot share memory between machines, or
    somebody reading at the very moment) the database stays with its rollback journal.

    Args:
        path: An existing SQLite database; it is not created.
        busy_timeout: How long to wait for a lock, in seconds.

    Raises:
        sqlite3.Error: If the file cannot be opened.
    """
    connection = sqlite3.connect(
        path.absolute().as_uri() + "?mode=rw",
        uri=True,
        timeout=busy_timeout,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        if network_file_system(path) is None:
            _prefer_write_ahead_log(connection)
        connection.execute(f"PRAGMA busy_timeout = {int(busy_timeout * 1000)}")
        # Every commit is on the disk before it returns: a power cut loses the open batch only.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = -{_PAGE_CACHE_KIB}")
    except BaseException:
        connection.close()
        raise
    return connection


def _prefer_write_ahead_log(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA busy_timeout = 1000")
    try:
        connection.execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as error:
        if not is_busy(error):
            raise


def is_busy(error: sqlite3.Error) -> bool:
    """Whether somebody else's lock was in the way."""
    code = getattr(error, "sqlite_errorname", None) or ""
    return code.startswith(("SQLITE_BUSY", "SQLITE_PROTOCOL"))


def tell_of_lock(path: Path, busy_timeout: float) -> None:
    """Says that a lock is waited for, and for how long at most, in seconds."""
    _logger.warning(
        "waiting for %s, which another program has locked (giving up after %g s)",
        path,
        busy_timeout,
    )
