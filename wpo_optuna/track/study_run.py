"""A study's run in MLflow, with those of its trials: what is there already is not written again.

MLflow's interface has no transaction over several runs, and a request that failed may have been
carried out. So nothing is remembered across a failure: :meth:`StudyRun.find` and
:meth:`StudyRun.read` ask MLflow what it has. Steps, times and values of the series come from the
trials alone, so that a metric written twice is one and the same row of MLflow's database.

A trial's run takes three requests, 10 ms of computing together; a thousand trials would take longer
to record than to search. Where MLflow's store is an SQLite file, the runs of a batch of trials are
therefore inserted into its tables in one transaction, as MLflow itself would have written them.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, insert
from sqlalchemy.pool import NullPool

from wpo_optuna.study.attributes import FAILED, FINGERPRINT, FINISHED, KILLED, RUNNING
from wpo_optuna.track.store import (
    KIND_TAG,
    MAX_PARAM_LENGTH,
    STUDIES_FILTER,
    log_metrics,
    log_params,
    metrics_of,
    search_runs,
    set_tags,
)
from wpo_optuna.track.trials import (
    is_complete,
    milliseconds,
    numbers_of,
    numbers_of_strategy,
    rank,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run, RunInfo
    from optuna.trial import FrozenTrial

PARAMETERS_FILE, PARQUET_FILE = "parameters.json", "trials.parquet"
PARENT_TAG = "mlflow.parentRunId"

_STUDY_TAG = "wpo.study_id"
_NAME_TAG = "wpo.study"
_TRIAL_TAG = "wpo.trial_number"
_WRITER_TAG = "wpo.writer"
_SERIES = "trial_tnmse"
_ENDED = {"COMPLETE": FINISHED, "PRUNED": KILLED, "FAIL": FAILED}


class StudyRun:
    """The run of a study, as MLflow had it when asked.

    Args:
        client: MLflow.
        run: the run.
        name: name of the study.
    """

    def __init__(self, client: MlflowClient, run: Run, name: str) -> None:
        self.run_id = str(run.info.run_id)
        self.experiment_id = str(run.info.experiment_id)
        self._client = client
        self._run = run
        self._name = name
        self._steps: set[int] = set()
        # The ids of the trials' runs by number, and which of them have ended.
        self._trial_runs: dict[int, str] = {}
        self._ended: set[int] = set()

    @classmethod
    def find(
        cls, client: MlflowClient, experiment_id: str, identity: str, name: str, started_ms: int
    ) -> StudyRun:
        """The run of the study with this identity, created if there is none.

        What several deliverers created at the same time is reduced to one, for each of them the
        same.
        """
        runs = _runs_of(client, experiment_id, identity)
        if not runs:
            tags = {_STUDY_TAG: identity, KIND_TAG: "study", _NAME_TAG: name}
            client.create_run(experiment_id, run_name=name, start_time=started_ms, tags=tags)
            runs = _runs_of(client, experiment_id, identity)
        for superfluous in runs[1:]:
            for run in cls(client, superfluous, name)._runs_of_trials():
                client.delete_run(run.info.run_id)
            client.delete_run(superfluous.info.run_id)
        return cls(client, runs[0], name)

    def read(self, writer: str) -> None:
        """Asks MLflow what it has of the study; of a trial's two runs one is deleted.

        A second one appears if a request that seemed to have failed was carried out after all, or
        if two deliverers ask a server for the same trial's at the same time.

        Args:
            writer: who writes from now on, until :meth:`is_written_by` says otherwise.
        """
        self.set_tags({_WRITER_TAG: writer})
        self._steps = {m.step for m in self._client.get_metric_history(self.run_id, _SERIES)}
        for run in self._runs_of_trials():
            number = int(run.data.tags[_TRIAL_TAG])
            if number in self._trial_runs:
                self._client.delete_run(run.info.run_id)
                continue
            self._trial_runs[number] = run.info.run_id
            if run.info.status != RUNNING:
                self._ended.add(number)

    def is_written_by(self, writer: str) -> bool:
        """Whether the run is still there, and nobody else has begun to write it since."""
        self._run = self._client.get_run(self.run_id)
        is_there = self._run.info.lifecycle_stage == "active"
        return is_there and self._run.data.tags.get(_WRITER_TAG) == writer

    def describe(self, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Writes the parameters and tags that the run lacks.

        MLflow's parameters cannot be changed: the first session's stay.
        """
        present = self._run.data.params
        whole = f"whole in the artifact {PARAMETERS_FILE}"
        params = {name: _short(value, whole) for name, value in params.items()}
        lacking = {name: value for name, value in params.items() if name not in present}
        log_params(self._client, self.run_id, lacking)
        self.set_tags(tags)

    def place_under(self, parent: str) -> None:
        """Puts the run under that of another study, if MLflow has one of this identity."""
        for run in _runs_of(self._client, self.experiment_id, parent)[:1]:
            self.set_tags({PARENT_TAG: run.info.run_id})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets the tags that differ."""
        present = self._run.data.tags
        changed = {name: value for name, value in tags.items() if present.get(name) != value}
        set_tags(self._client, self.run_id, changed)

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Logs values about the whole study that differ, at step 0, where the UI shows bars."""
        present = self._run.data.metrics
        metrics = metrics_of(values, int(time.time() * 1000))
        # As text, so that NaN equals itself.
        changed = [m for m in metrics if str(present.get(m.key)) != str(m.value)]
        log_metrics(self._client, self.run_id, changed)

    def upload(self, directory: Path) -> None:
        """Keeps the files of a directory as the run's artifacts."""
        self._client.log_artifacts(self.run_id, str(directory))

    def set_status(self, status: str, ended_ms: int) -> None:
        """Says that the study is being run, or how and when it ended."""
        if status != RUNNING:
            self._client.set_terminated(self.run_id, status, ended_ms)
        elif self._run.info.status != RUNNING:
            self._client.update_run(self.run_id, status=RUNNING)

    def deliver_series(self, points: Iterable[tuple[FrozenTrial, float]]) -> None:
        """Logs what the series lack of some trials, each given with the best before it."""
        metrics: list[Metric] = []
        for trial, best in points:
            if is_complete(trial) and trial.number not in self._steps:
                numbers = numbers_of(trial)
                values = {
                    _SERIES: numbers["tnmse"],
                    "trial_loss": numbers["loss"],
                    "best_tnmse": min(best, rank(trial)),
                }
                ended_ms = milliseconds(trial.datetime_complete)
                metrics += metrics_of(values, ended_ms, trial.number)
        log_metrics(self._client, self.run_id, metrics)

    def deliver_trials(self, trials: Sequence[FrozenTrial], database: str | None) -> None:
        """Writes the runs of some trials, or what is missing of them.

        Args:
            trials: the trials.
            database: URI of MLflow's SQLite file, where new runs are inserted at once; None if
                its store is another one.
        """
        new = []
        for trial in trials:
            if trial.number in self._ended:
                continue
            run = _TrialRun(trial, self._name, self._run.info)
            if database is None or trial.number in self._trial_runs:
                run.write(self._client, self._trial_runs.get(trial.number))
            else:
                new.append(run)
        if database is not None and new:
            _insert(database, new)

    def _runs_of_trials(self) -> list[Run]:
        """Studies of which this is the parent, and others' runs under it, are none."""
        under_this = f"tags.`{PARENT_TAG}` = '{self.run_id}'"
        runs = search_runs(self._client, self.experiment_id, under_this)
        return [run for run in runs if _TRIAL_TAG in run.data.tags]


