"""What the study's process and the delivering process say to each other: plain values."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """A finished trial as MLflow gets it.

    Attributes:
        number: the trial's number in its study.
        state: ``COMPLETE``, ``PRUNED`` or ``FAIL``.
        tnmse: time-averaged normalised mean-squared error; NaN where the trial has none.
        loss: the trial's value; NaN where it has none.
        baseline: TNMSE of the baseline; NaN where the trial has none.
        f_lst: significance factors, empty where the trial has none.
        g_lst: conductance curves in µS, empty where the trial has none.
        k_w: scale from unitless weights to µS; NaN where the trial has none.
        x: the parameters ``(d,)`` as Optuna stores them (a category by its index).
        x_names: their names.
        phase: what proposed the trial, if not the sampler.
        started_ms: start in milliseconds since the epoch.
        finished_ms: end in milliseconds since the epoch.
    """

    number: int
    state: str
    tnmse: float
    loss: float
    baseline: float
    f_lst: tuple[float, ...]
    g_lst: tuple[tuple[float, ...], ...]
    k_w: float
    x: tuple[float, ...]
    x_names: tuple[str, ...]
    phase: str | None
    started_ms: int
    finished_ms: int

    @classmethod
    def from_trial(cls, trial: FrozenTrial) -> TrialRecord:
        """The record of a finished trial, complete or not."""
        attributes = trial.user_attrs
        finished_ms = milliseconds(trial.datetime_complete)
        return cls(
            number=trial.number,
            state=trial.state.name,
            tnmse=_number(attributes.get("tnmse")),
            loss=_number(trial.values[0] if trial.values else None),
            baseline=_number(attributes.get("baseline")),
            f_lst=_numbers(attributes.get("f_lst")),
            g_lst=tuple(_numbers(curve) for curve in attributes.get("g_lst") or ()),
            k_w=_number(attributes.get("k_w")),
            x=tuple(
                trial.distributions[name].to_internal_repr(value)
                for name, value in trial.params.items()
            ),
            x_names=tuple(trial.params),
            phase=attributes.get("phase"),
            started_ms=milliseconds(trial.datetime_start) or finished_ms,
            finished_ms=finished_ms,
        )

    @property
    def is_complete(self) -> bool:
        """Whether the trial has a value."""
        return self.state == "COMPLETE"

    @property
    def improvement(self) -> float:
        """How far the TNMSE lies below the baseline's, in percent."""
        if not self.baseline:
            return math.nan
        return 100.0 * (self.baseline - self.tnmse) / self.baseline


def milliseconds(time: datetime.datetime | None) -> int:
    """Milliseconds since the epoch of a local time, as Optuna keeps it; 0 for None."""
    return 0 if time is None else int(time.timestamp() * 1000)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _numbers(values: Sequence[float] | None) -> tuple[float, ...]:
    return () if values is None else tuple(float(value) for value in values)


@dataclass(frozen=True)
class StudyDescription:
    """Where a study goes to in MLflow and what its run says about it.

    Attributes:
        name: the study's name, which the run gets.
        identity: tells the study from others of the same name.
        tracking_uri: MLflow's address; None for MLflow's default.
        experiment_name: the experiment of the run.
        trial_runs: which trials get a run of their own.
        all_runs_below: for ``auto``: each trial of a smaller number gets a run of its own, others
            if they improved the best.
        parameters: names and values of the run's parameters.
        tags: names and values of the run's tags.
        started_ms: start of the study in milliseconds since the epoch.
        is_live: trials are still to come: the run is set to RUNNING.
        parent_identity: identity of the study under whose run this one's is put; None for none.
        metrics: names and values of what was measured before the first trial.
    """

    name: str
    identity: str
    tracking_uri: str | None
    experiment_name: str
    trial_runs: str
    all_runs_below: int
    parameters: tuple[tuple[str, str], ...]
    tags: tuple[tuple[str, str], ...]
    started_ms: int
    is_live: bool
    parent_identity: str | None = None
    metrics: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Artifact:
    """A file to be kept with the study's run, in the directory ``artifact_path`` of its own."""

    path: str
    artifact_path: str | None = None

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.path


@dataclass(frozen=True)
class Text:
    """A text to be kept with the study's run as the file ``artifact_file``."""

    text: str
    artifact_file: str

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.artifact_file


@dataclass(frozen=True)
class Metrics:
    """Values to be logged to the study's run at one step."""

    values: tuple[tuple[str, float], ...]
    step: int
    timestamp_ms: int

    @property
    def name(self) -> str:
        """What the user calls it."""
        return "metrics " + ", ".join(name for name, _ in self.values)


@dataclass(frozen=True)
class Tags:
    """Tags of the study's run."""

    values: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """What the user calls it."""
        return "tags " + ", ".join(name for name, _ in self.values)


Extra = Artifact | Text | Metrics | Tags


# Commands, answered by Done in the end unless they say otherwise.


@dataclass(frozen=True)
class Open:
    """Find or create the study's run, and say what it has; also asked again later."""

    description: StudyDescription


@dataclass(frozen=True)
class Deliver:
    """Bring trials to MLflow as far as it lacks them; numbers ascend."""

    records: tuple[TrialRecord, ...]


@dataclass(frozen=True)
class Regard:
    """Trials that somebody else delivers: count them when looking for the best."""

    records: tuple[TrialRecord, ...]


@dataclass(frozen=True)
class DeliverExtra:
    """Write an extra; twice is as good as once."""

    extra: Extra


@dataclass(frozen=True)
class Finish:
    """Write the table and the best trial and end the run.

    Attributes:
        status: how the study ended: ``FINISHED``, ``KILLED`` or ``FAILED``.
        keep_end: leave a run that has ended as it ended.
    """

    status: str
    keep_end: bool = False


@dataclass(frozen=True)
class Hurry:
    """Try again at once what MLflow did not take; without an answer."""


@dataclass(frozen=True)
class Leave:
    """There is nothing more to do; without an answer."""


Command = Open | Deliver | Regard | DeliverExtra | Finish | Hurry | Leave


# Replies.


@dataclass(frozen=True)
class Opened:
    """The study's run.

    Attributes:
        experiment_id: its experiment.
        run_id: the run.
        is_new: whether it was created just now.
        in_series: numbers of the complete trials that its series have.
    """

    experiment_id: str
    run_id: str
    is_new: bool
    in_series: frozenset[int]


@dataclass(frozen=True)
class Progress:
    """So many more trials are in MLflow."""

    trials: int


@dataclass(frozen=True)
class Working:
    """A sign of life during a command that takes long."""


@dataclass(frozen=True)
class Done:
    """The command is carried out."""


@dataclass(frozen=True)
class Away:
    """MLflow did not take it; it is tried again until it does."""

    reason: str


@dataclass(frozen=True)
class Refused:
    """An extra that MLflow will never take, and why."""

    what: str
    reason: str


Reply = Opened | Progress | Working | Done | Away | Refused
