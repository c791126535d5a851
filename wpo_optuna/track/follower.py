"""Records a study in MLflow while it is run, by a process of its own that follows its storage."""

from __future__ import annotations

import atexit
import contextlib
import getpass
import json
import os
import shlex
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from wpo_optuna.errors import first_line
from wpo_optuna.storage import storage_url
from wpo_optuna.study.attributes import FAILED, KILLED, RUNNING, STATUS
from wpo_optuna.study.environment import program_here
from wpo_optuna.track.delivery import Delivered, identity_of, storage_of
from wpo_optuna.track.destination import Destination, masked, refuse_file_of
from wpo_optuna.track.following import Task
from wpo_optuna.track.memory_copy import MemoryCopy
from wpo_optuna.track.store import REQUEST_SETTINGS

if TYPE_CHECKING:
    from optuna import Study

# How long to wait at the end for an MLflow that takes nothing, and for a sign of anything: one
# request may take 20 s, and a file may be large.
AWAY_S = 8.0
_SILENCE_S = 120.0
_SHOW_PROGRESS_AFTER_S = 2.0
_POLL_S = 0.05
_BEFORE_RESTART_S = 1.0


class TrackingWarning(UserWarning):
    """MLflow does not get something, or not yet."""


class Follower:
    """Records a study from now on until :meth:`finish`.

    The process that does so outlives the study's: if that is killed, it delivers what the storage
    has, and ends the run as ``KILLED``. A study in memory is copied into a temporary file for it.
    MLflow may be slow or away: the study goes on, a :class:`TrackingWarning` says so once, and
    another one at the end says how to deliver what MLflow lacks.

    Args:
        study: the study.
        destination: where it goes.
        show_progress_bar: whether waiting at the end shows progress on a terminal.

    Attributes:
        delivered: what MLflow had last; None before it had anything.
        undelivered: at the end, what MLflow lacks and how to deliver it; None if nothing.

    Raises:
        InvalidArgument: MLflow's store would be the file of the study's storage.
    """

    def __init__(
        self, study: Study, destination: Destination, *, show_progress_bar: bool = True
    ) -> None:
        storage = storage_of(study)
        refuse_file_of(storage, destination.tracking_uri)
        self.study = study
        self.delivered: Delivered | None = None
        self.undelivered: str | None = None
        tags = {**_source(), **dict(destination.tags)}
        self._destination = replace(destination, tags=tuple(tags.items()))
        self._show_progress_bar = show_progress_bar
        self._working_directory = os.path.realpath(os.curdir)
        self._url = storage_url(storage)
        self._is_in_memory = self._url is None
        self._directory: str | None = None
        self._process: subprocess.Popen[str] | None = None
        self._is_complete = False
        self._progress = (0, 0)
        self._reason = "stopped before everything was delivered"
        self._has_warned = False
        self._away_since: float | None = None
        self._last_sign = time.monotonic()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._may_end = threading.Event()
        self._is_abandoned = threading.Event()
        self._has_ended = threading.Event()
        self._has_contact = threading.Event()
        self._destination.remember(study)
        identity_of(study)
        _set_status(study, RUNNING)
        _unfinished.append(self)
        threading.Thread(target=self._work, name="wpo-mlflow", daemon=True).start()

    def wait_for_contact(self, timeout_s: float) -> None:
        """Waits until MLflow has the study's run, or is known to be away."""
        self._has_contact.wait(timeout_s)

    def end(self, status: str | None = None) -> None:
        """Says that nothing more will come, and does not wait.

        Args:
            status: how the study ended: ``FINISHED``, ``KILLED`` or ``FAILED``; None where the
                study's attribute says it already.
        """
        if self._is_over.is_set():
            return
        if status is not None:
            _set_status(self.study, status)
        self._is_over.set()
        if not self._is_in_memory:  # otherwise the last trials are to be copied first
            self._say_end()

    def finish(self, status: str | None = None) -> Delivered | None:
        """Waits until everything is delivered and the study's run is ended.

        While MLflow takes something it waits as long as that takes; when MLflow is away it gives
        up after some seconds, and a :class:`TrackingWarning` says how to deliver the rest.

        Args:
            status: as for :meth:`end`.

        Returns:
            what MLflow has; None if it has not everything.
        """
        self.end(status)
        try:
            self._wait()
        finally:
            if self in _unfinished:
                _unfinished.remove(self)
                if not self._is_complete:
                    self.undelivered = self._sentence()
                    warnings.warn(self.undelivered, TrackingWarning, stacklevel=2)
        return self.delivered if self._is_complete else None

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finish()

    def _work(self) -> None:
        try:
            if self._is_in_memory:
                copy = MemoryCopy(self.study, self._is_over)
                self._url, self._directory = copy.url, copy.directory
                copy.start(self._say_end)
            while not (self._is_complete or self._is_abandoned.is_set()):
                self._serve()
                if not self._is_complete:
                    self._note_failure("the delivering process was ended from outside")
                    self._is_abandoned.wait(_BEFORE_RESTART_S)
        except Exception as error:  # no process can be started, no file be written
            self._note_failure(first_line(error))
        self._has_ended.set()

    def _serve(self) -> None:
        """Starts the delivering process and listens to it until it ends."""
        assert self._url is not None
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "wpo_optuna.track", "--follow"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=self._working_directory,
            env=_environment(),
            start_new_session=True,  # what ends this process's group must not end it
        ) as process:
            if self.delivered is not None:
                self._away_since = None  # it was the process that failed, and not MLflow
            with self._lock:
                self._process = process
                self._tell(
                    Task(
                        self._url, self.study.study_name, self._destination, self._directory
                    ).to_line()
                )
                if self._may_end.is_set():
                    self._tell("end\n")
            assert process.stdout is not None
            for line in process.stdout:
                self._take(json.loads(line))

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):  # it has ended, and is started again
            assert self._process is not None
            assert self._process.stdin is not None
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _say_end(self) -> None:
        with self._lock:
            self._may_end.set()
            if self._process is not None:
                self._tell("end\n")

    def _take(self, told: dict[str, Any]) -> None:
        self._last_sign = time.monotonic()
        if "away" in told:
            self._note_failure(told["away"])
            return
        self._away_since = None
        self.delivered = Delivered(**told["delivered"])
        self._progress = (told.get("done", 0), told.get("total", 0))
        self._is_complete = told.get("is_last", False)
        self._has_contact.set()

    def _note_failure(self, reason: str) -> None:
        self._reason = reason
        self._away_since = self._away_since or time.monotonic()
        self._has_contact.set()
        if not self._has_warned and not self._is_abandoned.is_set():
            self._has_warned = True
            # A filter may make an error of it, which nobody in this thread could catch.
            with contextlib.suppress(TrackingWarning):
                warnings.warn(
                    f"MLflow does not take the study ({reason}); the study goes on, and what "
                    "MLflow lacks is delivered when it is back",
                    TrackingWarning,
                    stacklevel=2,
                )

    def _wait(self) -> None:
        began = time.monotonic()
        bar = None
        try:
            while not self._has_ended.wait(_POLL_S):
                now = time.monotonic()
                if self._is_hopeless(began, now):
                    self._abandon()
                if bar is None and now > began + _SHOW_PROGRESS_AFTER_S:
                    bar = tqdm(
                        desc="delivering to MLflow",
                        unit="trial",
                        disable=None if self._show_progress_bar else True,
                        leave=False,
                    )
                if bar is not None:
                    done, bar.total = self._progress
                    bar.update(done - bar.n)
        except KeyboardInterrupt:
            self._abandon()
            raise
        finally:
            if bar is not None:
                bar.close()

    def _is_hopeless(self, began: float, now: float) -> bool:
        if self._away_since is not None:
            return now > max(began, self._away_since) + AWAY_S
        return now > max(began, self._last_sign) + _SILENCE_S

    def _abandon(self) -> None:
        self._is_abandoned.set()
        with self._lock:
            if self._process is not None:
                self._process.terminate()

    def _sentence(self) -> str:
        name = self.study.study_name
        words = [program_here("python"), "-m", "wpo_optuna.track", "--study-name", name]
        if self._url is not None:
            words += ["--storage", _from_here(masked(self._url))]
        if self._destination.tracking_uri is not None:
            words += ["--tracking-uri", masked(self._destination.tracking_uri)]
        return (
            f"MLflow lacks a part of study {name!r} ({self._reason}); deliver it with: "
            f"{shlex.join(words)}"
        )


