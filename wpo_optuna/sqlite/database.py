"""One SQLite connection per process: its transactions, its waiting, its survival of a fork."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from optuna.exceptions import OptunaError

from wpo_optuna.sqlite.connection import (
    LOCK_ATTEMPT_S,
    LOCK_WARNING_S,
    StorageError,
    connect,
    explain,
    is_busy,
    tell_of_lock,
)
from wpo_optuna.sqlite.pending import PendingWrites

# What Optuna's storages raise to refuse a call, always before anything was changed. Raised inside
# a batch they leave it intact.
_REFUSALS = (KeyError, ValueError, TypeError, RuntimeError, OptunaError)


class Database:
    """A connection to an SQLite file, shared by the threads of one process.

    ``with database:`` is one write transaction; nested blocks of the same thread join it, other
    threads wait for its end. Rows gathered in :attr:`pending` are written just before the commit.

    The connection is opened at first use and again in every forked process. An open connection
    must not be carried over a fork: the child would neither hold the file locks nor know it, and
    the parent, closing "the last" connection, would delete the write-ahead log under the child.

    Args:
        path: An existing SQLite database.
        busy_timeout: How long to wait for a lock held by somebody else, in seconds.
    """

    def __init__(self, path: Path, busy_timeout: float) -> None:
        self.path = path
        self.busy_timeout = busy_timeout
        self.pending = PendingWrites()
        #: Transactions undone so far; whoever keeps copies of rows must forget them at a change.
        self.rollbacks = 0
        #: To be set by whoever changes a copy of a row inside a transaction.
        self.changed = False
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._finalizer: weakref.finalize | None = None
        self._openings = 0
        self._depth = 0
        self._version: tuple[int, int] | None = None
        self._nested_error: BaseException | None = None
        self._forked_in_transaction = False
        _databases.add(self)

    # Reading

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep this process's other threads out; inside, an ``sqlite3`` error is explained."""
        self._acquire()
        try:
            yield
        except sqlite3.Error as error:
            if self._depth:
                self.fail_batch(error)
            raise self._failure(error) from error
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """A connection whose reads all see the same moment; the caller holds the lock."""
        connection = self._open()
        if self._depth:
            self.pending.flush(connection)
            yield connection
            return
        connection.execute("BEGIN")
        try:
            yield connection
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def version(self) -> tuple[int, int]:
        """A value that differs once any other connection has committed; the caller locks.

        The writes of this connection do not change it.
        """
        if self._version is not None:
            return self._version
        connection = self._open()
        return self._openings, connection.execute("PRAGMA data_version").fetchone()[0]

    # Writing

    def __enter__(self) -> sqlite3.Connection:
        self._acquire()
        try:
            connection = self._open()
            if self._depth == 0:
                self._begin(connection)
            self._depth += 1
        except BaseException as error:
            if self._depth == 0:
                self._roll_back()
                self._version = None
            self._lock.release()
            if isinstance(error, sqlite3.Error):
                raise self._failure(error) from error
            raise
        return connection

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._forked_in_transaction:
            return
        self._depth -= 1
        try:
            if self._depth:
                if error is not None and not _is_refusal(error):
                    self.fail_batch(error)
            elif error is None and self._nested_error is None:
                self._commit()
            else:
                self._roll_back()
                if error is None:
                    raise StorageError(
                        f"{self._name}: the batch was undone because a write in "
                        f"it had failed ({self._nested_error})"
                    ) from self._nested_error
            if isinstance(error, sqlite3.Error):
                raise self._failure(error) from error
        finally:
            if self._depth == 0:
                self._version = None
                self._nested_error = None
            self._lock.release()

    def fail_batch(self, error: BaseException) -> None:
        """Undo the running transaction at its end, whatever becomes of ``error`` until then."""
        self._nested_error = error

    def _begin(self, connection: sqlite3.Connection) -> None:
        attempt_s = min(LOCK_ATTEMPT_S, self.busy_timeout)
        connection.execute(f"PRAGMA busy_timeout = {int(attempt_s * 1000)}")
        try:
            self._begin_when_unlocked(connection)
        finally:
            connection.execute(f"PRAGMA busy_timeout = {int(self.busy_timeout * 1000)}")
        self.changed = False
        self._version = self.version()

    def _begin_when_unlocked(self, connection: sqlite3.Connection) -> None:
        started = time.monotonic()
        warned = False
        while True:
            try:
                # IMMEDIATE takes the write lock before the first read: no other process can
                # slip in between what this transaction reads and what it writes.
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                waited = time.monotonic() - started
                if not is_busy(error) or waited >= self.busy_timeout:
                    raise
                if waited >= LOCK_WARNING_S and not warned:
                    warned = True
                    tell_of_lock(self.path, self.busy_timeout)

    def _commit(self) -> None:
        connection = self._open()
        try:
            self.pending.flush(connection)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise self._failure(error) from error
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        self.pending.clear()
        if self.changed:
            self.rollbacks += 1
            self.changed = False
        connection = self._connection
        if connection is not None and connection.in_transaction:
            try:
                connection.execute("ROLLBACK")
            except sqlite3.Error:
                # Closing undoes the transaction as well; the next use opens a new connection.
                self._close()

    # The connection

    def close(self) -> None:
        """Close the connection, which moves the write-ahead log into the file; use reopens it."""
        with self.locked():
            if self._depth:
                raise RuntimeError("A database cannot be closed inside a batch.")
            self._close()

    def _acquire(self) -> None:
        # Twice the timeout: the thread that holds the lock may itself be waiting for the file.
        if not self._lock.acquire(timeout=2 * self.busy_timeout + 1):
            raise StorageError(
                f"{self._name}: another thread of this process has kept a batch "
                f"open for {2 * self.busy_timeout:g} s"
            )

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            if self._forked_in_transaction:
                raise StorageError(
                    f"{self._name}: this process was forked while a batch was "
                    "open; start processes before or after a batch"
                )
            self._connection = connect(self.path, self.busy_timeout)
            self._openings += 1
            self._finalizer = weakref.finalize(self, self._connection.close)
        return self._connection

    def _close(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._connection = None
        self._finalizer = None

    @property
    def _name(self) -> str:
        return f"storage 'sqlite:///{self.path}'"

    def _failure(self, error: sqlite3.Error) -> StorageError:
        return StorageError(explain(error, self.path, self.busy_timeout))

    # Forks

    def _before_fork(self) -> None:
        if self._lock.acquire(timeout=2 * self.busy_timeout + 1) and self._depth == 0:
            with contextlib.suppress(sqlite3.Error):
                self._close()

    def _after_fork_in_parent(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._lock.release()

    def _after_fork_in_child(self) -> None:
        self._lock = threading.RLock()
        if self._connection is None:
            return
        # Never closed here, not even by the garbage collector: its locks belong to the parent.
        _connections_of_the_parent.append(self._connection)
        if self._finalizer is not None:
            self._finalizer.detach()
        self._connection = None
        self._finalizer = None
        self._forked_in_transaction = True
        self._depth = 0
        self._version = None
        self.pending.clear()


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, _REFUSALS) and not isinstance(error, StorageError)


_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_connections_of_the_parent: list[sqlite3.Connection] = []
# Threads fork one after the other: each must find its own list when it comes back.
_fork_lock = threading.Lock()
_forking: list[Database] = []


def _before_fork() -> None:
    _fork_lock.acquire()
    _forking[:] = _databases
    for database in _forking:
        database._before_fork()


def _after_fork_in_parent() -> None:
    while _forking:
        _forking.pop()._after_fork_in_parent()
    _fork_lock.release()


def _after_fork_in_child() -> None:
    while _forking:
        _forking.pop()._after_fork_in_child()
    _fork_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