def tags_of_origin(
    client: MlflowClient, experiment_id: str, provenance: Mapping[str, Any]
) -> dict[str, str]:
    """Tags that put a run under that of the study that made a strategy, if MLflow has one.

    Of several studies of the same name and problem it is the latest.

    Args:
        client: MLflow.
        experiment_id: where the study's run is looked for.
        provenance: the strategy's.
    """
    name, problem = provenance.get("study_name"), provenance.get("problem_fingerprint")
    runs = [
        run
        for run in search_runs(client, experiment_id, STUDIES_FILTER)
        if (run.data.tags.get(_NAME_TAG), run.data.params.get(FINGERPRINT)) == (name, problem)
    ]
    if name is None or not runs:
        return {}
    latest = max(runs, key=lambda run: int(run.info.start_time))
    return {_NAME_TAG: name, PARENT_TAG: str(latest.info.run_id)}


def _runs_of(client: MlflowClient, experiment_id: str, identity: str) -> list[Run]:
    """A study's runs, first the one that every process agrees on."""
    wanted = f"tags.`{_STUDY_TAG}` = '{identity}' and {STUDIES_FILTER}"
    return search_runs(client, experiment_id, wanted)


class _TrialRun:
    """What the run of a finished trial says.

    Args:
        trial: the trial.
        study_name: its study.
        parent: the study's run.
    """

    def __init__(self, trial: FrozenTrial, study_name: str, parent: RunInfo) -> None:
        self.name = f"{study_name} trial {trial.number}"
        self.started_ms = milliseconds(trial.datetime_start or trial.datetime_complete)
        self.ended_ms = milliseconds(trial.datetime_complete)
        self.status = _ENDED[trial.state.name]
        self.tags = {
            PARENT_TAG: parent.run_id,
            KIND_TAG: "trial",
            _NAME_TAG: study_name,
            _TRIAL_TAG: str(trial.number),
        }
        self.params: dict[str, str] = {}
        self.metrics: list[Metric] = []
        self._parent = parent
        if "phase" in trial.user_attrs:
            self.tags["wpo.phase"] = trial.user_attrs["phase"]
        if not is_complete(trial):
            self.tags["wpo.state"] = trial.state.name
            return
        numbers = numbers_of(trial)
        if not math.isfinite(numbers["loss"]):
            self.tags["wpo.loss"] = str(numbers["loss"])
        told = trial.user_attrs
        numbers |= numbers_of_strategy(told.get("f_lst", ()), told.get("g_lst", ()))
        self.metrics = metrics_of(numbers, self.ended_ms, trial.number)
        whole = f"whole in {PARQUET_FILE}, an artifact of the study's run"
        for name in ("f_lst", "g_lst", "k_w"):
            if name in told:
                self.params[name] = _short(json.dumps(told[name]), whole)

    def write(self, client: MlflowClient, run_id: str | None) -> None:
        """Writes it in three requests, the fewest that MLflow's interface allows.

        The last one ends the run: one that is still running was interrupted, and is completed.

        Args:
            client: MLflow.
            run_id: the run if it is there.
        """
        from mlflow.entities import Param

        if run_id is None:
            run_id = client.create_run(
                self._parent.experiment_id,
                run_name=self.name,
                start_time=self.started_ms,
                tags=self.tags,
            ).info.run_id
        client.log_batch(run_id, self.metrics, [Param(*item) for item in self.params.items()])
        client.set_terminated(run_id, self.status, self.ended_ms)

    def rows(self) -> list[tuple[Any, list[dict[str, Any]]]]:
        """It as rows of MLflow's tables, each given with the table's model.

        Its id follows from the parent's and the trial's number: what another deliverer inserts at
        the same time is there once.
        """
        from mlflow.store.tracking.dbmodels import models

        parent = self._parent
        run_id = uuid.uuid5(uuid.UUID(parent.run_id), self.tags[_TRIAL_TAG]).hex
        row = {
            "run_uuid": run_id,
            "name": self.name,
            "experiment_id": int(parent.experiment_id),
            "artifact_uri": parent.artifact_uri.replace(parent.run_id, run_id),
            "user_id": "unknown",
            "status": self.status,
            "start_time": self.started_ms,
            "end_time": self.ended_ms,
        }
        # MLflow's own client sets this tag, too.
        tags = {**self.tags, "mlflow.runName": self.name}
        metrics = [
            {
                "run_uuid": run_id,
                "key": metric.key,
                # As MLflow keeps what is no number.
                "value": 0.0 if math.isnan(metric.value) else metric.value,
                "is_nan": math.isnan(metric.value),
                "timestamp": metric.timestamp,
                "step": metric.step,
            }
            for metric in self.metrics
        ]
        return [
            (models.SqlRun, [row]),
            (models.SqlTag, _pairs(run_id, tags)),
            (models.SqlParam, _pairs(run_id, self.params)),
            (models.SqlMetric, metrics),
            (models.SqlLatestMetric, metrics),
        ]


def _pairs(run_id: str, values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"run_uuid": run_id, "key": key, "value": value} for key, value in values.items()]


def _short(value: str, otherwise: str) -> str:
    return value if len(value) <= MAX_PARAM_LENGTH else f"{otherwise} ({len(value)} characters)"


def _insert(uri: str, runs: Sequence[_TrialRun]) -> None:
    """Inserts runs into MLflow's SQLite file; rows that are there stay as they are."""
    of_tables = zip(*(run.rows() for run in runs), strict=True)
    with create_engine(uri, poolclass=NullPool).begin() as connection:
        for of_table in of_tables:
            rows = [row for _, of_run in of_table for row in of_run]
            if rows:
                new = insert(of_table[0][0].__table__).prefix_with("OR IGNORE")
                connection.execute(new, rows)
