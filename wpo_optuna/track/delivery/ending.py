"""Waiting for the end of a delivery, no longer than there is hope."""

from __future__ import annotations

import atexit
import os
import shlex
import sys
import time
import warnings
import weakref
from typing import TYPE_CHECKING

from wpo_optuna.track.delivery.feeder import Feeder, TrackingWarning
from wpo_optuna.track.delivery.storage_address import storage_url
from wpo_optuna.track.delivery.tracking_uri import masked

if TYPE_CHECKING:
    from tqdm import tqdm

# How long to wait for an MLflow that takes nothing, and for a sign of anything: one request may
# take 20 s, and a delivering process that died is started again.
_AWAY_S = 8.0
_SILENCE_S = 120.0
_SHOW_PROGRESS_AFTER_S = 2.0
_POLL_S = 0.05

_unfinished: weakref.WeakSet[Feeder] = weakref.WeakSet()


def wait_for_end(feeder: Feeder, show_progress_bar: bool) -> None:
    """Waits until a delivery that was asked to finish has ended.

    Args:
        feeder: the delivery.
        show_progress_bar: whether to show progress on a terminal if it takes more than 2 s.

    Raises:
        KeyboardInterrupt: the user does not want to wait; the delivery is stopped.
    """
    began = time.monotonic()
    bar = None
    try:
        while not feeder.has_ended.wait(_POLL_S):
            now = time.monotonic()
            if _is_hopeless(feeder, began, now):
                feeder.abandon()
            if bar is None and show_progress_bar and now > began + _SHOW_PROGRESS_AFTER_S:
                bar = _progress_bar()
            if bar is not None:
                _show(bar, feeder)
    except KeyboardInterrupt:
        feeder.abandon()
        feeder.has_ended.wait(_AWAY_S)
        raise
    finally:
        if bar is not None:
            bar.close()


def _is_hopeless(feeder: Feeder, began: float, now: float) -> bool:
    if feeder.stuck_since is not None:
        return now > max(began, feeder.stuck_since) + _AWAY_S
    return not feeder.is_reading and now > max(began, feeder.last_sign) + _SILENCE_S


def _progress_bar() -> tqdm:
    from tqdm import tqdm

    return tqdm(
        desc="delivering to MLflow",
        unit="trial",
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
        leave=False,
    )


def _show(bar: tqdm, feeder: Feeder) -> None:
    bar.total = feeder.n_delivered + feeder.n_left
    bar.update(feeder.n_delivered - bar.n)
    if feeder.n_left == 0 and not bar.disable and not bar.postfix:
        bar.set_postfix_str("the table of all trials is left")


def undelivered(feeder: Feeder) -> str | None:
    """What MLflow lacks of an ended delivery, and how to deliver it; None if nothing."""
    if feeder.is_complete:
        return None
    reason = reason_of_failure(feeder)
    n_left = feeder.n_left
    what = f"{n_left} trials" if n_left else "the end"
    sentence = f"MLflow lacks {what} of study {feeder.study.study_name!r} ({reason})"
    storage = storage_url(feeder.study._storage)
    if storage is None:
        return f"{sentence}, and the study is kept in memory only: nothing can deliver it later"
    return f"{sentence}; deliver it with: {_track_command(feeder, storage)}"


def reason_of_failure(feeder: Feeder) -> str:
    """Why MLflow lacks something, as a phrase."""
    return feeder.reason or "stopped before everything was delivered"


def _track_command(feeder: Feeder, storage: str) -> str:
    words = ["python", "-m", "wpo_optuna.track"]
    words += ["--study-name", feeder.study.study_name, "--storage", storage]
    destination = feeder.destination
    if destination.tracking_uri is not None:
        words += ["--tracking-uri", masked(destination.tracking_uri)]
    if destination.experiment_name != "wpo":
        words += ["--experiment", destination.experiment_name]
    if destination.trial_runs != "auto":
        words += ["--trial-runs", destination.trial_runs]
    return shlex.join(words)


def end_at_exit(feeder: Feeder) -> None:
    """Makes the end of the program wait for a delivery that nobody closed."""
    _unfinished.add(feeder)


@atexit.register
def _end_all() -> None:
    for feeder in list(_unfinished):
        if feeder.has_ended.is_set() or feeder.pid != os.getpid():
            continue
        if not feeder.is_finishing:
            feeder.finish(_status_of_failed_program())
        wait_for_end(feeder, show_progress_bar=True)
        sentence = undelivered(feeder)
        if sentence is not None:
            warnings.warn(sentence, TrackingWarning, stacklevel=1)


def _status_of_failed_program() -> str | None:
    """How the program ended, judged by the exception that ended it; None if there was none."""
    exception = getattr(sys, "last_value", None)
    if exception is None:
        return None
    return "KILLED" if isinstance(exception, KeyboardInterrupt) else "FAILED"
