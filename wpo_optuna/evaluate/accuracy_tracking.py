"""A metric over time in MLflow: a run with the curves, their figure and their tables."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from wpo_optuna.evaluate.accuracy import MetricOverTime
from wpo_optuna.study.environment import versions
from wpo_optuna.track import store
from wpo_optuna.track.destination import Destination
from wpo_optuna.track.follower import TrackingWarning


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
    try:
        client = store.connect(uri)
        run_id = client.create_run(
            store.find_or_create_experiment(client, experiment_name),
            start_time=round(1000 * started_s),
            run_name=run_name,
            tags={
                store.KIND_TAG: "accuracy",
                **{f"version.{name}": version for name, version in versions().items()},
                **tags,
            },
        ).info.run_id
        texts = {name: str(value)[: store.MAX_PARAM_LENGTH] for name, value in parameters.items()}
        store.log_params(client, run_id, texts)
        now_ms = round(1000 * time.time())
        for step, values in enumerate(_metrics(result)):
            store.log_metrics(client, run_id, store.metrics_of(values, now_ms, step))
        for path in files:
            client.log_artifact(run_id, str(path))
        client.set_terminated(run_id)
        return str(run_id)
    except Exception as error:  # MLflow's storages raise what they like
        warnings.warn(
            f"MLflow did not take the results, which are in {files[0].parent} "
            f"({store.reason_of(error, uri)}).",
            TrackingWarning,
            stacklevel=2,
        )
        return None


def _metrics(result: MetricOverTime) -> Iterator[dict[str, float]]:
    """The metrics of each time."""
    # MLflow takes letters, digits and a few signs; names of functions may be <lambda>.
    metric = re.sub(r"[^\w .-]", "_", result.metric)
    for step, t in enumerate(result.t_steps):
        values = {"t_s": t} if result.ideal is None else {"t_s": t, f"ideal_{metric}": result.ideal}
        for name in result.curves:
            values[f"{name}_{metric}"] = float(result.mean(name)[step])
            if result.repeats > 1:
                values[f"{name}_{metric}_std"] = float(result.spread(name)[step])
        yield values
