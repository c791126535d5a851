"""The process that delivers a study to MLflow: ``python -m wpo_optuna.track.delivery.worker FD``.

A process of its own, because MLflow's client is Python code that computes: in a thread it would
take from the study's loop what it needs, 10 ms for each trial with a run of its own. Here MLflow's
settings for requests can be changed too, without changing them for the user's process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from wpo_optuna.track.delivery import database_store
from wpo_optuna.track.delivery.best import BestSoFar
from wpo_optuna.track.delivery.messages import (
    Away,
    Command,
    Deliver,
    DeliverExtra,
    Done,
    Finish,
    Hurry,
    Leave,
    Open,
    Opened,
    Progress,
    Refused,
    Regard,
    StudyDescription,
    Working,
)
from wpo_optuna.track.delivery.study_run import StudyRun
from wpo_optuna.track.delivery.table import TrialTable
from wpo_optuna.track.delivery.tracking_uri import masked, without_password

# MLflow's client would repeat a request for minutes in silence. Here each is made once; then is
# waited, and what MLflow has is asked again before anything is repeated.
REQUEST_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 15.0
_PARENT_CHECK_S = 1.0
# Signs of life while MLflow is asked what it has of a large study, and while the table of all
# trials is written and uploaded: that may take minutes. An upload that hangs must not hold up the
# end of the program for ever.
_SIGN_EVERY_S = 5.0
_LONGEST_LIFE_S = 1800.0
# The study's loop goes first where there are too few cores.
_NICENESS = 5
_MOST_CHARACTERS_OF_A_REASON = 300

# What requests and urllib3 say inside the message of MLflow's exception, and what it means.
_REQUEST_FAILURES = {
    "NameResolutionError": "cannot be reached: no such host",
    "Connection refused": "cannot be reached: connection refused",
    "NewConnectionError": "cannot be reached",
    "ConnectTimeoutError": "cannot be reached: no answer",
    "timeout exception": "does not answer in time",
    "ReadTimeoutError": "does not answer in time",
    "RemoteDisconnected": "breaks off connections",
    "Connection reset": "breaks off connections",
    "error responses": "answers with server errors",
}


class OrphanedError(Exception):
    """The study's process is gone."""


