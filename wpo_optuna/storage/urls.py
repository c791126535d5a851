"""Storage URLs: from a URL to an open storage or a stored study, and back."""

from __future__ import annotations

import contextlib
import random
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import optuna
from optuna.storages import (
    BaseStorage,
    GrpcStorageProxy,
    InMemoryStorage,
    JournalStorage,
    RDBStorage,
)
from optuna.storages.journal import JournalFileBackend

from wpo_optuna.errors import InvalidArgument, did_you_mean, first_line
from wpo_optuna.storage.sqlite_file import network_file_system, optuna_tables

if TYPE_CHECKING:
    from optuna import Study

ACCEPTED = (
    "sqlite:///FILE, memory, journal:///FILE, grpc://HOST:PORT, "
    "postgresql://USER:PASSWORD@HOST/NAME or mysql://USER:PASSWORD@HOST/NAME"
)

_GRPC_TIMEOUT_S = 10.0
_ATTEMPTS = 8

# Optuna's journal and gRPC storages do not say where they lead to.
_urls: WeakKeyDictionary[BaseStorage, str] = WeakKeyDictionary()


def open_storage(url: str, *, busy_timeout: float = 60.0) -> BaseStorage:
    """Opens the Optuna storage with this URL.

    =========================== ==============================================================
    ``sqlite:///wpo.db``        an ordinary Optuna SQLite database; a fourth slash begins an
                                absolute path
    ``memory``                  nothing is kept; so do ``sqlite://`` and ``sqlite:///:memory:``
    ``journal:///study.log``    Optuna's journal file, for network file systems
    ``grpc://host:port``        an ``optuna.storages.run_grpc_proxy_server``
    ``postgresql://…``          Optuna's ``RDBStorage``
    ``mysql://…``               the same; one attribute may have 65 535 bytes there
    =========================== ==============================================================

    An SQLite file on a local disk gets a write-ahead log: others may read while one writes, and a
    commit is on the disk before it returns.

    Args:
        url: one of the above.
        busy_timeout: how long to wait for an SQLite database that another program has locked,
            in seconds.

    Raises:
        InvalidArgument: the URL is of another kind, or what it names cannot be opened, is not
            Optuna's, has another version's tables, or stays locked. Nothing is written then.
    """
    return _open(url, busy_timeout, may_create=True)


def load_study(url: str, study_name: str) -> Study:
    """The stored study of this name.

    Args:
        url: as for :func:`open_storage`.
        study_name: the study.

    Raises:
        InvalidArgument: there is no such storage or study; nothing is written.
    """
    storage = _open(url, busy_timeout=60.0, may_create=False)
    try:
        return optuna.load_study(study_name=study_name, storage=storage)
    except KeyError:
        names = sorted(optuna.get_all_study_names(storage))
        known = f"it has {', '.join(names)}" if names else "it has none"
        raise InvalidArgument(
            f"study_name = {study_name!r}: {masked_url(url)} has no such study"
            f"{did_you_mean(study_name, names)}; {known}."
        ) from None


def masked_url(url: str) -> str:
    """The URL for people to read: without its password."""
    url = re.sub(r"(?<=://)([^:/?#]*):.*@", r"\1:***@", url)
    return re.sub(r"(?i)([?&][^=&]*(?:password|passwd|pwd)=)[^&]*", r"\1***", url)


def storage_url(storage: BaseStorage) -> str | None:
    """The URL, password included, by which another process opens a storage.

    Args:
        storage: an Optuna storage.

    Returns:
        the URL, with absolute paths; None for a storage in memory, and for a journal or gRPC
        storage that :func:`open_storage` has not opened.
    """
    database = relational(storage)
    if database is None:
        return _urls.get(storage)
    url = database.engine.url
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            return None
        url = url.set(database=str(Path(url.database).absolute()))
    return url.render_as_string(hide_password=False)


