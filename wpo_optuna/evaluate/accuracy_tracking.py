"""A metric over time in MLflow: a run with the curves, their figure and their tables."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from wpo_optuna.evaluate.accuracy import MetricOverTime
from wpo_optuna.study.environment import versions
from wpo_optuna.track import store
from wpo_optuna.track.destination import Destination
from wpo_optuna.track.follower import TrackingWarning

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric


def record_or_warn(
    result: MetricOverTime,
    files: Sequence[Path],
    *,
    tracking_uri: str | None,
    experiment_name: str,
    run_name: str,
    parameters: Mapping[str, object],
    started_s: float,
    tags: Mapping[str, str] = MappingProxyType({}),
) -> str | None:
    """Makes a run of a comparison, unless MLflow is away: then a warning says so.

    The run has the series ``baseline_METRIC``, ``optimised_METRIC`` (means over the repeats), each
    with ``_std``, and ``ideal_METRIC``; the step is the index of the time, which the series
    ``t_s`` holds in s.

    Args:
        result: the curves.
        files: kept as the run's artifacts; their directory is named in the warning.
        tracking_uri: MLflow's tracking URI; None takes MLflow's default.
        experiment_name: experiment of the run, made if there is none.
        run_name: name of the run.
        parameters: parameters of the run.
        started_s: when the comparison began, in s since the epoch.
        tags: further tags of the run, beside its kind and the versions of packages.

    Returns:
        the run's id; None if MLflow did not take it.
    """
    uri = Destination(tracking_uri, experiment_name).uri
    for name, value in store.REQUEST_SETTINGS.items():
        os.environ.setdefault(name, value)
    version_tags = {f"version.{name}": version for name, version in versions().items()}
    try:
        client = store.connect(uri)
        run = client.create_run(
            store.find_or_create_experiment(client, experiment_name),
            start_time=round(1000 * started_s),
            run_name=run_name,
            tags={store.KIND_TAG: "accuracy", **version_tags, **tags},
        )
        run_id, status = str(run.info.run_id), "FAILED"
        try:
            _log(client, run_id, result, files, parameters)
            status = "FINISHED"
        finally:
            client.set_terminated(run_id, status)
        return run_id
    except Exception as error:  # MLflow's storages raise what they like
        warnings.warn(
            f"MLflow did not take the results, which are in {files[0].parent} "
            f"({store.reason_of(error, uri)}).",
            TrackingWarning,
            stacklevel=2,
        )
        return None


def _log(
    client: MlflowClient,
    run_id: str,
    result: MetricOverTime,
    files: Sequence[Path],
    parameters: Mapping[str, object],
) -> None:
    texts = {name: str(value)[: store.MAX_PARAM_LENGTH] for name, value in parameters.items()}
    store.log_params(client, run_id, texts)
    store.log_metrics(client, run_id, _metrics(result))
    for path in files:
        client.log_artifact(run_id, str(path))


def _metrics(result: MetricOverTime) -> list[Metric]:
    # MLflow takes letters, digits and a few signs; names of functions may be <lambda>.
    metric = re.sub(r"[^\w .-]", "_", result.metric)
    series = {"t_s": np.asarray(result.t_steps)}
    if result.ideal is not None:
        series[f"ideal_{metric}"] = np.full(len(result.t_steps), result.ideal)
    for name in result.curves:
        series[f"{name}_{metric}"] = result.mean(name)
        if result.repeats > 1:
            series[f"{name}_{metric}_std"] = result.spread(name)
    now_ms = round(1000 * time.time())
    return [
        entry
        for step in range(len(result.t_steps))
        for entry in store.metrics_of(
            {name: float(values[step]) for name, values in series.items()}, now_ms, step
        )
    ]
