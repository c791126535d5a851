"""Optuna's own SQLite schema, written and read with plain SQL: thousands of trials per second."""

from wpo_optuna.sqlite.connection import StorageError
from wpo_optuna.sqlite.schema import UnknownSchemaError, check_path, refuse_foreign
from wpo_optuna.sqlite.storage import SQLiteStorage

__all__ = [
    "SQLiteStorage",
    "StorageError",
    "UnknownSchemaError",
    "check_path",
    "refuse_foreign",
]
