"""Storage URLs: where a study is kept."""

from __future__ import annotations

import re
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.storages import (
    BaseStorage,
    GrpcStorageProxy,
    InMemoryStorage,
    JournalStorage,
    RDBStorage,
)
from optuna.storages.journal import JournalFileBackend

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.sqlite import SQLiteStorage, UnknownSchemaError, check_path, refuse_foreign

if TYPE_CHECKING:
    from optuna import Study

ACCEPTED = (
    "sqlite:///FILE, memory, journal:///FILE, grpc://HOST:PORT, "
    "postgresql://USER:PASSWORD@HOST/NAME or mysql://USER:PASSWORD@HOST/NAME"
)

_GRPC_TIMEOUT_S = 10.0

# The pip package of each SQLAlchemy driver.
_DRIVER_PACKAGES = {
    "postgresql": {
        "psycopg": "psycopg[binary]",
        "psycopg2": "psycopg2-binary",
        "pg8000": "pg8000",
    },
    "mysql": {
        "mysqldb": "mysqlclient",
        "pymysql": "PyMySQL",
        "mysqlconnector": "mysql-connector-python",
    },
}


class StorageWarning(UserWarning):
    """A study is kept in another way than the fastest."""


def open_storage(url: str, *, busy_timeout: float = 60.0) -> BaseStorage:
    """Opens the Optuna storage with this URL.

    =========================== ==============================================================
    ``sqlite:///wpo.db``        an ordinary Optuna SQLite database, through the fast
                                :class:`~wpo_optuna.sqlite.SQLiteStorage`; a fourth slash begins
                                an absolute path
    ``memory``                  nothing is kept; so do ``sqlite://`` and ``sqlite:///:memory:``
    ``journal:///study.log``    Optuna's journal file, for network file systems
    ``grpc://host:port``        an ``optuna.storages.run_grpc_proxy_server``
    ``postgresql://…``          Optuna's ``RDBStorage``
    ``mysql://…``               the same
    =========================== ==============================================================

    A SQLite URL with a driver or options (``sqlite+pysqlite:///…``, ``…?timeout=…``) opens a
    plain ``RDBStorage``; so does every SQLite URL, with a warning, if the installed Optuna keeps
    its tables in a way unknown here.

    Args:
        url: one of the above.
        busy_timeout: how long to wait for an SQLite database that another program has locked,
            in seconds.

    Raises:
        InvalidArgument: the URL is of another kind, or what it names cannot be opened, is not
            Optuna's, or has another version's tables. Nothing is written then.
        WeightProgrammingError: an SQLite database stays locked.
    """
    if url == "memory":
        return InMemoryStorage()
    scheme, separator, location = url.partition("://")
    dialect, _, driver = scheme.partition("+")
    if separator:
        if dialect == "sqlite":
            return _open_sqlite(url, driver, location, busy_timeout)
        if scheme == "journal":
            return _open_journal(url, location)
        if scheme == "grpc":
            return _open_grpc(url, location)
        if dialect in ("postgresql", "mysql"):
            return _open_server(url, dialect, driver)
        if dialect == "postgres":
            raise InvalidArgument(
                f"storage {masked_url(url)!r}: SQLAlchemy no longer knows postgres://; accepted "
                "is postgresql://USER:PASSWORD@HOST/NAME"
            )
    raise InvalidArgument(f"storage {masked_url(url)!r}: accepted is {ACCEPTED}")


def transaction(study: Study) -> AbstractContextManager[None]:
    """Makes all that the calling thread writes into the study one transaction.

    For storages other than :class:`~wpo_optuna.sqlite.SQLiteStorage` every write stays one of
    its own.
    """
    if isinstance(study._storage, SQLiteStorage):
        return study._storage.batch(study._study_id)
    return nullcontext()


