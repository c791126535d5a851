"""An SQLite file: whether Optuna can have it, and waiting while somebody else has it locked."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.exceptions import StorageInternalError

from wpo_optuna.errors import InvalidArgument, WeightProgrammingError

if TYPE_CHECKING:
    from sqlalchemy import Connection

_logger = logging.getLogger(__name__)

# A lock is asked for again this often, so that Ctrl-C is heard while waiting.
_ATTEMPT_MS = 250
# After so long a message says what is waited for.
_SILENCE_S = 5.0

_NETWORK_FILE_SYSTEM = re.compile(
    r"(fuse\.)?(9p|afs|beegfs|ceph|cephfs|cifs|glusterfs|gpfs|lustre|ncpfs|nfs4?|orangefs|panfs|"
    r"rclone|s3fs|smb3|smbfs|sshfs)"
)


class StorageError(WeightProgrammingError, StorageInternalError):
    """The storage could not be read or written; the message says why in one sentence."""


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


def optuna_tables(path: Path, url: str) -> set[str]:
    """The tables of an Optuna database; none if the file is empty or not there.

    Args:
        path: the file; nothing is written into it.
        url: what the user wrote, for the message.

    Raises:
        InvalidArgument: the file is anything but Optuna's.
        StorageError: it cannot be read, or not for some seconds.
    """
    if not path.exists() or path.stat().st_size == 0:
        return set()
    # Closing the last writable connection empties a write-ahead log into the file, which is for
    # its owner to do; where there is no log, a read-only connection would leave an empty one.
    mode = "ro" if Path(f"{path}-wal").exists() else "rw"
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=_SILENCE_S)) as connection:
            rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {name for (name,) in rows if not name.startswith("sqlite_")}
    except sqlite3.OperationalError as error:
        reason = "it is locked by another program" if _is_busy(error) else f"it fails ({error})"
        raise StorageError(f"storage {url!r}: {reason}") from error
    except sqlite3.DatabaseError:
        reason = "it is not an SQLite database"
    else:
        if not tables or "studies" in tables:
            return tables
        shown = ", ".join(sorted(tables)[:3])
        reason = f"it is an SQLite database of another program (tables {shown})"
    raise InvalidArgument(
        f"storage {url!r}: {reason}; accepted is an Optuna SQLite database, or the path of a file "
        "that does not exist yet"
    )


def begin_immediate(connection: Connection) -> None:
    """Begins a transaction that keeps other writers away.

    While somebody else writes it waits, as long as the connection's busy timeout says; after some
    seconds it says so, and Ctrl-C is heard.

    Args:
        connection: SQLAlchemy's, to an SQLite file.

    Raises:
        StorageError: the file is locked for longer.
    """
    file = connection.engine.url.database
    timeout_s = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() / 1000
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {_ATTEMPT_MS}")
    began, is_told = time.monotonic(), False
    try:
        while not _begins(connection):
            waited = time.monotonic() - began
            if waited >= timeout_s:
                raise StorageError(
                    f"storage 'sqlite:///{file}': it is locked by another program (waited "
                    f"{waited:.0f} s for it)"
                )
            if waited >= _SILENCE_S and not is_told:
                is_told = True
                _logger.warning(
                    f"waiting for {file}, which another program has locked (giving up after "
                    f"{timeout_s:g} s)"
                )
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {timeout_s * 1000:.0f}")


def _begins(connection: Connection) -> bool:
    from sqlalchemy.exc import OperationalError

    try:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    except OperationalError as error:
        if not _is_busy(error.orig):
            raise
        return False
    return True


def _is_busy(error: BaseException | None) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


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
        table = Path("/proc/self/mountinfo")
        mount_table = table.read_text() if table.exists() else ""
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
