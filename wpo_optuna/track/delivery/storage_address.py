"""The address of an Optuna storage that is open, for a command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


def storage_url(storage: BaseStorage) -> str | None:
    """URL of a storage, for a command line; None if it is in memory.

    A password is not shown.
    """
    from optuna.storages import GrpcStorageProxy, InMemoryStorage, JournalStorage

    from wpo_optuna.sqlite import SQLiteStorage
    from wpo_optuna.storage import masked_url

    if isinstance(storage, InMemoryStorage):
        return None
    if isinstance(storage, SQLiteStorage):
        return f"sqlite:///{_from_here(storage.path)}"
    if isinstance(storage, JournalStorage):
        path = getattr(storage._backend, "_file_path", None)
        return f"journal:///{_from_here(Path(path))}" if path else "STORAGE"
    if isinstance(storage, GrpcStorageProxy):
        return f"grpc://{storage._host}:{storage._port}"
    url = getattr(getattr(storage, "_backend", storage), "url", None)
    return masked_url(url) if isinstance(url, str) else "STORAGE"


def file_of(url: str) -> Path | None:
    """The file that a storage's or tracking URI names; None if it names none."""
    scheme, _, location = url.partition(":///")
    path = location.partition("?")[0]
    if scheme.partition("+")[0] not in ("sqlite", "journal") or path in ("", ":memory:"):
        return None
    return Path(path).resolve()


def _from_here(path: Path) -> str:
    path = path.absolute()
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
