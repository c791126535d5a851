"""What all commands have in common: exit statuses, errors of one sentence, quiet libraries."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable

from wpo_optuna.errors import WeightProgrammingError

FAILED = 1
INTERRUPTED = 130  # what shells report for a program ended by Ctrl-C


def run_command(command: Callable[[], int], *, debug: bool, on_interruption: str) -> int:
    """Runs a command and turns what it raises into a message and an exit status.

    Args:
        command: the command; returns its exit status.
        debug: whether errors are to be raised with their traceback.
        on_interruption: what to tell a user who ends the command with Ctrl-C.
    """
    _quieten_libraries()
    try:
        return command()
    except KeyboardInterrupt:
        print(f"\n{on_interruption}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return FAILED


def _quieten_libraries() -> None:
    """Leaves the terminal to this program's own messages."""
    for name in ("optuna", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # MLflow sets its level when imported

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if category.__module__.startswith("wpo_optuna"):
            print(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show  # type: ignore[assignment]


def _sentence(error: Exception) -> str:
    if isinstance(error, WeightProgrammingError):
        return str(error)
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line} (--debug shows where)"
