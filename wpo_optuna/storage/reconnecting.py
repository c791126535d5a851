"""Database servers that are restarted: connections wait for them, and what was cut off is repeated.

A server that comes back is connected to anew by whatever needs it next. What was under way when it
went away has failed, even if its commit may have been carried out: only what may be done twice is
repeated.
"""

from __future__ import annotations

import functools
import re
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import Engine, event

from wpo_optuna.errors import WeightProgrammingError, first_line

_PATIENCE_S, _PAUSE_S = 120.0, 1.0
_TIMES = 5
_KEPT = "what was stored is kept, and the same command goes on from there"
# What a server says that is stopped or started, or its client of one that has just gone.
_RESTARTS = re.compile("the database system is|terminating connection|server closed the connection")

P = ParamSpec("P")
R = TypeVar("R")


class StorageError(WeightProgrammingError, StorageInternalError):
    """The storage could not be read or written; the message says why in one sentence."""


class ServerAway(StorageError):
    """The database server ended a connection that was in use."""


class StorageWarning(UserWarning):
    """The storage keeps its user waiting."""


class Patience:
    """Waits for a database server, says so once, and gives up after two minutes.

    Args:
        shown_url: the storage's URL for people to read.
    """

    def __init__(self, shown_url: str) -> None:
        self._shown_url = shown_url
        self._started, self._is_told = time.monotonic(), False

    def wait(self, error: BaseException) -> None:
        """Waits a moment before the server is tried again, which failed with this error.

        Raises:
            StorageError: it has been tried for long enough.
        """
        reason = first_line(error)
        if time.monotonic() - self._started >= _PATIENCE_S:
            raise StorageError(
                f"storage {self._shown_url!r}: the database server went away and has not come "
                f"back in {_PATIENCE_S:.0f} s ({reason}); {_KEPT} when it is back."
            ) from error
        if not self._is_told:
            self._is_told = True
            warnings.warn(
                f"storage {self._shown_url!r}: the database server went away ({reason}); waiting "
                f"for it up to {_PATIENCE_S:.0f} s (Ctrl-C ends that).",
                StorageWarning,
                stacklevel=2,
            )
        time.sleep(_PAUSE_S)


def is_restart(message: str) -> bool:
    """Whether a server's or its client's message tells of one that is being restarted."""
    return _RESTARTS.search(message) is not None


def outlast_restarts(engine: Engine, shown_url: str) -> None:
    """Makes new connections of an engine wait for a server that does not answer.

    Args:
        engine: has reached its server before, so that it is not its address that is wrong.
        shown_url: its URL for people to read.
    """

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, arguments: Any, options: Any) -> Any:
        patience = Patience(shown_url)
        while True:
            try:
                return dialect.connect(*arguments, **options)
            except dialect.loaded_dbapi.OperationalError as error:
                patience.wait(error)

    @event.listens_for(engine, "handle_error")
    def tell(context: Any) -> None:
        # Ctrl-C ends a connection, too.
        is_away = context.is_disconnect and isinstance(context.original_exception, Exception)
        if is_away and not context.is_pre_ping:
            reason = first_line(context.original_exception)
            raise ServerAway(
                f"storage {shown_url!r}: the database server went away ({reason}); {_KEPT}."
            )


def repeated_if_away(function: Callable[P, R]) -> Callable[P, R]:
    """Repeats a function that a restart of the server cut off; it must be fit to be done twice."""

    @functools.wraps(function)
    def repeated(*arguments: P.args, **options: P.kwargs) -> R:
        for _ in range(_TIMES - 1):
            with suppress(ServerAway):
                return function(*arguments, **options)
        return function(*arguments, **options)

    return repeated


class PatientStorage(RDBStorage):
    """An ``RDBStorage`` whose calls about studies outlast restarts, and fail with a sentence.

    Calls about trials are not repeated: one may have been created unheard.
    """


def _patient(function: Callable[..., R]) -> Callable[..., R]:
    repeated = repeated_if_away(function)

    @functools.wraps(function)
    def call(storage: RDBStorage, *arguments: Any, **options: Any) -> R:
        try:
            return repeated(storage, *arguments, **options)
        except StorageError:
            raise
        except StorageInternalError as error:
            reason = first_line(getattr(error.__cause__, "orig", None) or error)
            url = str(storage.engine.url)  # without its password
            raise StorageError(f"storage {url!r}: {reason}; nothing was written") from error

    return call


for _name in (
    "create_new_study",
    "get_all_studies",
    "get_study_directions",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_system_attrs",
    "get_study_user_attrs",
    "set_study_system_attr",
    "set_study_user_attr",
):
    setattr(PatientStorage, _name, _patient(getattr(RDBStorage, _name)))
