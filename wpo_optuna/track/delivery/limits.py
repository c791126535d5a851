"""What MLflow takes in one request and in one value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

MAX_METRICS_PER_BATCH = 1000
MAX_PARAMS_PER_BATCH = 100
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 8000
_RUNS_PER_PAGE = 1000

_T = TypeVar("_T")


def batches(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """Consecutive pieces of at most ``size`` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def metrics(values: Mapping[str, float], timestamp_ms: int, step: int) -> list[Metric]:
    """Metrics of one step; what is not finite becomes NaN.

    MLflow's databases hold no infinity: they put the largest number there is in its place, which
    leaves nothing to be seen of a chart.
    """
    from mlflow.entities import Metric

    return [
        Metric(name, value if math.isfinite(value) else math.nan, timestamp_ms, step)
        for name, value in values.items()
    ]


def search_runs(client: MlflowClient, experiment_id: str, filter_string: str) -> list[Run]:
    """All active runs of an experiment that a filter lets through."""
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment_id],
            filter_string=filter_string,
            max_results=_RUNS_PER_PAGE,
            page_token=token,
        )
        runs += page
        token = page.token
        if not token:
            return runs
