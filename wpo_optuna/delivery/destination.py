"""Where a study is delivered, checked before anything is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import entry_points
from urllib.parse import urlsplit

from wpo_optuna.errors import InvalidArgument

TRIAL_RUNS = ("auto", "all", "best", "none")

_LONGEST_EXPERIMENT_NAME = 500
_LONGEST_NAME = 250
_LONGEST_TAG = 8000
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SERVERS = ("http", "https", "databricks", "databricks-uc", "uc")


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
        if self.tracking_uri is not None:
            _check_tracking_uri(self.tracking_uri)
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


def _check_tracking_uri(uri: str) -> None:
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme in ("", "file") and uri not in _SERVERS:
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("1", "true"):
            raise InvalidArgument(
                f"tracking_uri = {uri!r}: MLflow keeps runs in directories no longer; give a "
                "database such as sqlite:///mlflow.db or a server such as http://127.0.0.1:5000."
            )
        return
    plugins = {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}
    if scheme not in {*DATABASES, *_SERVERS, *plugins} and uri not in _SERVERS:
        raise InvalidArgument(
            f"tracking_uri = {uri!r}: accepted are URIs that begin with "
            f"{', '.join(name + ':' for name in (*_SERVERS[:2], *DATABASES))}."
        )
