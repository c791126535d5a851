"""An SQLite file: whether it is Optuna's, and whether it may have a write-ahead log."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

_NETWORK_FILE_SYSTEM = re.compile(
    r"(fuse\.)?(9p|afs|beegfs|ceph|cephfs|cifs|glusterfs|gpfs|lustre|ncpfs|nfs4?|orangefs|panfs|"
    r"rclone|s3fs|smb3|smbfs|sshfs)"
)


def optuna_tables(path: Path) -> set[str]:
    """The tables of an Optuna database; none if the file is empty or not there.

    Args:
        path: the file; nothing is written into it.

    Raises:
        OSError: there is no such directory.
        ValueError: the database is another program's.
        sqlite3.Error: the file is no database, or cannot be read.
    """
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no directory {path.parent}")
    if not path.exists() or path.stat().st_size == 0:
        return set()
    # Closing the last writable connection empties a write-ahead log into the file, which is for
    # its owner to do; where there is no log, a read-only connection would leave an empty one.
    mode = "ro" if Path(f"{path}-wal").exists() else "rw"
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = {name for (name,) in rows if not name.startswith("sqlite_")}
    if tables and "studies" not in tables:
        raise ValueError(f"it is a database of another program, with a table {min(tables)}")
    return tables


def network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """The type of the network file system that holds a path, or None if its disk is local.

    SQLite's write-ahead log needs memory shared by all its readers and writers. On a network file
    system it seems to work, and loses data as soon as two machines write.

    Args:
        path: a file or directory.
        mounts: the text of Linux's ``/proc/self/mounts``; read from there if None. Other systems
            have no such file, and every path counts as local.
    """
    if mounts is None:
        table = Path("/proc/self/mounts")
        mounts = table.read_text() if table.exists() else ""
    rows = [line.split() for line in mounts.splitlines()]
    kinds = {Path(row[1].replace("\\040", " ")): row[2] for row in rows}
    path = path.resolve()
    kind = next((kinds[place] for place in (path, *path.parents) if place in kinds), "")
    return kind if _NETWORK_FILE_SYSTEM.fullmatch(kind) else None