class Worker:
    """Carries out commands, each until MLflow has taken it.

    Args:
        channel: commands come from here, and replies go here.
    """

    def __init__(self, channel: Connection) -> None:
        self._channel = channel
        self._parent = os.getppid()
        self._description: StudyDescription | None = None
        self._run: StudyRun | None = None
        self._tracking_uri: str | None = None
        self._obsolete_run_ids: list[str] = []
        self._table = TrialTable()
        self._best = BestSoFar()
        self._n_reported = 0
        self._has_finished = False

    def serve(self) -> None:
        """Carries out commands until the study's process closes the channel or is gone."""
        try:
            while not isinstance(command := self._receive(timeout_s=None), Leave):
                # A request to hurry may come after what it was meant for.
                if command is not None and not isinstance(command, Hurry):
                    self._carry_out(command)
        except (EOFError, ConnectionError, OrphanedError):
            self._note_sudden_end()
        finally:
            self._table.close()
            database_store.close_connections()

    def _receive(self, timeout_s: float | None) -> Command | None:
        """The next command; None if there is none within the time."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = _PARENT_CHECK_S if end is None else end - time.monotonic()
            if left <= 0:
                return None
            if self._channel.poll(min(left, _PARENT_CHECK_S)):
                command: Command = self._channel.recv()
                return command
            # A forked copy of the study's process may hold the channel open after its death.
            if os.getppid() != self._parent:
                raise OrphanedError

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, Open):
            self._describe(command.description)
        wait, n_before = _FIRST_WAIT_S, 0
        self._n_reported = 0
        while True:
            try:
                self._try(command)
                break
            except ConnectionError:
                raise  # of the channel: MLflow's client wraps those of its requests
            except Exception as error:
                # What failed may have been carried out all the same: ask again what is there.
                self._run = None
                self._channel.send(Away(_reason(error, self._tracking_uri)))
                if self._n_reported > n_before:
                    wait, n_before = _FIRST_WAIT_S, self._n_reported
                hurried = self._receive(wait) is not None
                wait = _FIRST_WAIT_S if hurried else min(2 * wait, _LONGEST_WAIT_S)
        self._channel.send(Done())

    def _describe(self, description: StudyDescription) -> None:
        """Takes a new description, which makes the next command ask MLflow what it has."""
        if self._run is not None and self._run.description.identity != description.identity:
            # Another process named the study at the same time, and its name counts.
            self._obsolete_run_ids.append(self._run.run_id)
        self._description, self._run = description, None

    def _try(self, command: Command) -> None:
        run = self._opened()
        if isinstance(command, Deliver):
            run.deliver(command.records, self._reporter())
        elif isinstance(command, Regard):
            run.regard(command.records)
        elif isinstance(command, DeliverExtra):
            self._deliver_extra(run, command)
        elif isinstance(command, Finish):
            with self._showing_life():
                run.finish(command.status, command.keep_end)
            self._has_finished = True

    @contextlib.contextmanager
    def _showing_life(self) -> Iterator[None]:
        """Tells again and again that something goes on; nothing else may be told meanwhile."""
        is_over = threading.Event()

        def show() -> None:
            end = time.monotonic() + _LONGEST_LIFE_S
            while not is_over.wait(_SIGN_EVERY_S) and time.monotonic() < end:
                with contextlib.suppress(OSError):  # the study's process is gone
                    self._channel.send(Working())

        thread = threading.Thread(target=show, name="wpo-signs", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            # The channel is for one thread at a time.
            thread.join()

    def _opened(self) -> StudyRun:
        if self._run is None:
            import mlflow

            assert self._description is not None, "Open comes first"
            self._tracking_uri = self._description.tracking_uri or mlflow.get_tracking_uri()
            with database_store.preparing(self._tracking_uri):
                client = mlflow.MlflowClient(self._tracking_uri)
            run = StudyRun(client, self._description, self._table, self._best)
            with self._showing_life():
                run.open()
                for run_id in self._obsolete_run_ids:
                    run.delete(run_id)
            self._obsolete_run_ids.clear()
            self._run = run
            self._channel.send(
                Opened(run.experiment_id, run.run_id, run.is_new, frozenset(run.in_series))
            )
        return self._run

    def _reporter(self) -> Callable[[int], None]:
        """Tells of a command's trials once, however often the command is tried."""
        n_done = 0

        def report(trials: int) -> None:
            nonlocal n_done
            n_done += trials
            if n_done > self._n_reported:
                self._channel.send(Progress(n_done - self._n_reported))
                self._n_reported = n_done

        return report

    def _deliver_extra(self, run: StudyRun, command: DeliverExtra) -> None:
        from mlflow.exceptions import MlflowException

        try:
            run.deliver_extra(command.extra)
        except (MlflowException, OSError) as error:
            if not _is_final(error):
                raise
            reason = _reason(error, self._tracking_uri)
            self._channel.send(Refused(command.extra.name, reason))

    def _note_sudden_end(self) -> None:
        """Ends the run of a study whose process was killed, if MLflow is at hand."""
        if self._run is not None and self._run.description.is_live and not self._has_finished:
            with contextlib.suppress(Exception):
                self._run.end("KILLED")


def _is_final(error: Exception) -> bool:
    """Whether trying again cannot help: a file that is not there, a value MLflow refuses."""
    if isinstance(error, OSError):
        return isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError)
    return getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE"


def _reason(error: Exception, tracking_uri: str | None) -> str:
    """Why MLflow did not take something, as a phrase."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.partition(" [SQL: ")[0]
    if tracking_uri is not None:
        text = without_password(text, tracking_uri)
    for sign, reason in _REQUEST_FAILURES.items():
        if sign in text:
            return f"{masked(tracking_uri or 'MLflow')} {reason}"
    if len(text) <= _MOST_CHARACTERS_OF_A_REASON:
        return text
    return text[:_MOST_CHARACTERS_OF_A_REASON] + " ..."


def main() -> None:
    """Entry point: the only argument is the file descriptor of the channel."""
    # Ctrl-C reaches every process of the terminal; what it means is for the study's to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICENESS)
    logging.disable(logging.ERROR)
    # While the study's process gathers what there is to say; what fails here fails again there.
    with contextlib.suppress(ImportError):
        import mlflow  # noqa: F401
    Worker(Connection(int(sys.argv[1]))).serve()


if __name__ == "__main__":
    main()
