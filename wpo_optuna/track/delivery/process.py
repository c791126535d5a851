"""The delivering process, seen from the study's."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from wpo_optuna.track.delivery.messages import Command, Leave, Reply
from wpo_optuna.track.delivery.worker import REQUEST_SETTINGS

_END_S = 10.0


class WorkerLostError(Exception):
    """The delivering process has ended; the message is the last it wrote."""


class WorkerProcess:
    """Starts the delivering process and talks to it.

    Args:
        directory: its working directory, which MLflow's default and relative paths refer to.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, directory: str) -> None:
        self._channel: Connection
        self._channel, theirs = Pipe()
        self._errors = tempfile.TemporaryFile(prefix="wpo_delivery_")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "wpo_optuna.track.delivery.worker",
                    str(theirs.fileno()),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                cwd=directory,
                env=_environment(),
            )
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, command: Command) -> None:
        """Sends a command.

        Raises:
            WorkerLostError: there is nobody to receive it.
        """
        try:
            self._channel.send(command)
        except OSError as error:
            raise self._died() from error

    def receive(self, timeout_s: float) -> Reply | None:
        """The next reply; None if there is none within the time.

        Raises:
            WorkerLostError: there will be none.
        """
        try:
            return self._channel.recv() if self._channel.poll(timeout_s) else None
        except (EOFError, OSError) as error:
            raise self._died() from error

    def end(self) -> None:
        """Ends the process, at once if it does not end by itself."""
        # Closing is not enough: a forked copy of this process may hold the channel open.
        with contextlib.suppress(OSError):
            self._channel.send(Leave())
        self._channel.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def kill(self) -> None:
        """Ends the process at once, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._channel.close()
        self._errors.close()

    def _died(self) -> WorkerLostError:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return WorkerLostError(
            lines[-1] if lines else "the delivering process was ended from outside"
        )


def _environment() -> dict[str, str]:
    """The user's environment, with settings for requests where the user has none."""
    packages = str(Path(__file__).resolve().parents[2])
    search_path = [packages, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **REQUEST_SETTINGS,
        **os.environ,
        "PYTHONPATH": os.pathsep.join(search_path),
        # One thread: the study's loop needs the cores.
        "OMP_NUM_THREADS": "1",
    }
