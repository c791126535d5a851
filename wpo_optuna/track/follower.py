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
import tempfile
import threading
import warnings
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from tqdm import tqdm

from wpo_optuna.storage import FinishedTrials, open_storage, storage_url
from wpo_optuna.study.attributes import FAILED, KILLED, RUNNING, STATUS
from wpo_optuna.study.environment import program_here
from wpo_optuna.track.delivery import Delivered, identity_of, storage_of
from wpo_optuna.track.destination import Destination, masked, refuse_file_of
from wpo_optuna.track.following import Task
from wpo_optuna.track.store import REQUEST_SETTINGS

if TYPE_CHECKING:
    from optuna import Study

_SHOW_PROGRESS_AFTER_S = 2.0
_POLL_S = 0.05
_COPY_EVERY_S = 0.5


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
        refuse_file_of(storage_of(study), destination.tracking_uri)
        self.study = study
        self.delivered: Delivered | None = None
        self.undelivered: str | None = None
        self._destination = replace(destination, tags={**_source(), **destination.tags})
        self._show_progress_bar = show_progress_bar
        self._pid = os.getpid()
        self._is_over = False
        self._is_complete = False
        self._has_contact = threading.Event()
        self._n_trials = 0
        self._reason = ""
        self._destination.remember(study)
        identity_of(study)
        _set_status(study, RUNNING)
        url = storage_url(storage_of(study))
        self._copy = _MemoryCopy(study) if url is None else None
        self._url = self._copy.url if self._copy is not None else str(url)
        self._start()
        self._listener = threading.Thread(target=self._listen, name="wpo-mlflow", daemon=True)
        self._listener.start()
        _unfinished.append(self)

    def wait_for_contact(self, timeout_s: float) -> None:
        """Waits until MLflow has the study's run, or is known to be away."""
        self._has_contact.wait(timeout_s)

    def end(self, status: str | None = None) -> None:
        """Says that nothing more will come, and does not wait until that is delivered.

        Args:
            status: how the study ended: ``FINISHED``, ``KILLED`` or ``FAILED``; None where the
                study's attribute says it already.
        """
        if self._is_over:
            return
        self._is_over = True
        if status is not None:
            _set_status(self.study, status)
        if self._copy is not None:
            self._copy.finish()
        self._tell("end\n")

    def finish(self, status: str | None = None) -> Delivered | None:
        """Waits until everything is delivered and the study's run is ended.

        While MLflow takes something it waits as long as that takes; when MLflow is away it gives
        up after some seconds, and a :class:`TrackingWarning` says how to deliver the rest.

        Args:
            status: as for :meth:`end`.

        Returns:
            what MLflow has; None if it has not everything.
        """
        try:
            self.end(status)
            self._wait()
        except KeyboardInterrupt:
            self._process.terminate()
            self._reason = "stopped before everything was delivered"
            raise
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

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "wpo_optuna.track", "--follow"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=_environment(),
            start_new_session=True,  # what ends this process's group must not end it
        )
        directory = None if self._copy is None else self._copy.directory
        self._tell(Task(self._url, self.study.study_name, self._destination, directory).to_line())

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it was killed, which the end tells
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _listen(self) -> None:
        with self._process as process:
            assert process.stdout is not None
            for line in process.stdout:
                self._take(json.loads(line))
                self._has_contact.set()
        self._reason = self._reason or "the delivering process was ended from outside"
        self._has_contact.set()

    def _take(self, told: dict[str, Any]) -> None:
        if "delivered" in told:
            self.delivered = Delivered(**told["delivered"])
            self._n_trials = told.get("total", self._n_trials)
            self._is_complete = told.get("is_last", False)
            return
        is_first, self._reason = not self._reason, told["away"]
        if is_first:
            # A filter may make an error of it, which nobody in this thread could catch.
            with contextlib.suppress(TrackingWarning):
                warnings.warn(
                    f"MLflow does not take the study ({self._reason}); the study goes on, and what "
                    "MLflow lacks is delivered when it is back",
                    TrackingWarning,
                    stacklevel=2,
                )

    def _wait(self) -> None:
        with tqdm(
            desc="delivering to MLflow",
            unit="trial",
            delay=_SHOW_PROGRESS_AFTER_S,
            disable=None if self._show_progress_bar else True,
            leave=False,
        ) as bar:
            while self._listener.is_alive():
                self._listener.join(_POLL_S)
                if self.delivered is not None:
                    bar.total = self._n_trials
                    bar.update(self.delivered.n_trials - bar.n)

    def _sentence(self) -> str:
        name = self.study.study_name
        words = [program_here("python"), "-m", "wpo_optuna.track", "--study-name", name]
        words += ["--storage", _from_here(masked(self._url))]
        if self._destination.tracking_uri is not None:
            words += ["--tracking-uri", masked(self._destination.tracking_uri)]
        return (
            f"MLflow lacks a part of study {name!r} ({self._reason}); deliver it with: "
            f"{shlex.join(words)}"
        )


class _MemoryCopy:
    """A study in memory, copied again and again into a file that another process can read.

    Trials keep their numbers: one waits until all earlier ones are finished. Whoever reads the
    copy removes its directory.
    """

    def __init__(self, study: Study) -> None:
        self.directory = tempfile.mkdtemp(prefix="wpo_memory_")
        self.url = f"sqlite:///{self.directory}/study.db"
        self._study = study
        self._copy = optuna.create_study(
            study_name=study.study_name,
            storage=open_storage(self.url),
            directions=study.directions,
        )
        self._new = FinishedTrials(study, reads_only=True)
        self._stored = FinishedTrials(self._copy, reads_only=True)
        self._waiting: dict[int, FrozenTrial] = {}
        self._n_copied = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="wpo-copy", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Copies what is new for the last time."""
        self._is_over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._is_over.is_set():
            self._copy_new(is_last=False)
            self._is_over.wait(_COPY_EVERY_S)
        self._copy_new(is_last=True)

    def _copy_new(self, is_last: bool) -> None:
        copied = self._copy.user_attrs
        for name, value in self._study.user_attrs.items():
            if name not in copied or copied[name] != value:
                self._copy.set_user_attr(name, value)
        self._waiting |= {trial.number: trial for trial in self._new.read_new()}
        end = next(number for number in count(self._n_copied) if number not in self._waiting)
        if is_last:
            end = max(self._waiting, default=end - 1) + 1
        # A trial that will never finish keeps its number all the same.
        batch = [
            self._waiting.pop(number, create_trial(state=TrialState.RUNNING))
            for number in range(self._n_copied, end)
        ]
        self._stored.append(batch, None, lambda trial: None)
        self._n_copied = end


_unfinished: list[Follower] = []


@atexit.register
def _finish_all() -> None:
    for follower in list(_unfinished):
        if follower._pid == os.getpid():
            error = getattr(sys, "last_value", None)  # what ended the program, if anything
            status = KILLED if isinstance(error, KeyboardInterrupt) else FAILED
            follower.finish(None if error is None else status)


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
