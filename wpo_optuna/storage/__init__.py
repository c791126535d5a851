"""Where a study is kept: storages by URL, and their finished trials read and appended in bulk."""

from __future__ import annotations

from wpo_optuna.storage.finished_trials import Appended, FinishedTrials
from wpo_optuna.storage.reconnecting import StorageError, StorageWarning
from wpo_optuna.storage.urls import (
    check_kind,
    load_study,
    masked_url,
    network_file_system,
    open_storage,
    storage_url,
    word_for_shell,
)

__all__ = [
    "Appended",
    "FinishedTrials",
    "StorageError",
    "StorageWarning",
    "check_kind",
    "load_study",
    "masked_url",
    "network_file_system",
    "open_storage",
    "storage_url",
    "word_for_shell",
]
