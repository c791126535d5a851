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

from wpo_optuna.errors import InvalidArgument, did_you_mean
from wpo_optuna.storage.sqlite_file import (
    begin_immediate,
    check_path,
    network_file_system,
    optuna_tables,
)

if TYPE_CHECKING:
    from optuna import Study

ACCEPTED = (
    "sqlite:///FILE, memory, journal:///FILE, grpc://HOST:PORT, "
    "postgresql://USER:PASSWORD@HOST/NAME or mysql://USER:PASSWORD@HOST/NAME"
)

# The pip package of each SQLAlchemy driver.
DRIVER_PACKAGES = {
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

_GRPC_TIMEOUT_S = 10.0
# Several processes that create the tables of one new database at once get into each other's way.
_CREATIONS = 8

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
            Optuna's, or has another version's tables. Nothing is written then.
        StorageError: an SQLite database stays locked.
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
        if not url.database.startswith("file:"):
            url = url.set(database=str(Path(url.database).absolute()))
    return url.render_as_string(hide_password=False)


def relational(storage: BaseStorage) -> RDBStorage | None:
    """The relational database behind a storage; None if there is none."""
    # A study wraps an RDBStorage into a cache, which has no public way back.
    storage = getattr(storage, "_backend", storage)
    return storage if isinstance(storage, RDBStorage) else None


def _open(url: str, busy_timeout: float, *, may_create: bool) -> BaseStorage:
    if url == "memory":
        return InMemoryStorage()
    scheme, separator, location = url.partition("://")
    dialect, _, driver = scheme.partition("+")
    if separator:
        if dialect == "sqlite":
            return _open_sqlite(url, location, busy_timeout, may_create)
        if scheme == "journal":
            return _open_journal(url, location, may_create)
        if scheme == "grpc":
            return _open_grpc(url, location)
        if dialect in DRIVER_PACKAGES:
            return _open_server(url, dialect, driver, may_create)
        if dialect == "postgres":
            raise InvalidArgument(
                f"storage {masked_url(url)!r}: SQLAlchemy no longer knows postgres://; accepted "
                "is postgresql://USER:PASSWORD@HOST/NAME"
            )
    raise InvalidArgument(f"storage {masked_url(url)!r}: accepted is {ACCEPTED}")


def _open_sqlite(url: str, location: str, busy_timeout: float, may_create: bool) -> BaseStorage:
    from sqlalchemy import make_url

    if location in ("", "/", "/:memory:"):
        return InMemoryStorage()
    _check_slashes(url, location)
    name = make_url(url).database or ""
    if name.startswith("file:"):
        return _open_rdb(url, {}, may_create)
    path = Path(name)
    check_path(path, url)
    tables = optuna_tables(path, url)
    if not tables and not may_create:
        raise InvalidArgument(f"storage {url!r}: there is no such file, or it is empty")
    # Optuna writes into tables of another version before it refuses them, unless told not to.
    is_new = not {"version_info", "alembic_version"} <= tables
    options = {} if "?" in location else {"connect_args": {"timeout": busy_timeout}}
    storage = _open_rdb(url, options, create_tables=is_new and may_create)
    if may_create:
        _make_ready_to_write(storage, path)
    return storage


def _make_ready_to_write(storage: RDBStorage, path: Path) -> None:
    """Turns the write-ahead log on, and waits until nobody else writes, saying so."""
    from sqlalchemy.exc import OperationalError

    with storage.engine.connect() as connection:
        if network_file_system(path) is None:
            # Refused while somebody reads it: it stays with its rollback journal then.
            with contextlib.suppress(OperationalError):
                connection.exec_driver_sql("PRAGMA journal_mode = WAL").all()
        begin_immediate(connection)
        connection.rollback()
    # Connections made before do not know of the log yet.
    storage.engine.dispose()


def _open_journal(url: str, location: str, may_create: bool) -> BaseStorage:
    _check_slashes(url, location)
    path = Path(location[1:])
    check_path(path, url)
    if not may_create and not path.exists():
        raise InvalidArgument(f"storage {url!r}: there is no such file")
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise InvalidArgument(f"storage {url!r}: cannot be opened ({error})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(
            f"storage {url!r}: the file is no Optuna journal; accepted is one, or the path of a "
            "file that does not exist yet"
        ) from error
    _urls[storage] = f"journal:///{path.absolute()}"
    return storage


def _check_slashes(url: str, location: str) -> None:
    if not location.startswith("/") or location == "/":
        scheme = url.partition("://")[0]
        raise InvalidArgument(
            f"storage {url!r}: accepted is {scheme}:///FILE with three slashes, or four before an "
            "absolute path"
        )


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
    _urls[proxy] = url
    return proxy


def _open_server(url: str, dialect: str, driver: str, may_create: bool) -> BaseStorage:
    packages = DRIVER_PACKAGES[dialect]
    if driver and driver not in packages:
        raise InvalidArgument(
            f"storage {masked_url(url)!r}: unknown driver {driver!r}; accepted is {dialect}:// "
            f"alone or with +{', +'.join(packages)}"
        )
    try:
        # Connections that the server has closed in the meantime are replaced.
        return _open_rdb(url, {"pool_pre_ping": True}, create_tables=may_create)
    except ImportError as error:
        from sqlalchemy import make_url

        # Which driver a URL without one means depends on SQLAlchemy's version.
        package = packages[driver or make_url(url).get_dialect().driver]
        raise InvalidArgument(
            f"storage {masked_url(url)!r}: its database driver is not installed; run "
            f"`pip install '{package}'`"
        ) from error


def _open_rdb(url: str, engine_kwargs: dict[str, Any], create_tables: bool) -> RDBStorage:
    from sqlalchemy.exc import IntegrityError, SQLAlchemyError

    for n_left in reversed(range(_CREATIONS)):
        try:
            return RDBStorage(url, dict(engine_kwargs), skip_table_creation=not create_tables)
        except RuntimeError as error:
            raise InvalidArgument(f"storage {masked_url(url)!r}: {error}") from error
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ValueError) as error:
            cause = error.__cause__ if isinstance(error.__cause__, SQLAlchemyError) else error
            is_race = isinstance(cause, IntegrityError) or "already exists" in str(cause)
            if create_tables and is_race and n_left:
                time.sleep(random.uniform(0.05, 0.2))
                continue
            reason = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
            raise InvalidArgument(
                f"storage {masked_url(url)!r}: cannot be opened ({reason})"
            ) from error
    raise AssertionError
