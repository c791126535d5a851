"""The runs of single trials under a study's run in MLflow."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wpo_optuna.track.delivery import limits
from wpo_optuna.track.delivery.best import BestSoFar
from wpo_optuna.track.delivery.messages import TrialRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

PARENT_TAG = "mlflow.parentRunId"
TRIAL_TAG = "wpo.trial_number"
STATE_TAG = "wpo.state"
PHASE_TAG = "wpo.phase"
LOSS_TAG = "wpo.loss"
G_LST_FILE = "g_lst.json"

_ENDED = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


def gets_a_run(record: TrialRecord, trial_runs: str, all_runs_below: int, best: BestSoFar) -> bool:
    """Whether a trial gets a run of its own.

    That does not depend on how far the study has got: a lost store is rebuilt as it was.

    Args:
        record: the trial.
        trial_runs: ``all``, ``best``, ``none`` or ``auto``.
        all_runs_below: where ``auto`` goes over from ``all`` to ``best``.
        best: knows the trials before this one.
    """
    if trial_runs == "auto":
        trial_runs = "all" if record.number < all_runs_below else "best"
    if trial_runs == "best":
        return record.is_complete and record.tnmse < best.before(record.number)
    return trial_runs == "all"


@dataclass
class _Run:
    run_id: str
    has_ended: bool


class TrialRuns:
    """Writes a trial's run in three requests, the fewest that MLflow's interface allows.

    It has none that writes several runs at once. The run is complete when it has ended, which is
    the last of the three: one found still running was interrupted, and is completed.

    Args:
        client: MLflow.
        experiment_id: experiment of the study's run.
        parent_run_id: the study's run.
        study_name: goes into the runs' names.
    """

    def __init__(
        self, client: MlflowClient, experiment_id: str, parent_run_id: str, study_name: str
    ) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._parent_run_id = parent_run_id
        self._study_name = study_name
        self._runs: dict[int, _Run] = {}

    def read(self) -> None:
        """Asks MLflow which trials have a run; a trial's second one is deleted.

        A second one appears if a request that seemed to have failed was carried out after all.
        """
        runs = limits.search_runs(
            self._client, self._experiment_id, f"tags.`{PARENT_TAG}` = '{self._parent_run_id}'"
        )
        self._runs = {}
        for run in sorted(runs, key=lambda run: (run.info.status == "RUNNING", run.info.run_id)):
            number = run.data.tags.get(TRIAL_TAG)
            if number is None:
                continue  # somebody else put it there
            if int(number) in self._runs:
                self._client.delete_run(run.info.run_id)
            else:
                self._runs[int(number)] = _Run(run.info.run_id, run.info.status != "RUNNING")

    def deliver(self, record: TrialRecord) -> None:
        """Writes a trial's run, or what is missing of it."""
        run = self._runs.get(record.number)
        if run is not None and run.has_ended:
            return
        if run is None:
            run = _Run(self._create(record), has_ended=False)
            self._runs[record.number] = run
        self._client.log_batch(
            run.run_id,
            metrics=_metrics(record),
            params=self._parameters(record, run.run_id),
        )
        self._client.set_terminated(run.run_id, _ENDED[record.state], record.finished_ms)
        run.has_ended = True

    def _create(self, record: TrialRecord) -> str:
        tags = {PARENT_TAG: self._parent_run_id, TRIAL_TAG: str(record.number)}
        if not record.is_complete:
            tags[STATE_TAG] = record.state
        elif not math.isfinite(record.loss):
            tags[LOSS_TAG] = str(record.loss)
        if record.phase is not None:
            tags[PHASE_TAG] = record.phase
        run = self._client.create_run(
            self._experiment_id,
            run_name=f"{self._study_name} trial {record.number}",
            start_time=record.started_ms,
            tags=tags,
        )
        return run.info.run_id

    def _parameters(self, record: TrialRecord, run_id: str) -> list[Param]:
        from mlflow.entities import Param

        if not record.g_lst:
            return []
        g_lst = json.dumps(record.g_lst)
        if len(g_lst) > limits.MAX_PARAM_LENGTH:
            self._client.log_text(run_id, g_lst, G_LST_FILE)
            g_lst = f"whole in the artifact {G_LST_FILE} ({len(g_lst)} characters)"
        return [
            Param("f_lst", json.dumps(record.f_lst)),
            Param("g_lst", g_lst),
            Param("k_w", repr(record.k_w)),
        ]


def _metrics(record: TrialRecord) -> list[Metric]:
    if not record.is_complete:
        return []
    values = {
        "tnmse": record.tnmse,
        "loss": record.loss,
        "baseline": record.baseline,
        "improvement": record.improvement,
    }
    return limits.metrics(values, record.finished_ms, record.number)
