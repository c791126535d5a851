"""An SQLite file before Optuna gets it: whether it can be used, and waiting while it is locked."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.storage.errors import StorageError

if TYPE_CHECKING:
    from sqlalchemy import Connection

_logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# A lock is asked for again this often, so that Ctrl-C is heard while waiting.
ATTEMPT_S = 0.25
# After so long a message says what is waited for.
_SILENCE_S = 5.0

_NETWORK_FILE_SYSTEM = re.compile(
    r"(fuse\.)?(9p|afs|beegfs|ceph|cephfs|cifs|glusterfs|gpfs|lustre|ncpfs|nfs4?|orangefs|panfs|"
    r"rclone|s3fs|smb3|smbfs|sshfs)"
)
_MOUNT_TABLE = Path("/proc/self/mountinfo")


def check_path(path: Path, url: str) -> None:
    """Refuses a path that cannot be a file which may be read and written.

    Args:
        path: where the file is or shall be.
        url: what the user wrote, for the message.

    Raises:
        InvalidArgument: with the reason.
    """
    directory = path.absolute().parent
    if not directory.is_dir():
        reason = f"its directory {directory} does not exist"
    elif path.exists() and not path.is_file():
        reason = "it is a directory" if path.is_dir() else "it is not a regular file"
    elif not os.access(directory, os.W_OK | os.X_OK):
        reason = f"no permission to write in its directory {directory}"
    elif path.exists() and not os.access(path, os.R_OK | os.W_OK):
        reason = "no permission to read and write it"
    else:
        return
    raise InvalidArgument(
        f"storage {url!r}: {reason}; accepted is a file that may be written, or its path if it "
        "does not exist yet"
    )


def optuna_tables(path: Path, url: str, busy_timeout: float) -> set[str]:
    """The tables of an Optuna database; none if the file is empty or not there.

    Args:
        path: the file; nothing is written into it.
        url: what the user wrote, for the message.
        busy_timeout: how long to wait for a lock held by somebody else, in seconds.

    Raises:
        InvalidArgument: the file is anything but Optuna's.
        StorageError: it is locked for longer, or cannot be read.
    """
    if not path.exists() or path.stat().st_size == 0:
        return set()
    try:
        tables = when_unlocked(lambda: _tables(path), str(path), busy_timeout)
    except sqlite3.OperationalError as error:
        raise StorageError(f"storage {url!r}: it cannot be read ({error})") from error
    except sqlite3.DatabaseError as error:
        raise _refusal(url, "it is not an SQLite database") from error
    if tables and "studies" not in tables:
        shown = ", ".join(sorted(tables)[:3])
        raise _refusal(url, f"it is an SQLite database of another program (tables {shown})")
    return tables


def when_unlocked(attempt: Callable[[], _Result], what: str, busy_timeout: float) -> _Result:
    """Does something with an SQLite file as soon as nobody locks it; Ctrl-C is heard meanwhile.

    Args:
        attempt: fails with SQLite's "locked", as sqlite3 or SQLAlchemy raise it, after
            :data:`ATTEMPT_S` at the latest.
        what: the file, for the messages.
        busy_timeout: how long to go on attempting, in seconds.

    Raises:
        StorageError: it is locked for longer.
    """
    began, is_told = time.monotonic(), False
    while True:
        try:
            return attempt()
        except Exception as error:
            if not _is_busy(error):
                raise
            waited = time.monotonic() - began
            if waited >= busy_timeout:
                raise StorageError(
                    f"storage {what!r}: it is locked by another program (waited {waited:.0f} s "
                    "for it)"
                ) from error
        if waited >= _SILENCE_S and not is_told:
            is_told = True
            _logger.warning(
                "waiting for %s, which another program has locked (giving up after %g s)",
                what,
                busy_timeout,
            )


def begin_immediate(connection: Connection) -> None:
    """Begins a transaction that keeps other writers away, waiting no longer than allowed.

    Args:
        connection: SQLAlchemy's, to an SQLite file. Its busy timeout says how long to wait.

    Raises:
        StorageError: somebody else has it locked for longer.
    """
    timeout_ms: int = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {ATTEMPT_S * 1000:.0f}")
    try:
        when_unlocked(
            lambda: connection.exec_driver_sql("BEGIN IMMEDIATE"),
            str(connection.engine.url.database),
            timeout_ms / 1000,
        )
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {timeout_ms}")


def network_file_system(path: Path, mount_table: str | None = None) -> str | None:
    """The type of the network file system that holds a path, or None if its disk is local.

    SQLite's write-ahead log needs memory shared by all its readers and writers. On a network file
    system it seems to work, and loses data as soon as two machines write.

    Args:
        path: a file or directory.
        mount_table: the text of Linux's ``/proc/self/mountinfo``; read from there if None. Other
            systems have no such file, and every path counts as local.
    """
    if mount_table is None:
        try:
            mount_table = _MOUNT_TABLE.read_text()
        except OSError:
            return None
    path = path.resolve()
    holder, holder_type = Path("/"), ""
    for line in mount_table.splitlines():
        fields, _, source = line.partition(" - ")
        escaped = fields.split()[4]
        mount_point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), escaped))
        # Of two mounts on one directory the later hides the earlier.
        if path.is_relative_to(mount_point) and mount_point.is_relative_to(holder):
            holder, holder_type = mount_point, source.split()[0]
    return holder_type if _NETWORK_FILE_SYSTEM.fullmatch(holder_type) else None


def _tables(path: Path) -> set[str]:
    # Closing the last writable connection empties a write-ahead log into the file, which is for
    # its owner to do; where there is no log, a read-only connection would leave an empty one.
    mode = "ro" if Path(f"{path}-wal").exists() else "rw"
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    with closing(sqlite3.connect(uri, uri=True, timeout=ATTEMPT_S)) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
        return {name for (name,) in rows if not name.startswith("sqlite_")}


def _is_busy(error: Exception) -> bool:
    cause = getattr(error, "orig", error)
    return getattr(cause, "sqlite_errorcode", 0) & 0xFF in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PROTOCOL,
    )


def _refusal(url: str, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"storage {url!r}: {reason}; accepted is an Optuna SQLite database, or the path of a file "
        "that does not exist yet"
    )
