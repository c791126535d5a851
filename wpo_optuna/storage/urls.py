"""Storage URLs: from a URL to an open storage or a stored study, and back."""

from __future__ import annotations

import contextlib
import random
import re
import shlex
import sqlite3
import time
import warnings
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
from sqlalchemy import Connection, event, make_url
from sqlalchemy.exc import OperationalError

from wpo_optuna.errors import InvalidArgument, did_you_mean, first_line
from wpo_optuna.storage.reconnecting import (
    Patience,
    PatientStorage,
    StorageError,
    StorageWarning,
    is_restart,
    outlast_restarts,
)

if TYPE_CHECKING:
    from optuna import Study
    from sqlalchemy.engine.interfaces import ExceptionContext

ACCEPTED = (
    "sqlite:///FILE, memory, journal:///FILE, grpc://HOST:PORT, "
    "postgresql://USER:PASSWORD@HOST/NAME or mysql://USER:PASSWORD@HOST/NAME"
)

_GRPC_TIMEOUT_S = 10.0
_ATTEMPTS = 8
# Processes that create the tables of one new database get into each other's way; and a server that
# is restarted refuses connections for a moment.
_PASSING = re.compile("(?i)already exists|unique|connection refused|PGSQL.* No such file")
_ASKED_EVERY_MS, _TOLD_AFTER_S = 500, 5.0

_NETWORK_FILE_SYSTEM = re.compile(
    r"(fuse\.)?(9p|afs|beegfs|ceph|cephfs|cifs|glusterfs|gpfs|lustre|ncpfs|nfs4?|orangefs|panfs|"
    r"rclone|s3fs|smb3|smbfs|sshfs)"
)


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


def check_kind(url: str) -> None:
    """Refuses a URL that is none of a storage; nothing is opened.

    Raises:
        InvalidArgument: the URL is of no kind that :func:`open_storage` takes.
    """
    if not _parts(url)[0]:
        raise InvalidArgument(f"storage {masked_url(url)!r}: accepted is {ACCEPTED}")


def masked_url(url: str) -> str:
    """The URL for people to read: without its password."""
    url = re.sub(r"(?<=://)([^:/?#]*):.*@", r"\1:***@", url)
    return re.sub(r"(?i)([?&][^=&]*(?:password|passwd|pwd)=)[^&]*", r"\1***", url)


def word_for_shell(word: str, option: str) -> str:
    """A word of a command to be pasted; of a URL's password stands an environment variable.

    Args:
        word: the word, with the password.
        option: what it belongs to: that of ``--storage`` is called ``STORAGE_PASSWORD``.
    """
    masked = masked_url(word)
    if masked == word:
        return shlex.quote(word)
    variable = f"{option.strip('-').replace('-', '_').upper()}_PASSWORD"
    return f'"${variable}"'.join(shlex.quote(part) if part else "" for part in masked.split("***"))


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


def begin_writing(connection: Connection) -> None:
    """Begins a transaction in an SQLite database that keeps other writers away.

    It waits for them as long as the connection has patience. Within SQLite nobody would hear of
    that, nor would Ctrl-C be heard; so SQLite is asked again and again.

    Raises:
        OperationalError: the database stays locked.
    """
    patience_ms = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
    started, is_told = time.monotonic(), False
    try:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {min(patience_ms, _ASKED_EVERY_MS)}")
        while True:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                return
            except OperationalError as error:
                waited = time.monotonic() - started
                if 1000 * waited >= patience_ms or "locked" not in str(error.orig):
                    raise
            if waited >= _TOLD_AFTER_S and not is_told:
                is_told = True
                warnings.warn(
                    f"storage {connection.engine.url}: another program is writing and has it "
                    f"locked; waiting up to {patience_ms / 1000:.0f} s (Ctrl-C ends that).",
                    StorageWarning,
                    stacklevel=2,
                )
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {patience_ms}")


def _open(url: str, busy_timeout: float, *, may_create: bool) -> BaseStorage:
    """Opens a storage; what hinders a library, a file or a server is told in one sentence."""
    check_kind(url)
    try:
        return _opened(url, busy_timeout, may_create)
    except StorageError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {first_line(getattr(cause, 'orig', None) or cause)}"
        raise InvalidArgument(
            f"storage {masked_url(url)!r}: it cannot be opened as an Optuna storage ({reason})"
        ) from error


def _opened(url: str, busy_timeout: float, may_create: bool) -> BaseStorage:
    kind, location = _parts(url)
    if kind == "memory":
        return InMemoryStorage()
    if kind == "sqlite":
        return _open_sqlite(url, busy_timeout, may_create)
    if kind == "journal":
        return _open_journal(Path(location[1:]), may_create)
    if kind == "grpc":
        host, _, port = location.rpartition(":")
        proxy = GrpcStorageProxy(host=host, port=int(port))
        proxy.wait_server_ready(timeout=_GRPC_TIMEOUT_S)
        _urls[proxy] = url
        return proxy
    # Connections that the server has closed in the meantime are replaced.
    storage = _open_database(url, {"pool_pre_ping": True}, may_create)
    outlast_restarts(storage.engine, masked_url(url))
    return storage


