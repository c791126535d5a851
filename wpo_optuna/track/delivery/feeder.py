"""The thread that hands a study's trials to the delivering process."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

from wpo_optuna.track.delivery.backlog import Backlog
from wpo_optuna.track.delivery.description import DeliveryState, describe
from wpo_optuna.track.delivery.destination import Destination
from wpo_optuna.track.delivery.messages import (
    Away,
    Command,
    Deliver,
    DeliverExtra,
    Done,
    Extra,
    Finish,
    Hurry,
    Open,
    Opened,
    Progress,
    Refused,
    Regard,
    Reply,
    TrialRecord,
)
from wpo_optuna.track.delivery.presence import Presence
from wpo_optuna.track.delivery.process import WorkerLostError, WorkerProcess
from wpo_optuna.track.delivery.tracking_uri import refuse_file_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

# Trials in one message: as many as make one request for the series.
_BATCH = 250
# How often the thread looks for new trials: MLflow is behind by so much.
_TICK_S = 0.25
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0


class TrackingWarning(UserWarning):
    """MLflow does not get something, or not yet."""


class Feeder:
    """Delivers one study in the background, from the first trial to the end of its run.

    ``put``, ``put_extra``, ``finish`` and ``abandon`` return at once and are for any thread.

    Args:
        study: the study.
        destination: where it goes.

    Attributes:
        study: the study.
        destination: where it goes.
        pid: the process that began the delivery.
        has_opened: set once the study's run is there.
        has_ended: set once nothing more will happen.
        experiment_id: the run's experiment; None before ``has_opened``.
        run_id: the study's run; None before ``has_opened``.
        stuck_since: ``time.monotonic()`` since when MLflow takes nothing, or the study's storage
            cannot be read; None while it goes on.
        reason: why it did not go on when last it did not.
        intended_status: how the run ends if nothing else is said.
        n_delivered: trials that MLflow has got.
        last_sign: ``time.monotonic()`` of the last sign that something moves.
        is_reading: whether the study's storage is being read.
        recorder: for a delivery that is not live: the process that is still recording the study
            and will end its run, as a phrase; None if there is none.

    Raises:
        InvalidArgument: MLflow's store would be the file of the study's storage.
    """

    def __init__(self, study: Study, destination: Destination) -> None:
        self.pid = os.getpid()
        self.has_opened = threading.Event()
        self.has_ended = threading.Event()
        self.experiment_id: str | None = None
        self.run_id: str | None = None
        self.stuck_since: float | None = None
        self.reason: str | None = None
        self.intended_status = "FINISHED"
        self.n_delivered = 0
        self.last_sign = time.monotonic()
        self.is_reading = False
        self.study = study
        self.destination = destination
        self.recorder: str | None = None
        refuse_file_of(study._storage, destination.tracking_uri)
        self._backlog = Backlog(study)
        self._presence = Presence(study)
        self._state: DeliveryState | None = None
        self._extras: deque[Extra] = deque()
        self._delivered_extras: list[Extra] = []
        self._is_refused = False
        self._status: str | None = None
        self._directory = os.path.realpath(os.curdir)
        self._n_at_hand = 0
        self._n_rest = 0
        self._has_finished = False
        self._has_warned = False
        self._wake = threading.Event()
        self._is_abandoned = threading.Event()
        self._worker: WorkerProcess | None = None
        self._thread = threading.Thread(target=self._work, name="wpo-mlflow", daemon=True)
        self._thread.start()

    def put(self, trial: FrozenTrial) -> None:
        """Takes a finished trial."""
        self._backlog.put(trial)

    def put_extra(self, extra: Extra) -> None:
        """Takes something beside the trials."""
        self._extras.append(extra)

    def finish(self, status: str | None = None) -> None:
        """Asks to deliver everything and to end the run; None takes the intended status."""
        self._status = status or self.intended_status
        self._wake.set()

    def abandon(self) -> None:
        """Asks to stop at once, whatever is not delivered."""
        self._is_abandoned.set()
        self._wake.set()

    @property
    def is_finishing(self) -> bool:
        """Whether it was asked to deliver everything and to end the run."""
        return self._status is not None

    @property
    def is_complete(self) -> bool:
        """Whether MLflow has everything, at the end."""
        return self._has_finished and not self._extras

    @property
    def n_left(self) -> int:
        """Trials on their way."""
        return self._backlog.n_left + self._n_at_hand + self._n_rest

    def _work(self) -> None:
        wait = _FIRST_WAIT_S
        while not (self._has_finished or self._is_abandoned.is_set()):
            try:
                with contextlib.closing(self._commands()) as commands:
                    for command in commands:
                        self._carry_out(command)
                        wait = _FIRST_WAIT_S
                        if self._is_abandoned.is_set():
                            break
            except Exception as error:  # of the storage, or the delivering process died
                self._recover(error, wait)
                wait = min(2 * wait, _LONGEST_WAIT_S)
        self._leave()

    def _commands(self) -> Generator[Command | None]:
        """What to ask of the delivering process, one thing after the other; None to wait."""
        self._backlog.restart()
        # It imports MLflow while the storage is asked for what it needs to know.
        self._worker = self._worker or WorkerProcess(self._directory)
        if self.destination.is_live:
            self._presence.say_recording()
            self._presence.meet_latecomers()
            yield self._open()
            yield from self._record()
        else:
            yield self._open_as_latecomer()
            yield from self._catch_up()
        self._has_finished = True

    def _record(self) -> Iterator[Command | None]:
        """Delivers trials while they are run, and all that is left when they are over."""
        while not self.is_finishing:
            yield from self._live()
        rest = self._read_rest()
        if self._backlog.has_foreign:
            yield self._open_as_latecomer()
            rest = self._read_rest()
        elif self._presence.has_new_latecomer:
            yield self._open()
        yield from self._deliver_rest(rest)
        yield from self._deliver_extras()
        if self._backlog.has_foreign:
            yield self._open_as_latecomer()
        elif self._presence.has_new_latecomer:
            yield self._open()
        yield Finish(self._status or self.intended_status, keep_end=False)

    def _catch_up(self) -> Iterator[Command]:
        """Delivers what others have run, and ends the run unless somebody records it still."""
        recorder = self._presence.recorder
        while True:
            yield from self._deliver_rest(self._read_rest())
            earlier, recorder = recorder, self._presence.recorder
            if self._backlog.has_foreign or recorder != earlier:
                yield self._open_as_latecomer()
            if recorder == earlier:
                break
            # The recorder's last trials, or how it ended the run, may not have been there yet.
        yield from self._deliver_extras()
        self.recorder = recorder
        if recorder is None:
            yield Finish(self._status or self.intended_status, keep_end=True)

    def _open_as_latecomer(self) -> Open:
        """Asks what there is, and makes others do so later.

        Whichever process is last finds what two have written, and leaves one of it.
        """
        self._presence.say_latecomer()
        return self._open()

    def _open(self) -> Open:
        self._state = DeliveryState.begin(self.study, self.destination)
        return Open(describe(self.study, self.destination, self._state))

    def _live(self) -> Iterator[Command | None]:
        """One round while trials may still come."""
        self._presence.say_recording()
        yield from self._deliver_extras()
        if own := self._backlog.next_own(_BATCH):
            yield from self._deliver(own)
        elif foreign := self._backlog.next_foreign(_BATCH):
            yield Regard(_records(foreign))
        else:
            yield None

    def _deliver(self, trials: Sequence[FrozenTrial]) -> Iterator[Command]:
        self._backlog.send(trials)
        self._n_at_hand = len(trials)
        try:
            yield Deliver(_records(trials))
        except GeneratorExit:
            self._backlog.give_back(trials)
            raise
        finally:
            self._n_at_hand = 0
        self._backlog.acknowledge(trials)

    def _read_rest(self) -> list[FrozenTrial]:
        self.is_reading = True
        try:
            rest = self._backlog.rest()
        finally:
            self.is_reading = False
        self._n_rest = len(rest)
        return rest

    def _deliver_rest(self, rest: list[FrozenTrial]) -> Iterator[Command]:
        """Delivers what is left, trials of other processes included, if those did not."""
        while rest:
            batch, rest = rest[:_BATCH], rest[_BATCH:]
            self._n_rest = len(rest)
            yield from self._deliver(batch)

    def _deliver_extras(self) -> Iterator[Command]:
        while self._extras:
            extra = self._extras.popleft()
            self._is_refused = False
            try:
                yield DeliverExtra(extra)
            except GeneratorExit:
                self._extras.appendleft(extra)
                raise
            if not self._is_refused:
                self._delivered_extras.append(extra)

    def _carry_out(self, command: Command | None) -> None:
        if command is None:
            self._wake.wait(_TICK_S)
            return
        assert self._worker is not None
        self._worker.send(command)
        has_hurried = False
        while not self._is_abandoned.is_set():
            reply = self._worker.receive(_TICK_S)
            if self.destination.is_live:
                self._presence.say_recording()
            if reply is None:
                if self.is_finishing and self.stuck_since and not has_hurried:
                    self._worker.send(Hurry())
                    has_hurried = True
                continue
            self.last_sign = time.monotonic()
            if isinstance(reply, Done):
                self.stuck_since = None
                return
            self._take(reply)

    def _take(self, reply: Reply) -> None:
        if isinstance(reply, Opened):
            self._take_opened(reply)
        elif isinstance(reply, Progress):
            self.n_delivered += reply.trials
            self._n_at_hand -= reply.trials
            self.stuck_since = None
        elif isinstance(reply, Away):
            self._note_failure(reply.reason, is_stuck=True)
            self._warn_once(
                f"MLflow does not take the study ({reply.reason}); the study goes on, and what "
                "MLflow lacks is delivered when it is back"
            )
        elif isinstance(reply, Refused):
            self._is_refused = True
            _warn(f"MLflow does not take {reply.what} ({reply.reason})")

    def _take_opened(self, reply: Opened) -> None:
        assert self._state is not None
        lacking: list[Extra] = []
        if reply.is_new or self.run_id not in (None, reply.run_id):
            # Of a run that was lost everything is delivered again.
            lacking += [*self._state.delivered, *self._delivered_extras]
            self._delivered_extras.clear()
        if not self.has_opened.is_set():
            lacking += self._state.undelivered
        self._extras.extendleft(reversed(lacking))
        self._backlog.opened(reply.in_series)
        self.experiment_id, self.run_id = reply.experiment_id, reply.run_id
        self.has_opened.set()

    def _recover(self, error: Exception, wait: float) -> None:
        """Gets ready to begin again after a failure on this side."""
        if isinstance(error, WorkerLostError) and self._worker is not None:
            self._worker.kill()
            self._worker = None
        reason = " ".join(str(error).split()) or type(error).__name__
        self._note_failure(reason, is_stuck=not isinstance(error, WorkerLostError))
        self._warn_once(
            f"the delivery to MLflow was interrupted ({reason}); the study goes on, and what "
            "MLflow lacks is delivered later"
        )
        self._is_abandoned.wait(wait)

    def _note_failure(self, reason: str, is_stuck: bool) -> None:
        self.reason = reason
        if is_stuck and self.stuck_since is None:
            self.stuck_since = time.monotonic()

    def _warn_once(self, sentence: str) -> None:
        if self.destination.is_live and not self._has_warned:
            self._has_warned = True
            _warn(sentence)

    def _leave(self) -> None:
        if self._worker is not None:
            if self._has_finished:
                self._worker.end()
            else:
                self._worker.kill()
        try:
            self._remember()
        except Exception as error:  # the storage may be what failed
            self._has_finished = False
            self._note_failure(" ".join(str(error).split()), is_stuck=True)
        self._presence.say_recorded()
        self.has_ended.set()

    def _remember(self) -> None:
        """Keeps in the storage what is needed to deliver the rest, or everything again."""
        state = DeliveryState.begin(self.study, self.destination)
        after = state.after(
            self._delivered_extras,
            tuple(self._extras),
            self._status if self.destination.is_live else None,
        )
        if after != state:
            after.write(self.study)


def _warn(sentence: str) -> None:
    # A filter may make an error of it, which nobody in this thread could catch.
    with contextlib.suppress(TrackingWarning):
        warnings.warn(sentence, TrackingWarning, stacklevel=2)


def _records(trials: Sequence[FrozenTrial]) -> tuple[TrialRecord, ...]:
    return tuple(TrialRecord.from_trial(trial) for trial in trials)
