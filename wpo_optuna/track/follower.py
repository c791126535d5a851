"""Records a study in MLflow while it is run, by a process of its own that follows its storage.

A process of its own, because MLflow's client takes seconds to import and 10 ms of computing for
each run that a server is asked for: in the study's process it would take that from the study. The
two are connected by a pipe: the process is sent what it is to do, and at last a word that tells the
end; so does the death of the study's process, and what there is gets delivered all the same. It
sends what it has delivered, or why MLflow takes nothing, and ends with status 0 once MLflow has
everything.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import takewhile
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from tqdm import tqdm

from wpo_optuna.storage import FinishedTrials, load_study, open_storage, storage_url
from wpo_optuna.study.attributes import ENDED, FAILED, KILLED, RUNNING, STARTED, STATUS
from wpo_optuna.study.command_line import command_for_shell
from wpo_optuna.track.delivery import Delivered, Delivery, identity_of, storage_of
from wpo_optuna.track.destination import Destination, refuse_file_of, without_password
from wpo_optuna.track.store import reason_of

if TYPE_CHECKING:
    from optuna import Study

_SHOW_PROGRESS_AFTER_S = 2.0
_POLL_S, _LONGEST_POLL_S, _POLL_AT_END_S = 0.5, 15.0, 1.0
# How long to try at the end while MLflow takes nothing: as long as somebody waits, and alone.
_PATIENCE_S, _PATIENCE_ALONE_S = 8.0, 60.0
# The study's loop goes first where there are too few cores.
_NICENESS = 5


class TrackingWarning(UserWarning):
    """MLflow does not get something, or not yet."""


class Follower(AbstractContextManager["Follower"]):
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
        is_finished: whether it has been waited for.
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
        self._tracking_uri = destination.tracking_uri
        self._show_progress_bar = show_progress_bar
        self.is_finished = self._is_over = self._has_warned = False
        self._has_contact = threading.Event()
        self._reason = ""
        # By these MLflow's UI shows who recorded a run, and with which program.
        source = {
            "mlflow.user": os.environ.get("USER", "unknown"),
            "mlflow.source.name": sys.argv[0] or "python",
            "mlflow.source.type": "LOCAL",
        }
        destination = replace(destination, tags={**source, **destination.tags})
        destination.remember(study)
        identity_of(study)
        if STARTED not in study.user_attrs:
            study.set_user_attr(STARTED, _now_ms())
        study.set_user_attr(STATUS, RUNNING)
        url = storage_url(storage_of(study))
        self._copy = None if url is not None else _MemoryCopy(study)
        self._url = url if self._copy is None else self._copy.url
        self._channel, other_end = Pipe()
        with other_end:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "wpo_optuna.track", "--follow"],
                stdin=other_end.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    "OMP_NUM_THREADS": "1",  # the study's loop needs the cores
                },
                start_new_session=True,  # what ends this process's group must not end it
            )
        self._channel.send((self._url, study.study_name, destination, self._copy is not None))
        self._listener = threading.Thread(target=self._listen, name="wpo-mlflow", daemon=True)
        self._listener.start()
        atexit.register(self._finish_at_exit)

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
            self.study.set_user_attr(STATUS, status)
        with contextlib.suppress(Exception):  # a storage that fails ends the study with its message
            self.study.set_user_attr(ENDED, _now_ms())
        if self._copy is not None:
            self._copy.finish()
        with contextlib.suppress(OSError):  # it was killed, which its exit status tells
            self._channel.send("end")

    def finish(self, status: str | None = None) -> Delivered | None:
        """Waits until everything is delivered and the study's run is ended.

        While MLflow takes something it waits as long as that takes; when MLflow is away it gives
        up after some seconds, and a :class:`TrackingWarning` says how to deliver the rest.

        Args:
            status: as for :meth:`end`.

        Returns:
            what MLflow has; None if it has not everything.
        """
        if not self.is_finished:
            self.is_finished = True
            atexit.unregister(self._finish_at_exit)
            try:
                self.end(status)
                self._wait()
            except KeyboardInterrupt:
                self._process.terminate()
                self._reason = "stopped before everything was delivered"
                raise
            finally:
                if self._process.poll() != 0:
                    self.undelivered = self._sentence()
                    warnings.warn(self.undelivered, TrackingWarning, stacklevel=2)
        return None if self.undelivered else self.delivered

    def __exit__(self, *exception: object) -> None:
        self.finish()

    def _finish_at_exit(self) -> None:
        error = getattr(sys, "last_value", None)  # what ended the program, if anything
        status = KILLED if isinstance(error, KeyboardInterrupt) else FAILED
        self.finish(None if error is None else status)

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                told = self._channel.recv()
                if isinstance(told, Delivered):
                    self.delivered, self._reason = told, ""
                else:
                    self._note_failure(told)
                self._has_contact.set()
        self._process.wait()
        self._has_contact.set()

    def _note_failure(self, reason: str) -> None:
        # Once may be because somebody else wrote the same at the same time.
        is_away, self._reason = bool(self._reason), reason
        if is_away and not self._has_warned:
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
        with tqdm(
            desc="delivering to MLflow",
            unit="trial",
            delay=_SHOW_PROGRESS_AFTER_S,
            disable=None if self._show_progress_bar else True,
            leave=False,
        ) as bar:
            while self._listener.is_alive():
                self._listener.join(0.05)
                if self.delivered is not None:
                    bar.total = self.delivered.n_finished
                    bar.update(self.delivered.n_trials - bar.n)

    def _sentence(self) -> str:
        name = self.study.study_name
        # A path relative to the working directory, where the file is in it.
        storage = str(self._url).replace(f":///{Path.cwd()}/", ":///")
        words = ["--study-name", name, "--storage", storage]
        if self._tracking_uri is not None:
            words += ["--tracking-uri", self._tracking_uri]
        reason = self._reason or "the delivering process was ended from outside"
        command = command_for_shell("track", words)
        return f"MLflow lacks a part of study {name!r} ({reason}); deliver it with: {command}"


class _MemoryCopy:
    """A study in memory, copied again and again into a file that another process can read.

    Trials keep their numbers: one waits until all earlier ones are finished. Whoever reads the
    copy removes its directory.
    """

    def __init__(self, study: Study) -> None:
        self.url = f"sqlite:///{tempfile.mkdtemp(prefix='wpo_memory_')}/study.db"
        self._study = study
        self._copy = optuna.create_study(
            study_name=study.study_name,
            storage=open_storage(self.url),
            directions=study.directions,
        )
        self._stored = FinishedTrials(self._copy)
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
            self._is_over.wait(_POLL_S)
        self._copy_new(is_last=True)

    def _copy_new(self, is_last: bool) -> None:
        copied = self._copy.user_attrs
        for name, value in self._study.user_attrs.items():
            if name not in copied or copied[name] != value:
                self._copy.set_user_attr(name, value)
        new = self._study.get_trials(deepcopy=False)[self._n_copied :]
        if not is_last:
            new = list(takewhile(lambda trial: trial.state.is_finished(), new))
        # At last also those that will never finish: they keep their numbers all the same.
        self._stored.append(new)
        self._n_copied += len(new)


def _now_ms() -> int:
    return int(time.time() * 1000)


def follow() -> int:
    """Follows the study that standard input names, in a process of its own; returns its status."""
    os.nice(_NICENESS)
    parent = os.getppid()
    channel = Connection(sys.stdin.fileno())
    url, study_name, destination, is_copy = channel.recv()
    delivery: Delivery | None = None
    last_progress = time.monotonic()

    def tell(what: Delivered | str) -> None:
        nonlocal last_progress
        if isinstance(what, Delivered):
            last_progress = time.monotonic()
        with contextlib.suppress(OSError):  # nobody listens any more
            channel.send(what)

    def is_taken(running: bool) -> bool:
        """Delivers what there is; returns whether MLflow took it."""
        nonlocal delivery
        try:
            delivery = delivery or Delivery(load_study(url, study_name), destination, tell)
            tell(delivery.bring(running))
        except Exception as error:  # MLflow and storages raise what they like
            tell(without_password(reason_of(error, destination.uri), url))
            return False
        return True

    wait = 0.0
    # A forked copy of the study's process may hold the pipe open after its death.
    while not channel.poll(wait) and os.getppid() == parent:
        wait = _POLL_S if is_taken(running=True) else min(2 * wait + _POLL_S, _LONGEST_POLL_S)
    ended = time.monotonic()
    while not is_taken(running=False):
        patience_s = _PATIENCE_S if os.getppid() == parent else _PATIENCE_ALONE_S
        if time.monotonic() > max(ended, last_progress) + patience_s:
            return 1
        time.sleep(_POLL_AT_END_S)
    if is_copy:
        shutil.rmtree(Path(url.removeprefix("sqlite:///")).parent, ignore_errors=True)
    return 0
