"""The process that brings a study to MLflow while it is run: ``python -m wpo_optuna.track --follow``.

A process of its own, because MLflow's client is Python code that computes, 10 ms for each trial
with a run of its own: in the study's process it would take that from the study. It reads what it is
to do from its standard input, one line of JSON, and is told of the end there; where its input ends
without a word, the study's process was killed, and what there is gets delivered. It tells what it
has done in lines of JSON.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shutil
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wpo_optuna.track.delivery import Delivery
    from wpo_optuna.track.destination import Destination

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
    def from_line(cls, line: str) -> Task:
        """The task that :meth:`to_line` wrote."""
        from wpo_optuna.track.destination import Destination

        fields = json.loads(line)
        return cls(**{**fields, "destination": Destination.from_json(fields["destination"])})


def follow() -> int:
    """Does the task on standard input; returns the exit status."""
    os.nice(_NICENESS)
    # Without a buffer, whose lock a waiting thread would keep from the end of the program.
    channel = io.FileIO(0)
    task = Task.from_line(channel.readline().decode())
    end = _End(channel)
    import mlflow  # noqa: F401

    gc.freeze()  # what was imported stays, and need not be looked through again and again
    delivery: Delivery | None = None
    wait, give_up = _POLL_S, None
    while True:
        is_last = end.is_here()
        try:
            delivery = delivery or _begin(task)
            delivered = delivery.bring(
                running=not is_last, on_progress=lambda n, total: _tell(done=n, total=total)
            )
        except Exception as error:  # of MLflow or the storage, which raise what they like
            _tell(away=_reason(error, task))
            give_up = give_up or (time.monotonic() + _ALONE_S if is_last else None)
            if end.is_alone and give_up is not None and time.monotonic() > give_up:
                return 1
            wait = _WAIT_AT_END_S if is_last else min(2 * wait, _LONGEST_WAIT_S)
        else:
            _tell(delivered=asdict(delivered), is_last=is_last)
            if is_last:
                break
            wait = _POLL_S
        if is_last:
            time.sleep(wait)
        else:
            end.come.wait(wait)
    if task.directory is not None:
        shutil.rmtree(task.directory, ignore_errors=True)
    return 0


class _End:
    """The end of the study, as standard input tells it.

    Attributes:
        come: set once it has come.
        is_alone: whether the study's process is gone.
    """

    def __init__(self, channel: io.FileIO) -> None:
        self.come = threading.Event()
        self.is_alone = False
        self._channel = channel
        self._parent = os.getppid()
        threading.Thread(target=self._listen, daemon=True).start()

    def is_here(self) -> bool:
        # A forked copy of the study's process may hold the channel open after its death.
        if os.getppid() != self._parent:
            self.is_alone = True
            self.come.set()
        return self.come.is_set()

    def _listen(self) -> None:
        while self._channel.readline():  # the only thing that is ever said
            self.come.set()
        self.is_alone = True
        self.come.set()


def _begin(task: Task) -> Delivery:
    from wpo_optuna.storage import load_study
    from wpo_optuna.track.delivery import Delivery

    return Delivery(load_study(task.storage, task.study_name), task.destination)


def _reason(error: Exception, task: Task) -> str:
    from wpo_optuna.track.destination import without_password
    from wpo_optuna.track.store import reason_of

    return without_password(reason_of(error, task.destination.uri), task.storage)


def _tell(**what: Any) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        print(json.dumps(what), flush=True)
