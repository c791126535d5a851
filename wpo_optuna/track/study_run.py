"""A study's run in MLflow: what is there already is not written again.

MLflow's interface has no transaction over several runs, and a request that failed may have been
carried out. So nothing is remembered across a failure: :meth:`StudyRun.find` and
:meth:`StudyRun.read` ask MLflow what it has. Steps, times and values of the series come from the
trials alone, so that a metric written twice is one and the same row of MLflow's database.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wpo_optuna.track.bulk import TrialRun, insert_runs
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
from wpo_optuna.track.trials import is_complete, milliseconds, numbers_of, rank

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run
    from optuna.trial import FrozenTrial

PARAMETERS_FILE = "parameters.json"
PARENT_TAG = "mlflow.parentRunId"

_STUDY_TAG = "wpo.study_id"
_TRIAL_TAG = "wpo.trial_number"
_RUNNING = "RUNNING"
_ENDED = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


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
        self._name = name
        self._series: set[int] = set()
        self._trial_runs: dict[int, tuple[str, bool]] = {}
        self._status = str(run.info.status)
        self._tags = dict(run.data.tags)
        self._params = dict(run.data.params)
        self._metrics = dict(run.data.metrics)

    @classmethod
    def find(
        cls, client: MlflowClient, experiment_id: str, identity: str, name: str, started_ms: int
    ) -> StudyRun:
        """The run of the study with this identity, created if there is none.

        What several hosts created at the same time is reduced to one, for each of them the same.
        """
        runs = runs_of(client, experiment_id, identity)
        if not runs:
            tags = {_STUDY_TAG: identity, KIND_TAG: "study"}
            client.create_run(experiment_id, run_name=name, start_time=started_ms, tags=tags)
            runs = runs_of(client, experiment_id, identity)
        for superfluous in runs[1:]:
            cls(client, superfluous, name)._delete()
        return cls(client, runs[0], name)

    def read(self) -> None:
        """Asks MLflow what it has of the study; of a trial's two runs one is deleted.

        A second one appears if a request that seemed to have failed was carried out after all, or
        if another host delivers the same study.
        """
        self._series = {m.step for m in self._client.get_metric_history(self.run_id, "tnmse")}
        self._trial_runs = {}
        for run in sorted(self._children(), key=lambda run: run.info.run_id):
            number = run.data.tags.get(_TRIAL_TAG)
            if number is None:
                continue  # a study of which this is the parent, or somebody else put it there
            if int(number) in self._trial_runs:
                self._client.delete_run(run.info.run_id)
            else:
                has_ended = run.info.status != _RUNNING
                self._trial_runs[int(number)] = (run.info.run_id, has_ended)

    def describe(self, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Writes the parameters and tags that the run lacks."""
        changed = {}
        lacking = {}
        for name, value in params.items():
            if len(value) > MAX_PARAM_LENGTH:
                value = f"whole in the artifact {PARAMETERS_FILE} ({len(value)} characters)"
            if name not in self._params:
                lacking[name] = value
            elif self._params[name] != value:
                # MLflow's parameters cannot be changed; the first session's stay.
                changed[f"wpo.since_resumed.{name}"] = value
        log_params(self._client, self.run_id, lacking)
        self._params |= lacking
        self.set_tags({**tags, **changed})

    def place_under(self, parent: str | None) -> None:
        """Puts the run under that of another study, if MLflow has one of this identity."""
        parents = [] if parent is None else runs_of(self._client, self.experiment_id, parent)
        if parents:
            self.set_tags({PARENT_TAG: parents[0].info.run_id})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets the tags that differ."""
        changed = {name: value for name, value in tags.items() if self._tags.get(name) != value}
        set_tags(self._client, self.run_id, changed)
        self._tags |= changed

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Logs values about the whole study that differ, at step 0, where the UI shows bars."""
        changed = {
            name: value
            for name, value in values.items()
            if not _is_same(self._metrics.get(name), value)
        }
        now_ms = int(time.time() * 1000)
        log_metrics(self._client, self.run_id, metrics_of(changed, now_ms))
        self._metrics |= changed

    def deliver_series(self, points: Iterable[tuple[FrozenTrial, float]]) -> None:
        """Logs what the series lack of some trials, each given with the best before it."""
        metrics: list[Metric] = []
        steps = []
        for trial, best in points:
            if not is_complete(trial) or trial.number in self._series:
                continue
            steps.append(trial.number)
            values = numbers_of(trial)
            del values["improvement"]
            values["best_tnmse"] = min(best, rank(trial))
            metrics += metrics_of(values, milliseconds(trial.datetime_complete), trial.number)
        log_metrics(self._client, self.run_id, metrics)
        self._series.update(steps)

    def deliver_trials(self, trials: Sequence[FrozenTrial], database: str | None) -> None:
        """Writes the runs of some trials, or what is missing of them.

        Args:
            trials: the trials.
            database: MLflow's own database, where new runs are inserted at once; None if MLflow's
                store is a server's.
        """
        lacking = [trial for trial in trials if not self._has_ended(trial)]
        new = [(trial, self._run_of(trial)) for trial in lacking]
        if database is not None:
            at_once = [
                (trial, run)
                for trial, run in new
                if trial.number not in self._trial_runs and not run.is_long
            ]
            ids = insert_runs(database, self.experiment_id, [run for _, run in at_once])
            for (trial, _), run_id in zip(at_once, ids, strict=True):
                self._trial_runs[trial.number] = (run_id, True)
        for trial, run in new:
            if not self._has_ended(trial):
                self._write(trial, run)

    def _has_ended(self, trial: FrozenTrial) -> bool:
        return self._trial_runs.get(trial.number, ("", False))[1]

    def _write(self, trial: FrozenTrial, run: TrialRun) -> None:
        """Writes a trial's run in three requests, the fewest that MLflow's interface allows.

        The last one ends the run: one that is still running was interrupted, and is completed.
        """
        from mlflow.entities import Param

        run_id, _ = self._trial_runs.get(trial.number) or (self._create(run), False)
        params = dict(run.params)
        for name in [name for name, value in params.items() if len(value) > MAX_PARAM_LENGTH]:
            self._client.log_text(run_id, params[name], f"{name}.json")
            params[name] = f"whole in the artifact {name}.json"
        metrics = metrics_of(run.metrics, run.ended_ms, run.step)
        self._client.log_batch(run_id, metrics, [Param(*item) for item in params.items()])
        self._client.set_terminated(run_id, run.status, run.ended_ms)
        self._trial_runs[trial.number] = (run_id, True)

    def upload(self, files: Mapping[str, Path]) -> None:
        """Keeps files as the run's artifacts, by their relative path among these."""
        for name, path in files.items():
            directory = Path(name).parent.as_posix()
            self._client.log_artifact(
                self.run_id, str(path), None if directory == "." else directory
            )

    def set_status(self, status: str, ended_ms: int) -> None:
        """Says that the study is being run, or how and when it ended."""
        if status != _RUNNING:
            self._client.set_terminated(self.run_id, status, ended_ms)
        elif self._status != _RUNNING:
            self._client.update_run(self.run_id, status=_RUNNING)
        self._status = status

    def _children(self) -> list[Run]:
        under_this = f"tags.`{PARENT_TAG}` = '{self.run_id}'"
        return search_runs(self._client, self.experiment_id, under_this)

    def _delete(self) -> None:
        """Deletes the run and its trials' runs."""
        for run in self._children():
            if _TRIAL_TAG in run.data.tags:
                self._client.delete_run(run.info.run_id)
        self._client.delete_run(self.run_id)

    def _create(self, run: TrialRun) -> str:
        created = self._client.create_run(
            self.experiment_id, run_name=run.name, start_time=run.started_ms, tags=dict(run.tags)
        )
        return str(created.info.run_id)

    def _run_of(self, trial: FrozenTrial) -> TrialRun:
        numbers = numbers_of(trial)
        tags = {PARENT_TAG: self.run_id, _TRIAL_TAG: str(trial.number)}
        if not is_complete(trial):
            tags["wpo.state"] = trial.state.name
        elif not math.isfinite(numbers["loss"]):
            tags["wpo.loss"] = str(numbers["loss"])
        if "phase" in trial.user_attrs:
            tags["wpo.phase"] = trial.user_attrs["phase"]
        names = ("f_lst", "g_lst", "k_w") if is_complete(trial) else ()
        return TrialRun(
            name=f"{self._name} trial {trial.number}",
            started_ms=milliseconds(trial.datetime_start or trial.datetime_complete),
            ended_ms=milliseconds(trial.datetime_complete),
            status=_ENDED[trial.state.name],
            step=trial.number,
            tags=tags,
            params={n: json.dumps(trial.user_attrs[n]) for n in names if n in trial.user_attrs},
            metrics=numbers if is_complete(trial) else {},
        )


def runs_of(client: MlflowClient, experiment_id: str, identity: str) -> list[Run]:
    """A study's runs, first the one that every process agrees on."""
    wanted = f"tags.`{_STUDY_TAG}` = '{identity}' and {STUDIES_FILTER}"
    runs = search_runs(client, experiment_id, wanted)
    return sorted(runs, key=lambda run: str(run.info.run_id))


def _is_same(present: float | None, value: float) -> bool:
    if present is None:
        return False
    return present == value or (math.isnan(present) and not math.isfinite(value))
