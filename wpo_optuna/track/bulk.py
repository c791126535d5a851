"""Runs of many trials written at once into MLflow's own database.

MLflow's interface takes three requests for each run, 10 ms of computing together; a thousand
trials would take longer to record than to search. Where MLflow's store is a database, the runs of a
batch of trials are therefore inserted into its tables in one transaction, as MLflow itself would
have written them. A server is asked run by run.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, create_engine, insert

from wpo_optuna.track.store import MAX_PARAM_LENGTH


@dataclass(frozen=True)
class TrialRun:
    """What the run of one trial says.

    Attributes:
        name: its name.
        started_ms: when the trial began, in ms since 1970.
        ended_ms: when it ended.
        status: MLflow's word for how.
        step: the trial's number, to which its metrics belong.
        tags: by name.
        params: by name.
        metrics: by name; what is not finite is kept as NaN.
    """

    name: str
    started_ms: int
    ended_ms: int
    status: str
    step: int
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]

    @property
    def is_long(self) -> bool:
        """Whether a parameter is too long for MLflow."""
        return any(len(value) > MAX_PARAM_LENGTH for value in self.params.values())


def insert_runs(uri: str, experiment_id: str, runs: Sequence[TrialRun]) -> list[str]:
    """Inserts runs that have ended into MLflow's database; all of them or none.

    Args:
        uri: the database, whose tables MLflow has made.
        experiment_id: the experiment.
        runs: the runs.

    Returns:
        their ids.

    Raises:
        SQLAlchemyError: the database does not take them.
    """
    from mlflow.store.tracking.dbmodels.models import SqlExperiment

    if not runs:
        return []
    ids = [uuid.uuid4().hex for _ in runs]
    # MLflow's own client sets this tag, too.
    runs = [replace(run, tags={**run.tags, "mlflow.runName": run.name}) for run in runs]
    engine = create_engine(uri)
    try:
        with engine.begin() as connection:
            table = SqlExperiment.__table__
            query = table.select().where(table.c.experiment_id == int(experiment_id))
            location = connection.execute(query).one().artifact_location
            _insert(
                connection, experiment_id, location.rstrip("/"), dict(zip(ids, runs, strict=True))
            )
    finally:
        engine.dispose()
    return ids


def _insert(
    connection: Connection, experiment_id: str, location: str, runs: Mapping[str, TrialRun]
) -> None:
    from mlflow.store.tracking.dbmodels import models

    metrics = [
        {
            "run_uuid": run_id,
            "key": name,
            "value": value if math.isfinite(value) else 0.0,  # as MLflow keeps what is no number
            "is_nan": not math.isfinite(value),
            "timestamp": run.ended_ms,
            "step": run.step,
        }
        for run_id, run in runs.items()
        for name, value in run.metrics.items()
    ]
    rows: list[tuple[Any, list[dict[str, Any]]]] = [
        (models.SqlRun, [_run(i, run, experiment_id, location) for i, run in runs.items()]),
        (
            models.SqlTag,
            _pairs({i: {**run.tags, "mlflow.runName": run.name} for i, run in runs.items()}),
        ),
        (models.SqlParam, _pairs({i: run.params for i, run in runs.items()})),
        (models.SqlMetric, metrics),
        (models.SqlLatestMetric, metrics),
    ]
    for model, values in rows:
        if values:
            connection.execute(insert(model.__table__), values)


def _run(run_id: str, run: TrialRun, experiment_id: str, location: str) -> dict[str, Any]:
    return {
        "run_uuid": run_id,
        "name": run.name,
        "experiment_id": int(experiment_id),
        "artifact_uri": f"{location}/{run_id}/artifacts",
        "source_type": "UNKNOWN",
        "source_name": "",
        "entry_point_name": "",
        "source_version": "",
        "user_id": run.tags.get("mlflow.user", "unknown"),
        "status": run.status,
        "start_time": run.started_ms,
        "end_time": run.ended_ms,
        "lifecycle_stage": "active",
    }


def _pairs(of_runs: Mapping[str, Mapping[str, str]]) -> list[dict[str, str]]:
    return [
        {"run_uuid": run_id, "key": key, "value": value}
        for run_id, pairs in of_runs.items()
        for key, value in pairs.items()
    ]
