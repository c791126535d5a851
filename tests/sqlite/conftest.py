from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def memory_directory(tmp_path: Path) -> Iterator[Path]:
    """A directory whose fsync costs nothing, for tests of behaviour rather than of durability."""
    shared_memory = Path("/dev/shm")
    if not (shared_memory.is_dir() and os.access(shared_memory, os.W_OK)):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared_memory) as directory:
        yield Path(directory)
