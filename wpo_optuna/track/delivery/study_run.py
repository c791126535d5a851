"""A study's run in MLflow: whatever is there already is not written again.

MLflow has no transaction over several runs, and a request that failed may have been carried out.
So nothing is remembered across a failure: :meth:`StudyRun.open` asks MLflow what it has, and what
is delivered afterwards is the difference. Steps, times and values of metrics come from the trials
alone, so that a metric written twice is one and the same row of MLflow's database.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wpo_optuna.track.delivery import limits
from wpo_optuna.track.delivery.best import BestSoFar
from wpo_optuna.track.delivery.messages import (
    Artifact,
    Extra,
    Metrics,
    StudyDescription,
    Tags,
    Text,
    TrialRecord,
)
from wpo_optuna.track.delivery.table import TrialTable
from wpo_optuna.track.delivery.trial_runs import PARENT_TAG, TrialRuns, gets_a_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

STUDY_TAG = "wpo.study_id"
KIND_TAG = "wpo.kind"
STUDIES_FILTER = f"tags.`{KIND_TAG}` = 'study'"
_CREATED_TAG = "wpo.created_ns"
_TABLE_TAG = "wpo.table_sha256"

TABLE_FILE = "trials.json"
PARQUET_FILE = "trials.parquet"
BEST_TRIAL_FILE = "best_trial.json"
PARAMETERS_FILE = "parameters.json"

# The UI's own choice of colours may give two studies nearly the same.
_COLOURS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f",
    "#bcbd22", "#17becf",
)  # fmt: skip
_EXPERIMENT_NOTE = (
    "Weight programming studies. The runs of their trials fold away under each study; to list "
    f"studies alone, search for ``{STUDIES_FILTER}``. The chart view lays the studies' "
    "series over each other; `best_tnmse` shows which one got further."
)

_SERIES = ("tnmse", "loss", "baseline", "best_tnmse")
_TRIALS_PER_BATCH = limits.MAX_METRICS_PER_BATCH // len(_SERIES)


class StudyRun:
    """The run of a study in MLflow.

    Attributes:
        description: what the run is about.
        experiment_id: its experiment.
        run_id: the run.
        in_series: numbers of the trials that the run's series have.
        is_new: whether it was created just now.

    Args:
        client: MLflow.
        description: what the run is about.
        table: the trials known so far; grows with those delivered.
        best: likewise.
    """

    def __init__(
        self,
        client: MlflowClient,
        description: StudyDescription,
        table: TrialTable,
        best: BestSoFar,
    ) -> None:
        self.description = description
        self.experiment_id = ""
        self.run_id = ""
        self.in_series: set[int] = set()
        self.is_new = False
        self._client = client
        self._table = table
        self._best = best
        self._tags: dict[str, str] = {}
        self._status = "RUNNING"

    def open(self) -> None:
        """Finds the run, or creates it, and reads what MLflow has of the study.

        What several processes created at the same time is reduced to one of each.
        """
        self.experiment_id = self._find_or_create_experiment()
        run = self._find_or_create_run()
        self.run_id = run.info.run_id
        self._status = run.info.status
        self._tags = dict(run.data.tags)
        self._place_under_parent()
        for metric in self._client.get_metric_history(self.run_id, "tnmse"):
            self.in_series.add(metric.step)
            self._best.add(metric.step, metric.value)
        self._trial_runs = TrialRuns(
            self._client, self.experiment_id, self.run_id, self.description.name
        )
        self._trial_runs.read()
        if self.description.is_live and self._status != "RUNNING":
            self._client.update_run(self.run_id, status="RUNNING")
            self._status = "RUNNING"
        self._describe(run.data.params)
        self._log_lacking_metrics(run.data.metrics)

    def regard(self, records: Sequence[TrialRecord]) -> None:
        """Counts trials for the best so far and the table, and writes nothing."""
        self._table.add(records)
        for record in records:
            if record.is_complete:
                self._best.add(record.number, record.tnmse)

    def deliver(self, records: Sequence[TrialRecord], progress: Callable[[int], None]) -> None:
        """Writes what MLflow lacks of some trials.

        Args:
            records: the trials, numbers ascending.
            progress: told, again and again, how many more are done.
        """
        self.regard(records)
        for batch in limits.batches(records, _TRIALS_PER_BATCH):
            self._deliver_series(batch)
            n_done = 0
            for record in batch:
                n_done += 1
                if self._gets_a_run(record):
                    self._trial_runs.deliver(record)
                    progress(n_done)
                    n_done = 0
            progress(n_done)

    def deliver_extra(self, extra: Extra) -> None:
        """Writes an extra; twice is as good as once."""
        if isinstance(extra, Artifact):
            self._client.log_artifact(self.run_id, extra.path, extra.artifact_path)
        elif isinstance(extra, Text):
            self._client.log_text(self.run_id, extra.text, extra.artifact_file)
        elif isinstance(extra, Metrics):
            metrics = limits.metrics(dict(extra.values), extra.timestamp_ms, extra.step)
            for batch in limits.batches(metrics, limits.MAX_METRICS_PER_BATCH):
                self._client.log_batch(self.run_id, metrics=batch)
        elif isinstance(extra, Tags):
            self._set_tags(dict(extra.values))

    def finish(self, status: str, keep_end: bool) -> None:
        """Writes the table and the best trial, and ends the run at the last trial's end.

        Args:
            status: ``FINISHED``, ``KILLED`` or ``FAILED``.
            keep_end: leave a run that has ended as it ended.
        """
        with tempfile.TemporaryDirectory(prefix="wpo_table_") as directory:
            self._log_table(Path(directory))
        self.end(self._status if keep_end and self._status != "RUNNING" else status)

    def end(self, status: str) -> None:
        """Ends the run at the last trial's end, and writes nothing else."""
        self._client.set_terminated(self.run_id, status, self._table.last_finished_ms)
        self._status = status

    def delete(self, run_id: str) -> None:
        """Deletes a run of the experiment, and the trials' runs under it."""
        for child in self._search(f"tags.`{PARENT_TAG}` = '{run_id}'"):
            if child.data.tags.get(KIND_TAG) != "study":
                self._client.delete_run(child.info.run_id)
        self._client.delete_run(run_id)

    def _gets_a_run(self, record: TrialRecord) -> bool:
        description = self.description
        return gets_a_run(record, description.trial_runs, description.all_runs_below, self._best)

    def _find_or_create_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self.description.experiment_name
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            # The kind spares the UI's user the question which of its views is the right one.
            tags = {
                "mlflow.experimentKind": "custom_model_development",
                "mlflow.note.content": _EXPERIMENT_NOTE,
            }
            return self._client.create_experiment(name, tags=tags)
        if experiment.lifecycle_stage != "active":
            raise MlflowException(
                f"experiment '{name}' is deleted; restore it with 'mlflow experiments restore "
                f"--experiment-id {experiment.experiment_id}' or choose another name"
            )
        return experiment.experiment_id

    def _find_or_create_run(self) -> Run:
        runs = self._runs_of(self.description.identity)
        if not runs:
            n_studies = len(self._search(STUDIES_FILTER))
            self._client.create_run(
                self.experiment_id,
                run_name=self.description.name,
                start_time=self.description.started_ms,
                tags={
                    STUDY_TAG: self.description.identity,
                    KIND_TAG: "study",
                    _CREATED_TAG: str(time.time_ns()),
                    "mlflow.runColor": _COLOURS[n_studies % len(_COLOURS)],
                },
            )
            runs = self._runs_of(self.description.identity)
            self.is_new = True
        for superfluous in runs[1:]:
            self.delete(superfluous.info.run_id)
        return runs[0]

    def _place_under_parent(self) -> None:
        identity = self.description.parent_identity
        # A parent that MLflow lacks now, as after the loss of its store, may be there next time.
        parents = self._runs_of(identity) if identity is not None else []
        if parents:
            self._set_tags({PARENT_TAG: parents[0].info.run_id})

    def _runs_of(self, identity: str) -> list[Run]:
        """A study's runs, first the one that every process agrees on."""
        runs = self._search(f"tags.`{STUDY_TAG}` = '{identity}' and {STUDIES_FILTER}")
        return sorted(
            runs, key=lambda run: (int(run.data.tags.get(_CREATED_TAG, 0)), run.info.run_id)
        )

    def _search(self, filter_string: str) -> list[Run]:
        return limits.search_runs(self._client, self.experiment_id, filter_string)

    def _describe(self, present: dict[str, str]) -> None:
        """Writes the parameters and tags that the run lacks."""
        from mlflow.entities import Param

        lacking = []
        tags = dict(self.description.tags)
        for name, value in self.description.parameters:
            if len(value) > limits.MAX_PARAM_LENGTH:
                value = f"whole in the artifact {PARAMETERS_FILE} ({len(value)} characters)"
            if name not in present:
                lacking.append(Param(name, value))
            elif present[name] != value:
                # MLflow's parameters cannot be changed; the first session's stay.
                tags[f"wpo.since_resumed.{name}"] = value
        if lacking:
            parameters = dict(self.description.parameters)
            self._client.log_dict(self.run_id, parameters, PARAMETERS_FILE)
        for batch in limits.batches(lacking, limits.MAX_PARAMS_PER_BATCH):
            self._client.log_batch(self.run_id, params=batch)
        self._set_tags(tags)

    def _log_lacking_metrics(self, present: Mapping[str, float]) -> None:
        """Logs what was measured before the first trial, at step 0, where the UI shows bars."""
        description = self.description
        lacking = {name: value for name, value in description.metrics if name not in present}
        if lacking:
            metrics = limits.metrics(lacking, description.started_ms, step=0)
            self._client.log_batch(self.run_id, metrics=metrics)

    def _set_tags(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        changed = {name: value for name, value in tags.items() if self._tags.get(name) != value}
        for batch in limits.batches(list(changed.items()), limits.MAX_PARAMS_PER_BATCH):
            self._client.log_batch(self.run_id, tags=[RunTag(*tag) for tag in batch])
        self._tags |= changed

    def _deliver_series(self, records: Sequence[TrialRecord]) -> None:
        lacking = [
            record
            for record in records
            if record.is_complete and record.number not in self.in_series
        ]
        if lacking:
            points = [self._point(record) for record in lacking]
            self._client.log_batch(self.run_id, metrics=[m for point in points for m in point])
            self.in_series.update(record.number for record in lacking)

    def _point(self, record: TrialRecord) -> list[Metric]:
        best = self._best.before(record.number + 1)
        values = (record.tnmse, record.loss, record.baseline, best)
        return limits.metrics(
            dict(zip(_SERIES, values, strict=True)), record.finished_ms, record.number
        )

    def _log_table(self, directory: Path) -> None:
        """Writes the table of all trials, and the best of them, unless MLflow has just that."""
        parquet = directory / PARQUET_FILE
        shown = self._table.write(parquet, directory / TABLE_FILE)
        contents = _digest(shown)
        if self._tags.get(_TABLE_TAG) == contents:
            return
        for file in (parquet, *shown):
            self._client.log_artifact(self.run_id, str(file))
        self._log_best_trial()
        listed = json.dumps([{"path": file.name, "type": "table"} for file in shown])
        self._set_tags({"mlflow.loggedArtifacts": listed, _TABLE_TAG: contents})

    def _log_best_trial(self) -> None:
        best = self._table.best
        if best is None:
            return
        document = {
            "trial": best.number,
            "tnmse": best.tnmse,
            "baseline": best.baseline,
            "improvement_percent": best.improvement,
            "loss": best.loss,
            "f_lst": best.f_lst,
            "g_lst_us": best.g_lst,
            "k_w": best.k_w,
            "parameters": dict(zip(best.x_names, best.x, strict=True)),
        }
        self._client.log_dict(self.run_id, document, BEST_TRIAL_FILE)
        # At step 0 the UI compares studies by bars.
        improvement = limits.metrics({"improvement": best.improvement}, best.finished_ms, step=0)
        self._client.log_batch(self.run_id, metrics=improvement)
        note = (
            f"Best trial {best.number}: TNMSE {best.tnmse:.6g}, {best.improvement:.2f} % below "
            f"the baseline's {best.baseline:.6g}.\n\n"
            f"All trials: `{TABLE_FILE}`, to be looked at under Artifacts, and `{PARQUET_FILE}` at "
            "full precision."
        )
        self._set_tags({"mlflow.note.content": note})


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()[:16]
