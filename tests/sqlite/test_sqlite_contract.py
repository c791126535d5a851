"""Optuna's own tests of a storage."""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.study import StudyDirection
from optuna.testing.pytest_storages import StorageTestCase

from wpo_optuna.sqlite import SQLiteStorage, file_systems


class TestWithAWriteAheadLog(StorageTestCase):
    @pytest.fixture
    def storage(self, memory_directory: Path) -> SQLiteStorage:
        storage = SQLiteStorage(memory_directory / "study.db")
        assert storage.get_all_studies() == []
        assert _journal_mode(storage.path) == "wal"
        return storage


class TestWithARollbackJournal(StorageTestCase):
    """As on a network file system, where a write-ahead log would lose data."""

    @pytest.fixture
    def storage(self, memory_directory: Path, monkeypatch: pytest.MonkeyPatch) -> SQLiteStorage:
        mounts = memory_directory / "mountinfo"
        mounts.write_text(f"36 1 0:32 / {memory_directory} rw - nfs4 server:/export rw\n")
        monkeypatch.setattr(file_systems, "_MOUNT_TABLE", mounts)
        storage = SQLiteStorage(memory_directory / "study.db")
        assert storage.get_all_studies() == []
        assert _journal_mode(storage.path) == "delete"
        return storage


class TestInsideABatch(StorageTestCase):
    """Nothing may need a commit to be seen by its own thread."""

    @pytest.fixture
    def storage(self, memory_directory: Path) -> Iterator[SQLiteStorage]:
        storage = SQLiteStorage(memory_directory / "study.db")
        outer = storage.create_new_study([StudyDirection.MINIMIZE], "only opens the batch")
        with storage.batch(outer):
            storage.delete_study(outer)
            yield storage

    def test_pickle_storage(self, storage: SQLiteStorage) -> None:
        """Not Optuna's: the copy has a connection of its own, which sees no open batch."""
        storage.create_new_study([StudyDirection.MINIMIZE], "uncommitted")
        copied = pickle.loads(pickle.dumps(storage))
        assert [study.study_name for study in copied.get_all_studies()] == ["only opens the batch"]


def _journal_mode(path: Path) -> str:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("PRAGMA journal_mode").fetchone()[0]
    finally:
        connection.close()