_unfinished: list[Follower] = []


@atexit.register
def _finish_all() -> None:
    for follower in list(_unfinished):
        if follower._pid == os.getpid():
            follower.finish(_status_of_failed_program())


def _status_of_failed_program() -> str | None:
    """How the program ended, judged by the exception that ended it; None if there was none."""
    exception = getattr(sys, "last_value", None)
    if exception is None:
        return None
    return KILLED if isinstance(exception, KeyboardInterrupt) else FAILED


def _set_status(study: Study, status: str) -> None:
    if study.user_attrs.get(STATUS) != status:
        study.set_user_attr(STATUS, status)


def _source() -> dict[str, str]:
    """Tags by which MLflow's UI shows who recorded a run, and with which program."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in containers
        user = "unknown"
    program = sys.argv[0] or "python"
    return {"mlflow.user": user, "mlflow.source.name": program, "mlflow.source.type": "LOCAL"}


def _environment() -> dict[str, str]:
    """The user's environment, with settings for requests where the user has none."""
    packages = str(Path(__file__).resolve().parents[2])
    search_path = [packages, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **REQUEST_SETTINGS,
        **os.environ,
        "PYTHONPATH": os.pathsep.join(search_path),
        "OMP_NUM_THREADS": "1",  # the study's loop needs the cores
    }


def _from_here(url: str) -> str:
    """The URL with a path relative to the working directory where the file is in it."""
    return url.replace(f":///{Path.cwd()}/", ":///")
