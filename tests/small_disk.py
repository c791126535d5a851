"""A file system of its own, small enough to be filled."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


class SmallDisk:
    """In memory; mounted when it is made, which needs root.

    Args:
        directory: where; it is created.
        size_mb: its size in MB.

    Raises:
        OSError: it cannot be mounted here.
    """

    def __init__(self, directory: Path, size_mb: float) -> None:
        directory.mkdir()
        self.directory = directory
        options = f"size={round(size_mb * 2**20)}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
        if subprocess.run(command, capture_output=True).returncode != 0:
            raise OSError("mounting a small disk needs root")

    def resize(self, size_mb: float) -> None:
        """Gives it another size in MB, not less than what is in use."""
        options = f"remount,size={round(size_mb * 2**20)}"
        subprocess.run(["mount", "-o", options, str(self.directory)], check=True)

    def fill(self) -> None:
        """Leaves no space."""
        self.resize(shutil.disk_usage(self.directory).used / 2**20)

    def unmount(self) -> None:
        """Ends it, with its files."""
        # Lazily: connections that await the garbage collector would keep it busy.
        subprocess.run(["umount", "--lazy", str(self.directory)], check=True)
