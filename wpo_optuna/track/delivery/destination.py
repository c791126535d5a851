"""Where a study is delivered, checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.track.delivery.tracking_uri import check_tracking_uri

TRIAL_RUNS = ("auto", "all", "best", "none")
# With at most so many trials, "auto" gives each of them a run of its own.
AUTO_ALL_TRIALS = 1000

_LONGEST_EXPERIMENT_NAME = 500
_LONGEST_NAME = 250
_LONGEST_TAG = 8000


@dataclass(frozen=True)
class Destination:
    """Where and how a study is delivered.

    Attributes:
        tracking_uri: MLflow's tracking URI; None for MLflow's default.
        experiment_name: the experiment of the study's run.
        trial_runs: ``all``, ``best``, ``none`` or ``auto``.
        planned_trials: how many trials the study will have, as far as known.
        parameters: further parameters of the study's run.
        tags: further tags of the study's run.
        is_live: trials are still to come.
    """

    tracking_uri: str | None
    experiment_name: str
    trial_runs: str
    planned_trials: int
    parameters: tuple[tuple[str, str], ...]
    tags: tuple[tuple[str, str], ...]
    is_live: bool

    def __post_init__(self) -> None:
        check_tracking_uri(self.tracking_uri)
        if not 0 < len(self.experiment_name) <= _LONGEST_EXPERIMENT_NAME:
            raise InvalidArgument(
                f"experiment_name = {self.experiment_name!r}: a name of 1 to "
                f"{_LONGEST_EXPERIMENT_NAME} characters is needed."
            )
        if self.trial_runs not in TRIAL_RUNS:
            raise InvalidArgument(
                f"trial_runs = {self.trial_runs!r}: accepted is {', '.join(TRIAL_RUNS)}."
            )
        if self.planned_trials < 0:
            raise InvalidArgument(
                f"planned_trials = {self.planned_trials}: a number of trials or None is needed."
            )
        check_tags(self.tags)

    def all_runs_below(self, n_trials: int) -> int:
        """Up to where ``auto`` gives a run to each trial of a study that is first delivered.

        Args:
            n_trials: how many trials it has.
        """
        return AUTO_ALL_TRIALS if max(self.planned_trials, n_trials) <= AUTO_ALL_TRIALS else 0


def check_tags(tags: tuple[tuple[str, str], ...]) -> None:
    """Refuses tags that MLflow would cut.

    Raises:
        InvalidArgument: a name or a value is too long.
    """
    for name, value in tags:
        if not 0 < len(name) <= _LONGEST_NAME or len(value) > _LONGEST_TAG:
            raise InvalidArgument(
                f"tags: {name!r} has a name of {len(name)} and a value of {len(value)} "
                f"characters; MLflow takes 1 to {_LONGEST_NAME} and at most {_LONGEST_TAG}."
            )
