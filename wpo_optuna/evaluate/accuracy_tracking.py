"""A metric over time in MLflow: a run with the curves, their figure and their tables."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wpo_optuna.evaluate.accuracy import MetricOverTime
from wpo_optuna.track.delivery import limits
from wpo_optuna.track.tracker import TrackingWarning

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_MOST_CHARACTERS_OF_A_REASON = 200

# A server that is away should cost seconds, not MLflow's minutes.
_MLFLOW_REQUESTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}

_KIND_TAG = "wpo.kind"
_KIND = "accuracy"


def record_or_warn(result: MetricOverTime, files: Sequence[Path], **run: Any) -> str | None:
    """Makes a run of a comparison, unless MLflow is away: then a warning says so.

    Args:
        result: the curves.
        files: kept as the run's artifacts; their directory is named in the warning.
        run: further arguments of :func:`record`.

    Returns:
        the run's id; None if MLflow did not take it.
    """
    for name, value in _MLFLOW_REQUESTS.items():
        os.environ.setdefault(name, value)
    try:
        return record(result, files, **run)
    except Exception as error:  # MLflow's storages raise what they like
        reason = " ".join(str(error).split())[:_MOST_CHARACTERS_OF_A_REASON]
        warnings.warn(
            f"MLflow did not take the results, which are in {files[0].parent} "
            f"({reason or type(error).__name__}).",
            TrackingWarning,
            stacklevel=2,
        )
        return None


def record(
    result: MetricOverTime,
    files: Sequence[Path],
    *,
    tracking_uri: str | None,
    experiment_name: str,
    run_name: str,
    parameters: Mapping[str, object],
    tags: Mapping[str, str],
    started_s: float,
) -> str:
    """Makes a run of a comparison and returns its id.

    The run has the series ``baseline_METRIC``, ``optimised_METRIC`` (means over the repeats), each
    with ``_std``, and ``ideal_METRIC``; the step is the index of the time, which the series
    ``t_s`` holds in s.

    Args:
        result: the curves.
        files: kept as the run's artifacts.
        tracking_uri: MLflow's tracking URI; None takes MLflow's default.
        experiment_name: experiment of the run, made if there is none.
        run_name: name of the run.
        parameters: parameters of the run.
        tags: tags of the run.
        started_s: when the comparison began, in s since the epoch.

    Raises:
        MlflowException: MLflow refuses; whatever else its storage raises when it is away.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Param

    client = MlflowClient(tracking_uri)
    run = client.create_run(
        _experiment_id(client, experiment_name),
        start_time=round(1000 * started_s),
        run_name=run_name,
        tags={**tags, _KIND_TAG: _KIND},
    )
    run_id = str(run.info.run_id)
    try:
        written = [
            Param(name, str(value)[: limits.MAX_PARAM_LENGTH]) for name, value in parameters.items()
        ]
        for part in limits.batches(written, limits.MAX_PARAMS_PER_BATCH):
            client.log_batch(run_id, params=part)
        for batch in limits.batches(_metrics(result), limits.MAX_METRICS_PER_BATCH):
            client.log_batch(run_id, metrics=batch)
        for path in files:
            client.log_artifact(run_id, str(path))
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)
    return run_id


def _metrics(result: MetricOverTime) -> list[Metric]:
    # MLflow takes letters, digits and a few signs; names of functions may be <lambda>.
    metric = re.sub(r"[^\w .-]", "_", result.metric)
    series = {"t_s": np.asarray(result.t_steps)}
    if result.ideal is not None:
        series[f"ideal_{metric}"] = np.full(len(result.t_steps), result.ideal)
    for curve in result.curves:
        series[f"{curve.name}_{metric}"] = curve.mean
        if len(curve.values) > 1:
            series[f"{curve.name}_{metric}_std"] = curve.spread
    now_ms = round(1000 * time.time())
    return [
        entry
        for step in range(len(result.t_steps))
        for entry in limits.metrics(
            {name: float(values[step]) for name, values in series.items()}, now_ms, step
        )
    ]


def _experiment_id(client: MlflowClient, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    # The kind spares the UI's user the question which of its views is the right one.
    return str(
        client.create_experiment(name, tags={"mlflow.experimentKind": "custom_model_development"})
    )
