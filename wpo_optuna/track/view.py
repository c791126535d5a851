"""What to open in MLflow: its pages, the saved view in which studies are compared, the way there.

A view that MLflow's UI saves is a tag of the experiment. Its form is undocumented; it is that of
the UI's own state, as version 3.17 writes it under "Views".
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from wpo_optuna.storage import word_for_shell
from wpo_optuna.study.environment import program_here
from wpo_optuna.track.destination import DEFAULT_URI
from wpo_optuna.track.store import KIND_TAG, SHOWN_FILTER
from wpo_optuna.track.study_run import PARENT_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

VIEW_NAME, VIEW_KEY = "Studies compared", "wpo"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"

_BARS = ("winner_tnmse", "improvement_percent", "search_time_s")
_COLUMNS = [
    *(f"metrics.`{name}`" for name in ("winner_tnmse", "scored_baseline_tnmse", *_BARS[1:])),
    "metrics.`n_trials`",
    *(f"params.`{name}`" for name in ("sampler", "problem.noise_model", "problem.f_lst")),
]
_SERVED_AT = "http://127.0.0.1:5000"  # by `mlflow ui`


def page_of_experiment(experiment_id: str) -> str:
    """Page of MLflow's UI where an experiment's studies are compared."""
    query = {"viewStateShareKey": VIEW_KEY, "compareRunsMode": "CHART"}
    return _page(experiment_id, "runs", query)


def page_of_trials(experiment_id: str, run_id: str) -> str:
    """Page of MLflow's UI with a study's trials, those of the lowest TNMSE first.

    Args:
        experiment_id: the experiment.
        run_id: the study's run.
    """
    of_study = f"tags.`{KIND_TAG}` = 'trial' and tags.`{PARENT_TAG}` = '{run_id}'"
    order = {"orderByKey": "metrics.`tnmse`", "orderByAsc": "true"}
    return _page(experiment_id, "runs", {"searchFilter": of_study, **order})


def page_of_run(experiment_id: str, run_id: str) -> str:
    """Page of MLflow's UI with one run."""
    return _page(experiment_id, f"runs/{run_id}", {})


def look_lines(uri: str, page: str, further: Mapping[str, str] | None = None) -> list[str]:
    """How to open pages of MLflow's UI: lines to be copied from a terminal, without passwords.

    Args:
        uri: MLflow's tracking URI.
        page: the page, from the server's address on.
        further: other pages, by what they show.
    """
    if uri.startswith(("http://", "https://")):
        address = urlsplit(uri)
        # The browser asks for a user and a password.
        server = f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path.rstrip('/')}"
        lines = ["To look at it, open:"]
    else:
        server, command = _SERVED_AT, f"{shlex.quote(program_here('mlflow'))} ui"
        if uri != DEFAULT_URI:  # where `mlflow ui` looks by itself
            command += f" --backend-store-uri {word_for_shell(uri, '--tracking-uri')}"
        lines = ["To look at it, run:", f"  {command}", "and open:"]
    lines.append(f"  {server}{page}")
    for shown, address_of_page in (further or {}).items():
        lines += [f"{shown}:", f"  {server}{address_of_page}"]
    return lines


def keep_view(client: MlflowClient, experiment_id: str) -> None:
    """Sees to it that the experiment has the view."""
    from mlflow.exceptions import MlflowException

    tags = client.get_experiment(experiment_id).tags
    if tags.get(VIEW_TAG) != _view():
        with suppress(MlflowException):  # whatever ails MLflow, a study's results matter more
            client.set_experiment_tag(experiment_id, VIEW_TAG, _view())


def _page(experiment_id: str, place: str, query: Mapping[str, str]) -> str:
    # MLflow's other workflow, which it may open by itself, is about traces of language models.
    query = {**query, "workflowType": "machine_learning"}
    return f"/#/experiments/{experiment_id}/{place}?{urlencode(query)}"


def _view() -> str:
    """The view as MLflow keeps it: always the same text."""
    # Metrics without a chart here get one from MLflow, in its own section "Model metrics".
    state = {
        "searchFilter": SHOWN_FILTER,
        "selectedColumns": _COLUMNS,
        "columnOrder": _COLUMNS,
        "columnWidths": dict.fromkeys(_COLUMNS, 150),
        "compareRunCharts": [
            _chart(
                "LINE", "best_tnmse", "search", scaleType="log", xAxisKey="step", lineSmoothness=0
            ),
            *(_chart("BAR", metric, "found") for metric in _BARS),
        ],
        "compareRunSections": [
            _section("search", "Best TNMSE over the trials", columns=1),
            _section("found", "Strategies found", columns=3, cardHeight=300),
            _section("others", "Model metrics", display=False),
        ],
        "isAccordionReordered": True,
        "runListHidden": True,
    }
    return json.dumps({"name": VIEW_NAME, "createdAt": 0, "state": json.dumps(state)})


def _chart(kind: str, metric: str, section: str, **further: Any) -> dict[str, Any]:
    chart = {"uuid": f"wpo-{metric}", "type": kind, "metricKey": metric, "metricSectionId": section}
    return chart | further


def _section(uuid: str, name: str, display: bool = True, **further: Any) -> dict[str, Any]:
    return {"uuid": uuid, "name": name, "display": display, "isReordered": False} | further