def masked_url(url: str) -> str:
    """The URL for people to read: without its password."""
    url = re.sub(r"(?<=://)([^:/?#]*):.*@", r"\1:***@", url)
    return re.sub(r"(?i)([?&][^=&]*(?:password|passwd|pwd)=)[^&]*", r"\1***", url)


def _open_sqlite(url: str, driver: str, location: str, busy_timeout: float) -> BaseStorage:
    if location in ("", "/", "/:memory:"):
        return InMemoryStorage()
    if not location.startswith("/"):
        raise InvalidArgument(
            f"storage {url!r}: accepted is sqlite:///FILE with three slashes, or four before an "
            "absolute path"
        )
    name, question_mark, _ = location[1:].partition("?")
    if driver or question_mark or name.startswith("file:"):
        if not name.startswith("file:"):
            refuse_foreign(Path(name), busy_timeout)
        return _open_rdb(url)
    try:
        return SQLiteStorage(name, busy_timeout=busy_timeout)
    except UnknownSchemaError as error:
        refuse_foreign(Path(name), busy_timeout)
        warnings.warn(
            f"{error}; Optuna's own RDBStorage is used, which takes about 50 ms per trial",
            StorageWarning,
            stacklevel=3,
        )
        return _open_rdb(url, {"connect_args": {"timeout": busy_timeout}})


def _open_journal(url: str, location: str) -> BaseStorage:
    if not location.startswith("/") or location == "/":
        raise InvalidArgument(
            f"storage {url!r}: accepted is journal:///FILE with three slashes, or four before an "
            "absolute path"
        )
    path = Path(location[1:])
    check_path(path, url)
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise InvalidArgument(f"storage {url!r}: cannot be opened ({error})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(
            f"storage {url!r}: the file is no Optuna journal; accepted is one, or the path of a "
            "file that does not exist yet"
        ) from error


def _open_grpc(url: str, location: str) -> BaseStorage:
    match = re.fullmatch(r"(?P<host>[^/:]+|\[[0-9a-fA-F:]+\]):(?P<port>\d+)/?", location)
    if match is None:
        raise InvalidArgument(f"storage {url!r}: accepted is grpc://HOST:PORT")
    try:
        proxy = GrpcStorageProxy(host=match["host"], port=int(match["port"]))
        proxy.wait_server_ready(timeout=_GRPC_TIMEOUT_S)
    except ImportError as error:
        raise InvalidArgument(
            f"storage {url!r}: gRPC is not installed; run `pip install grpcio protobuf`"
        ) from error
    except ConnectionError as error:
        raise InvalidArgument(
            f"storage {url!r}: no server answered within {_GRPC_TIMEOUT_S:g} s; start one with "
            "optuna.storages.run_grpc_proxy_server"
        ) from error
    return proxy


def _open_server(url: str, dialect: str, driver: str) -> BaseStorage:
    packages = _DRIVER_PACKAGES[dialect]
    if driver and driver not in packages:
        raise InvalidArgument(
            f"storage {masked_url(url)!r}: unknown driver {driver!r}; accepted is {dialect}:// "
            f"alone or with +{', +'.join(packages)}"
        )
    try:
        return _open_rdb(url)
    except ImportError as error:
        from sqlalchemy import make_url

        # Which driver a URL without one means depends on SQLAlchemy's version.
        package = packages[driver or make_url(url).get_dialect().driver]
        raise InvalidArgument(
            f"storage {masked_url(url)!r}: its database driver is not installed; run "
            f"`pip install '{package}'`"
        ) from error


def _open_rdb(url: str, engine_kwargs: dict | None = None) -> BaseStorage:
    # Takes a tenth of a second, which the usual storage can do without.
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return optuna.storages.get_storage(RDBStorage(url, engine_kwargs))
    except RuntimeError as error:
        raise InvalidArgument(f"storage {masked_url(url)!r}: {error}") from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ValueError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, SQLAlchemyError) else error
        reason = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
        raise InvalidArgument(
            f"storage {masked_url(url)!r}: cannot be opened ({reason})"
        ) from error
