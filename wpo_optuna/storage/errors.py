"""What goes wrong with a storage that is open."""

from __future__ import annotations

from optuna.exceptions import StorageInternalError

from wpo_optuna.errors import WeightProgrammingError


class StorageError(WeightProgrammingError, StorageInternalError):
    """The storage could not be read or written; the message says why in one sentence."""
