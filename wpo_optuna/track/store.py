"""MLflow's store: opened without waiting for nothing, and written within its limits."""

from __future__ import annotations

import hashlib
import math
import os
import socket
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from sqlalchemy import create_engine, inspect
from sqlalchemy.pool import NullPool

from wpo_optuna.storage import masked_url
from wpo_optuna.track.destination import DATABASES, file_of, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

KIND_TAG = "wpo.kind"
STUDIES_FILTER = f"tags.`{KIND_TAG}` = 'study'"
# In MLflow's UI everything but trials: a study unfolds to the accuracies measured with it.
SHOWN_FILTER = f"tags.`{KIND_TAG}` != 'trial'"
MAX_PARAM_LENGTH = 6000
_METRICS_PER_REQUEST = 1000

# MLflow's client would repeat a request for minutes in silence. Here each is made once; then what
# MLflow has is asked again before anything is repeated.
REQUEST_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

_ITEMS_PER_REQUEST = 100
_POLL_S = 0.02
_RUNS_PER_PAGE = 1000
_EXPERIMENT_NOTE = (
    "Weight programming studies: see *Views* (top right), under *Model training* (top left). The "
    f"runs of trials fold away under each study; to leave them out, search for ``{SHOWN_FILTER}``."
)
# What the messages of MLflow's exceptions contain, and what it means.
_REQUEST_FAILURES = {
    "Connection refused": "cannot be reached: connection refused",
    "timed out": "does not answer in time",
    "Max retries exceeded": "cannot be reached",
}
_MOST_CHARACTERS_OF_A_REASON = 300

_Item = TypeVar("_Item")


def connect(tracking_uri: str) -> MlflowClient:
    """Opens a store; an SQLite database is created if there is none.

    Args:
        tracking_uri: MLflow's tracking URI.

    Raises:
        SQLAlchemyError: there is no such database, or it does not answer.
    """
    for name, value in REQUEST_SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    path = file_of(tracking_uri)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # MLflow keeps a connection for each URI, and a relative one means another file elsewhere.
        tracking_uri = tracking_uri.replace(tracking_uri.partition(":///")[2], str(path))
    if urlsplit(tracking_uri).scheme.partition("+")[0] in DATABASES:
        # MLflow would try for two minutes before it says that a database does not answer.
        inspect(create_engine(tracking_uri, poolclass=NullPool)).get_table_names()
    return MlflowClient(tracking_uri)


@contextmanager
def turn(name: str) -> Iterator[None]:
    """Lets the processes of this host's user that name the same thing go one after the other.

    Of a name without a file Linux frees itself when its process ends.
    """
    digest = hashlib.sha256(f"{os.getuid()} {name}".encode()).hexdigest()
    with socket.socket(socket.AF_UNIX) as taken:
        while True:
            try:
                taken.bind(f"\0wpo_optuna {digest}")
                break
            except OSError:
                time.sleep(_POLL_S)
        yield


def find_or_create_experiment(client: MlflowClient, name: str) -> str:
    """Id of the experiment of this name; MLflow takes no runs for one that was deleted."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    # The kind spares the UI's user the question which of its views is the right one.
    tags = {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": _EXPERIMENT_NOTE,
    }
    return str(client.create_experiment(name, tags=tags))


def search_runs(client: MlflowClient, experiment_id: str, filter_string: str) -> list[Run]:
    """All active runs of an experiment that a filter lets through, by id."""
    runs: list[Run] = []
    token = None
    while token is None or token:
        page = client.search_runs(
            [experiment_id], filter_string, max_results=_RUNS_PER_PAGE, page_token=token
        )
        runs += page
        token = page.token or ""
    return sorted(runs, key=lambda run: str(run.info.run_id))


def metrics_of(values: Mapping[str, float], timestamp_ms: int, step: int = 0) -> list[Metric]:
    """Metrics of one step; what is not finite becomes NaN.

    MLflow's databases hold no infinity: they put the largest number there is in its place, which
    leaves nothing to be seen of a chart.
    """
    from mlflow.entities import Metric

    return [
        Metric(name, value if math.isfinite(value) else math.nan, timestamp_ms, step)
        for name, value in values.items()
    ]


def log_metrics(client: MlflowClient, run_id: str, metrics: Sequence[Metric]) -> None:
    """Logs any number of metrics to a run; one that is there already is not there twice."""
    for batch in _batches(metrics, _METRICS_PER_REQUEST):
        client.log_batch(run_id, metrics=batch)


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    """Logs any number of parameters that the run has not got."""
    from mlflow.entities import Param

    for batch in _batches([Param(*item) for item in params.items()], _ITEMS_PER_REQUEST):
        client.log_batch(run_id, params=batch)


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Sets any number of tags."""
    from mlflow.entities import RunTag

    for batch in _batches([RunTag(*item) for item in tags.items()], _ITEMS_PER_REQUEST):
        client.log_batch(run_id, tags=batch)


def _batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def reason_of(error: BaseException, tracking_uri: str) -> str:
    """Why MLflow did not take something, as a phrase without passwords."""
    text = str(error) or type(error).__name__
    text = without_password(text.partition("[SQL: ")[0], tracking_uri)
    for sign, reason in _REQUEST_FAILURES.items():
        if sign in text:
            return f"{masked_url(tracking_uri)} {reason}"
    return textwrap.shorten(text, _MOST_CHARACTERS_OF_A_REASON, placeholder=" ...")
