"""The process that brings a study to MLflow while it is run: ``wpo_optuna.track --follow``.

A process of its own, because MLflow's client takes seconds to import and 10 ms of computing for
each run that a server is asked for: in the study's process it would take that from the study. It
reads what it is to do from its standard input, one line of JSON. The next line there tells the end;
so does the death of the study's process, and what there is gets delivered all the same. It tells
what it has done in lines of JSON.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import select
import shutil
import time
from dataclasses import asdict, dataclass
from typing import Any

from wpo_optuna.storage import load_study
from wpo_optuna.track.delivery import Delivered, Delivery
from wpo_optuna.track.destination import Destination, without_password
from wpo_optuna.track.store import reason_of

_POLL_S = 0.5
_LONGEST_WAIT_S = 15.0
_WAIT_AT_END_S = 1.0
# How long to try at the end while MLflow takes nothing: as long as somebody waits, and alone.
_PATIENCE_S, _PATIENCE_ALONE_S = 8.0, 60.0
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
        return cls(**{**fields, "destination": Destination(**fields["destination"])})


class _Following:
    """One study, and what its process is told about it."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._delivery: Delivery | None = None
        self.last_progress = time.monotonic()

    def bring(self, is_last: bool) -> bool:
        """Delivers what there is; returns whether MLflow took it."""
        task = self._task
        try:
            if self._delivery is None:
                self._delivery = Delivery(
                    load_study(task.storage, task.study_name), task.destination
                )
            delivered = self._delivery.bring(not is_last, self._tell_progress)
        except Exception as error:  # MLflow and storages raise what they like
            reason = reason_of(error, task.destination.uri)
            _tell(away=without_password(reason, task.storage))
            return False
        self.last_progress = time.monotonic()
        _tell(delivered=asdict(delivered), is_last=is_last)
        return True

    def _tell_progress(self, delivered: Delivered, n_all: int) -> None:
        self.last_progress = time.monotonic()
        _tell(delivered=asdict(delivered), total=n_all)


def follow() -> int:
    """Does the task on standard input; returns the exit status."""
    os.nice(_NICENESS)
    parent = os.getppid()
    channel = io.FileIO(0)  # without a buffer, where the end could hide from select
    task = Task.from_line(channel.readline())
    following = _Following(task)
    import mlflow  # noqa: F401

    gc.freeze()  # what was imported stays, and need not be looked through again and again
    wait = _POLL_S
    # A forked copy of the study's process may hold the channel open after its death.
    while not select.select([channel], [], [], 0)[0] and os.getppid() == parent:
        wait = _POLL_S if following.bring(is_last=False) else min(2 * wait, _LONGEST_WAIT_S)
        select.select([channel], [], [], wait)
    ended = time.monotonic()
    while not following.bring(is_last=True):
        patience_s = _PATIENCE_S if os.getppid() == parent else _PATIENCE_ALONE_S
        if time.monotonic() > max(ended, following.last_progress) + patience_s:
            return 1
        time.sleep(_WAIT_AT_END_S)
    if task.directory is not None:
        shutil.rmtree(task.directory, ignore_errors=True)
    return 0


def _tell(**what: Any) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        print(json.dumps(what), flush=True)
