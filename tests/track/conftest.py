from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables: making them takes MLflow seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}")
    return path


@pytest.fixture
def working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty working directory whose fsync costs nothing: these tests are about behaviour."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    shared_memory = Path("/dev/shm")
    usable = shared_memory.is_dir() and os.access(shared_memory, os.W_OK)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tempfile.TemporaryDirectory(dir=shared_memory if usable else None) as directory:
        monkeypatch.chdir(directory)
        yield Path(directory)


@pytest.fixture
def store(new_store: Path, working_directory: Path) -> str:
    """Tracking URI of an MLflow store without runs: that of MLflow's default."""
    shutil.copy(new_store, working_directory / "mlflow.db")
    return f"sqlite:///{working_directory}/mlflow.db"
