"""Which file system a path lies on, where that decides how SQLite may lock."""

from __future__ import annotations

import re
from pathlib import Path

_NETWORK_FILE_SYSTEMS = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.beegfs",
        "fuse.cephfs",
        "fuse.glusterfs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "orangefs",
        "panfs",
        "smb3",
        "smbfs",
    }
)
_MOUNT_TABLE = Path("/proc/self/mountinfo")


def network_file_system(path: Path, mount_table: str | None = None) -> str | None:
    """The type of the network file system that holds ``path``, or None if its disk is local.

    SQLite's write-ahead log needs memory shared by all its readers and writers. On a network file
    system it seems to work, and loses data as soon as two machines write.

    Args:
        path: A file or directory.
        mount_table: The text of Linux's ``/proc/self/mountinfo``; read from there if None. Other
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
        mount_point = Path(_unescape(fields.split()[4]))
        # Of two mounts on one directory the later hides the earlier.
        if path.is_relative_to(mount_point) and mount_point.is_relative_to(holder):
            holder, holder_type = mount_point, source.split()[0]
    return holder_type if holder_type in _NETWORK_FILE_SYSTEMS else None


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
