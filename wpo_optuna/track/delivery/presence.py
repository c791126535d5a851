"""How deliveries of one study in several processes know of each other: marks in its storage."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study

_RECORDER = "wpo:mlflow_recorder"
_LATECOMER = "wpo:mlflow_latecomer"

# How often the process that runs a study says that it is still there, and after how long without
# a word it is thought to be gone, if that cannot be seen. Its clock may differ by some seconds.
_SAY_EVERY_S = 60.0
_GONE_AFTER_S = 300.0


class Presence:
    """One delivery's presence at its study, and what it knows of others.

    The *recorder* delivers trials while they are run and ends the study's run when they are over.
    A *latecomer* delivers what others have run, possibly while they do so as well; whoever finds
    that one was there looks at the end for what is there twice.

    Args:
        study: the study.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._token = uuid.uuid4().hex
        self._said_s: float | None = None
        self._latecomer_met: str | None = None

    def say_recording(self) -> None:
        """Says that this process records the study, if it has not said so for a minute."""
        now = time.monotonic()
        if self._said_s is not None and now < self._said_s + _SAY_EVERY_S:
            return
        self._said_s = now
        # A storage that cannot be written now is no reason to interrupt the delivery.
        with contextlib.suppress(Exception):
            self._write(
                _RECORDER,
                {
                    "token": self._token,
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "said_at": time.time(),
                },
            )

    def say_recorded(self) -> None:
        """Says that this process does not record the study any more."""
        if self._said_s is None:
            return
        with contextlib.suppress(Exception):
            recorder = self._read(_RECORDER)
            if recorder is not None and recorder["token"] == self._token:
                self._write(_RECORDER, None)

    @property
    def recorder(self) -> str | None:
        """The process that records the study just now, as a phrase; None if there is none."""
        said = self._read(_RECORDER)
        if said is None or time.time() > said["said_at"] + _GONE_AFTER_S:
            return None
        if said["host"] == socket.gethostname() and not _is_alive(said["pid"]):
            return None
        return f"process {said['pid']} on {said['host']}"

    def say_latecomer(self) -> None:
        """Says that this process delivers what others have run: before it asks what is there."""
        self._write(_LATECOMER, uuid.uuid4().hex)

    def meet_latecomers(self) -> None:
        """Takes note of who was there already: what they wrote is seen by asking MLflow now."""
        self._latecomer_met = self._read(_LATECOMER)

    @property
    def has_new_latecomer(self) -> bool:
        """Whether one, this process included, was there since `meet_latecomers`."""
        return bool(self._read(_LATECOMER) != self._latecomer_met)

    def _read(self, name: str) -> Any:
        return self._study._storage.get_study_system_attrs(self._study._study_id).get(name)

    def _write(self, name: str, value: Any) -> None:
        self._study._storage.set_study_system_attr(self._study._study_id, name, value)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
