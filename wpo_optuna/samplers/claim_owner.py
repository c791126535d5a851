"""Which thread of which process holds a candidate, and whether that process still lives."""

from __future__ import annotations

import enum
import hashlib
import itertools
import os
import socket
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# States, in /proc/<pid>/stat, of a process that has ended but was not yet waited for.
_ENDED_STATES = frozenset("ZXx")


_own_number = threading.local()
_next_thread_number = itertools.count()
_threads: weakref.WeakValueDictionary[int, threading.Thread] = weakref.WeakValueDictionary()


class Liveness(enum.Enum):
    """What can be known about a process from here."""

    ALIVE = enum.auto()
    DEAD = enum.auto()
    UNKNOWN = enum.auto()


@dataclass(frozen=True)
class Owner:
    """A thread that asked for a trial.

    Attributes:
        host: host name.
        machine: tells hosts of one name apart; empty where the system does not say.
        boot: changes when the host is started again; empty where the system does not say.
        namespace: the space of process numbers (containers have their own); may be empty.
        pid: process number.
        started: when the process started, in clock ticks since the boot; may be empty.
        thread: number of the thread within its process; never used again, unlike the system's.
        in_optimize: whether the trial was asked by ``Study.optimize``, which tells each trial
            before it asks another one in the same thread.
    """

    host: str
    machine: str
    boot: str
    namespace: str
    pid: int
    started: str
    thread: int
    in_optimize: bool

    @classmethod
    def current(cls, *, in_optimize: bool) -> Owner:
        """The calling thread."""
        pid = os.getpid()
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            boot=_boot(),
            namespace=_namespace(pid),
            pid=pid,
            started=_process_start(pid),
            thread=_thread_number(),
            in_optimize=in_optimize,
        )

    @classmethod
    def from_json(cls, values: Sequence[str | int | bool]) -> Owner:
        """The inverse of :meth:`to_json`.

        Raises:
            TypeError: the values are not those of an owner.
        """
        return cls(*values)  # type: ignore[arg-type]

    def to_json(self) -> list[str | int | bool]:
        """The attributes in their order, as JSON can hold them."""
        return list(vars(self).values())

    def same_process(self, other: Owner) -> bool:
        """Whether both threads belong to one process."""
        return (self.pid, self.started) == (other.pid, other.started) and self._same_system(other)

    def has_ended_here(self) -> bool:
        """Whether this thread of the calling process has ended."""
        thread = _threads.get(self.thread)
        return thread is None or not thread.is_alive()

    def depends_on(self, asker: Owner) -> bool:
        """Whether this owner may be unable to finish its trial until the asker has gone on.

        A thread inside ``Study.optimize`` finishes its trial by itself, and so does another
        process. Whoever asked without ``Study.optimize`` may be the asker itself, or be waiting
        for it.
        """
        if not self.same_process(asker):
            return False
        return not self.in_optimize or self.thread == asker.thread

    def liveness(self) -> Liveness:
        """Whether the owner's process still runs, as far as this process can tell."""
        here = Owner.current(in_optimize=False)
        if self._same_system(here):
            return _liveness_of(self.pid, self.started)
        same_host = bool(self.machine) and (self.host, self.machine) == (here.host, here.machine)
        if same_host and self.boot and here.boot and self.boot != here.boot:
            return Liveness.DEAD
        return Liveness.UNKNOWN

    def _same_system(self, other: Owner) -> bool:
        return (self.host, self.machine, self.boot, self.namespace) == (
            other.host,
            other.machine,
            other.boot,
            other.namespace,
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _thread_number() -> int:
    number: int | None = getattr(_own_number, "value", None)
    if number is None:
        number = _own_number.value = next(_next_thread_number)
        _threads[number] = threading.current_thread()
    return number


def _liveness_of(pid: int, started: str) -> Liveness:
    if os.name != "posix":
        # Elsewhere os.kill would not ask but act.
        return Liveness.ALIVE if pid == os.getpid() else Liveness.UNKNOWN
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return Liveness.DEAD
    except PermissionError:
        pass
    state, start_now = _process_state_and_start(pid)
    if state in _ENDED_STATES:
        return Liveness.DEAD
    # The number may have gone to another process since; where nothing is said of the start
    # (no /proc, or that of other users hidden), the number alone decides.
    return Liveness.DEAD if started and start_now and started != start_now else Liveness.ALIVE


def _process_state_and_start(pid: int) -> tuple[str, str]:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # The name, in parentheses, may itself hold spaces and parentheses.
        fields = stat.rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", ""


@cache
def _process_start(pid: int) -> str:
    return _process_state_and_start(pid)[1]


@cache
def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid").removeprefix("pid:")
    except OSError:
        return ""


@cache
def _boot() -> str:
    return _digest_of_file("/proc/sys/kernel/random/boot_id")


@cache
def _machine() -> str:
    return _digest_of_file("/etc/machine-id")


def _digest_of_file(path: str) -> str:
    try:
        content = Path(path).read_bytes().strip()
    except OSError:
        return ""
    # A machine-id must not be shown to others as it is (machine-id(5)).
    return hashlib.sha256(content).hexdigest()[:12] if content else ""
