"""The process that brings a study to MLflow while it is run: ``wpo_optuna.track --follow``.

A process of its own, because MLflow's client is Python code that computes, 10 ms for each trial
with a run of its own: in the study's process it would take that from the study. It reads what it is
to do from its standard input, one line of JSON, and is told of the end there by another one; where
its input ends before, the study's process was killed, and what there is gets delivered. It tells
what it has done in lines of JSON.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shutil
import threading
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from wpo_optuna.storage import load_study
from wpo_optuna.track.delivery import Delivery
from wpo_optuna.track.destination import Destination, without_password
from wpo_optuna.track.store import reason_of

_POLL_S = 0.5
_LONGEST_WAIT_S = 15.0
_WAIT_AT_END_S = 1.0
# How long to try at the end if the study's process is gone and MLflow is away.
_ALONE_S = 60.0
# The study's loop goes first where there are too few cores.
_NICENESS = 5


@dataclass(frozen=True)
class Task:
    """What a following process is to do.

    Attributes:
        storage: URL of the study's storage, with its password.
        study_name: the study.
        destination: where it goes.
        directory: of a copy of the study made for this process, removed when all is delivered.
    """

    storage: str
    study_name: str
    destination: Destination
    directory: str | None

    def to_line(self) -> str:
        """One line, to be read by :meth:`from_line`."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: bytes) -> Task:
        """The task that :meth:`to_line` wrote."""
        fields = json.loads(line)
        return cls(**{**fields, "destination": Destination.from_json(fields["destination"])})

    def reason(self, error: Exception) -> str:
        """Why it is not done, as a phrase without passwords."""
        return without_password(reason_of(error, self.destination.uri), self.storage)


class _End:
    """The end of the study, as standard input tells it."""

    def __init__(self, channel: io.FileIO) -> None:
        self.has_come = threading.Event()
        self.is_alone = False
        self._channel = channel
        self._parent = os.getppid()
        threading.Thread(target=self._listen, daemon=True).start()

    def is_here(self) -> bool:
        # A forked copy of the study's process may hold the channel open after its death.
        if os.getppid() != self._parent:
            self.is_alone = True
            self.has_come.set()
        return self.has_come.is_set()

    def _listen(self) -> None:
        while self._channel.readline():
            self.has_come.set()
        self.is_alone = True
        self.has_come.set()


def follow() -> int:
    """Does the task on standard input; returns the exit status."""
    os.nice(_NICENESS)
    # Without a buffer, whose lock a waiting thread would keep from the end of the program.
    channel = io.FileIO(0)
    task = Task.from_line(channel.readline())
    end = _End(channel)
    import mlflow  # noqa: F401

    gc.freeze()  # what was imported stays, and need not be looked through again and again
    delivery: Delivery | None = None
    wait, alone_since = _POLL_S, None
    while True:
        is_last = end.is_here()
        try:
            delivery = delivery or Delivery(
                load_study(task.storage, task.study_name), task.destination
            )
            delivered = delivery.bring(not is_last, partial(_tell_progress, delivery))
        except Exception as error:  # MLflow and storages raise what they like
            _tell(away=task.reason(error))
            if end.is_alone:
                alone_since = alone_since or time.monotonic()
                if time.monotonic() > alone_since + _ALONE_S:
                    return 1
            wait = min(2 * wait, _LONGEST_WAIT_S)
        else:
            _tell(delivered=asdict(delivered), is_last=is_last)
            if is_last:
                break
            wait = _POLL_S
        if is_last:
            time.sleep(_WAIT_AT_END_S)
        else:
            end.has_come.wait(wait)
    if task.directory is not None:
        shutil.rmtree(task.directory, ignore_errors=True)
    return 0


def _tell_progress(delivery: Delivery, n_done: int, n_all: int) -> None:
    assert delivery.delivered is not None
    _tell(delivered=asdict(delivery.delivered), done=n_done, total=n_all)


def _tell(**what: Any) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        print(json.dumps(what), flush=True)