def _parts(url: str) -> tuple[str, str]:
    """The kind and the location that a URL names; the kind is empty if no URL looks like this."""
    if url in ("memory", "sqlite://", "sqlite:///", "sqlite:///:memory:"):
        return "memory", ""
    match = re.fullmatch(r"(\w+)(\+\w+)?://(.*)", url)
    kind, driver, location = match.groups() if match else ("", None, "")
    is_one = {
        "sqlite": location.startswith("/"),
        "journal": not driver and location.startswith("/"),
        "grpc": not driver and re.fullmatch(r"[^:]+.*:\d+", location),
        "postgresql": True,
        "mysql": True,
    }
    return (kind, location) if is_one.get(kind) else ("", "")


def _open_sqlite(url: str, busy_timeout: float, may_create: bool) -> RDBStorage:
    path = Path(make_url(url).database or "")
    tables = _optuna_tables(path)
    if not tables and not may_create:
        raise FileNotFoundError("there is no such file, or it is empty")
    # Optuna writes into tables of another version before it refuses them, unless told not to.
    is_new = not {"version_info", "alembic_version"} <= tables
    options = {} if "?" in url else {"connect_args": {"timeout": busy_timeout}}
    storage = _open_database(url, options, is_new and may_create)
    event.listen(storage.engine, "handle_error", _keep_interrupted)
    if may_create:
        with storage.engine.connect() as connection:
            if network_file_system(path) is None:
                # Refused while somebody reads it: it stays with its rollback journal then.
                with contextlib.suppress(OperationalError):
                    connection.exec_driver_sql("PRAGMA journal_mode = WAL").all()
            begin_writing(connection)
            connection.rollback()
        # Connections made before do not know of the log yet.
        storage.engine.dispose()
    return storage


def _keep_interrupted(context: ExceptionContext) -> None:
    """Keeps the connection whose statement Ctrl-C interrupted, so that it is rolled back.

    SQLAlchemy would discard it, and with it the only way to end its transaction: the file stays
    locked as long as the exception's traceback holds the statement.
    """
    if not isinstance(context.original_exception, Exception):
        context.is_disconnect = False


def _open_journal(path: Path, may_create: bool) -> JournalStorage:
    if not may_create and not path.exists():
        raise FileNotFoundError("there is no such file")
    storage = JournalStorage(JournalFileBackend(str(path)))
    _urls[storage] = f"journal:///{path.absolute()}"
    return storage


def _open_database(url: str, options: dict[str, Any], may_create: bool) -> RDBStorage:
    n_left, patience = _ATTEMPTS, Patience(masked_url(url))
    while True:
        try:
            return PatientStorage(url, dict(options), skip_table_creation=not may_create)
        except Exception as error:
            told = f"{error} {error.__cause__}"
            if is_restart(told):
                patience.wait(getattr(error.__cause__ or error, "orig", None) or error)
                continue
            n_left -= 1
            if not (n_left and _PASSING.search(told)):
                raise
            time.sleep(random.uniform(0.1, 0.4))


def _optuna_tables(path: Path) -> set[str]:
    """The tables of an Optuna database; none if the file is empty or not there.

    Args:
        path: the file; nothing is written into it.

    Raises:
        OSError: there is no such directory.
        ValueError: the database is another program's.
        sqlite3.Error: the file is no database, or cannot be read.
    """
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no directory {path.parent}")
    if not path.exists() or path.stat().st_size == 0:
        return set()
    # Closing the last writable connection empties a write-ahead log into the file, which is for
    # its owner to do; where there is no log, a read-only connection would leave an empty one.
    mode = "ro" if Path(f"{path}-wal").exists() else "rw"
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = {name for (name,) in rows if not name.startswith("sqlite_")}
    if tables and "studies" not in tables:
        raise ValueError(f"it is a database of another program, with a table {min(tables)}")
    return tables


def network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """The type of the network file system that holds a path, or None if its disk is local.

    SQLite's write-ahead log needs memory shared by all its readers and writers. On a network file
    system it seems to work, and loses data as soon as two machines write.

    Args:
        path: a file or directory.
        mounts: the text of Linux's ``/proc/self/mounts``; read from there if None. Other systems
            have no such file, and every path counts as local.
    """
    if mounts is None:
        table = Path("/proc/self/mounts")
        mounts = table.read_text() if table.exists() else ""
    rows = [line.split() for line in mounts.splitlines()]
    kinds = {Path(row[1].replace("\\040", " ")): row[2] for row in rows}
    path = path.resolve()
    kind = next((kinds[place] for place in (path, *path.parents) if place in kinds), "")
    return kind if _NETWORK_FILE_SYSTEM.fullmatch(kind) else None