def relational(storage: BaseStorage) -> RDBStorage | None:
    """The relational database behind a storage; None if there is none."""
    # A study wraps an RDBStorage into a cache, which has no public way back.
    storage = getattr(storage, "_backend", storage)
    return storage if isinstance(storage, RDBStorage) else None


def _open(url: str, busy_timeout: float, *, may_create: bool) -> BaseStorage:
    """Opens a storage; what hinders a library, a file or a server is told in one sentence."""
    try:
        storage = _opened(url, busy_timeout, may_create)
    except Exception as error:
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {first_line(getattr(cause, 'orig', None) or cause)}"
        raise InvalidArgument(
            f"storage {masked_url(url)!r}: it cannot be opened as an Optuna storage ({reason})"
        ) from error
    if storage is None:
        raise InvalidArgument(f"storage {masked_url(url)!r}: accepted is {ACCEPTED}")
    return storage


def _opened(url: str, busy_timeout: float, may_create: bool) -> BaseStorage | None:
    """The storage with this URL; None if no URL looks like this."""
    if url in ("memory", "sqlite://", "sqlite:///", "sqlite:///:memory:"):
        return InMemoryStorage()
    match = re.fullmatch(r"(\w+)(\+\w+)?://(.*)", url)
    kind, driver, location = match.groups() if match else ("", None, "")
    if kind == "sqlite" and location.startswith("/"):
        return _open_sqlite(url, busy_timeout, may_create)
    if kind in ("postgresql", "mysql"):
        # Connections that the server has closed in the meantime are replaced.
        return _open_database(url, {"pool_pre_ping": True}, may_create)
    if kind == "journal" and not driver and location.startswith("/"):
        return _open_journal(Path(location[1:]), may_create)
    if kind == "grpc" and not driver and re.fullmatch(r"[^:]+.*:\d+", location):
        host, _, port = location.rpartition(":")
        proxy = GrpcStorageProxy(host=host, port=int(port))
        proxy.wait_server_ready(timeout=_GRPC_TIMEOUT_S)
        _urls[proxy] = url
        return proxy
    return None


def _open_sqlite(url: str, busy_timeout: float, may_create: bool) -> RDBStorage:
    from sqlalchemy import make_url
    from sqlalchemy.exc import OperationalError

    path = Path(make_url(url).database or "")
    tables = optuna_tables(path)
    if not tables and not may_create:
        raise FileNotFoundError("there is no such file, or it is empty")
    # Optuna writes into tables of another version before it refuses them, unless told not to.
    is_new = not {"version_info", "alembic_version"} <= tables
    options = {} if "?" in url else {"connect_args": {"timeout": busy_timeout}}
    storage = _open_database(url, options, is_new and may_create)
    if may_create:
        with storage.engine.connect() as connection:
            if network_file_system(path) is None:
                # Refused while somebody reads it: it stays with its rollback journal then.
                with contextlib.suppress(OperationalError):
                    connection.exec_driver_sql("PRAGMA journal_mode = WAL").all()
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # waits until nobody else writes
            connection.rollback()
        # Connections made before do not know of the log yet.
        storage.engine.dispose()
    return storage


def _open_journal(path: Path, may_create: bool) -> JournalStorage:
    if not may_create and not path.exists():
        raise FileNotFoundError("there is no such file")
    storage = JournalStorage(JournalFileBackend(str(path)))
    _urls[storage] = f"journal:///{path.absolute()}"
    return storage


def _open_database(url: str, options: dict[str, Any], may_create: bool) -> RDBStorage:
    for n_left in reversed(range(_ATTEMPTS)):
        try:
            return RDBStorage(url, dict(options), skip_table_creation=not may_create)
        except Exception as error:
            # Processes that create the tables of one new database get into each other's way.
            told = f"{error} {error.__cause__}"
            if not (may_create and n_left and re.search("(?i)already exists|unique", told)):
                raise
            time.sleep(random.uniform(0.05, 0.2))
    raise AssertionError
