"""A study's run in MLflow: what is there already is not written again.

MLflow has no transaction over several runs, and a request that failed may have been carried out.
So nothing is remembered across a failure: :meth:`StudyRun.find` and :meth:`StudyRun.read` ask
MLflow what it has. Steps, times and values of the series come from the trials alone, so that a
metric written twice is one and the same row of MLflow's database.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

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
from wpo_optuna.track.trials import TrialRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run

PARAMETERS_FILE = "parameters.json"

_STUDY_TAG = "wpo.study_id"
_CREATED_TAG = "wpo.created_ns"
_WRITER_TAG = "wpo.writer"
_FILES_TAG = "wpo.files_sha256"
PARENT_TAG = "mlflow.parentRunId"
_TRIAL_TAG = "wpo.trial_number"
_RUNNING = "RUNNING"
_ENDED = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}

# Whoever writes says so again after the first time, and counts as gone after the second, in s.
_CLAIM_EVERY_S = 5.0
_CLAIM_HOLDS_S = 15.0

# The UI's own choice of colours may give two studies nearly the same.
_COLOURS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f",
    "#bcbd22", "#17becf",
)  # fmt: skip


class StudyRun:
    """The run of a study.

    Several processes, also on several hosts, may write the same study. Each marks the run as
    written by itself before it relies on what MLflow had when it asked: whoever finds the mark of
    another asks again, and reduces to one what both have created.

    Args:
        client: MLflow.
        run: the run.
        name: name of the study.
        writer: token of who writes, see :func:`new_writer`.
    """

    def __init__(self, client: MlflowClient, run: Run, name: str, writer: str) -> None:
        self.run_id = str(run.info.run_id)
        self.experiment_id = str(run.info.experiment_id)
        self._client = client
        self._name = name
        self._writer = writer
        self._claimed = 0.0
        self._series: set[int] = set()
        self._trial_runs: dict[int, tuple[str, bool]] = {}
        self._status = str(run.info.status)
        self._tags = dict(run.data.tags)
        self._params = dict(run.data.params)
        self._metrics = dict(run.data.metrics)

    @classmethod
    def find(
        cls, client: MlflowClient, experiment_id: str, identity: str, name: str, writer: str,
        started_ms: int,
    ) -> StudyRun:  # fmt: skip
        """The run of the study with this identity, created if there is none.

        What several processes created at the same time is reduced to the earliest.
        """
        runs = runs_of(client, experiment_id, identity)
        if not runs:
            n_studies = len(search_runs(client, experiment_id, STUDIES_FILTER))
            client.create_run(
                experiment_id,
                run_name=name,
                start_time=started_ms,
                tags={
                    _STUDY_TAG: identity,
                    KIND_TAG: "study",
                    _CREATED_TAG: str(time.time_ns()),
                    "mlflow.runColor": _COLOURS[n_studies % len(_COLOURS)],
                },
            )
            runs = runs_of(client, experiment_id, identity)
        for superfluous in runs[1:]:
            cls(client, superfluous, name, writer)._delete()
        return cls(client, runs[0], name, writer)

    @property
    def status(self) -> str:
        """``RUNNING``, ``FINISHED``, ``KILLED`` or ``FAILED``."""
        return self._status

    @property
    def is_written_by_another(self) -> bool:
        """Whether another process that goes on has written the run."""
        writer, _, at = self._tags.get(_WRITER_TAG, "").partition(" ")
        if not writer or abs(time.time() - float(at)) > _CLAIM_HOLDS_S:
            return False
        host, pid, _ = writer.rsplit(":", 2)
        if host != socket.gethostname():
            return True
        # Of a process that was killed and not yet cleared away, Linux knows no program any more.
        return int(pid) != os.getpid() and os.path.exists(f"/proc/{pid}/exe")

    def is_still_mine(self) -> bool:
        """Asks MLflow whether the run is there and nobody else has written it."""
        run = self._client.get_run(self.run_id)
        writer = run.data.tags.get(_WRITER_TAG, "").partition(" ")[0]
        return run.info.lifecycle_stage == "active" and writer == self._writer

    def claim(self) -> None:
        """Marks the run as written by this process."""
        if time.monotonic() > self._claimed + _CLAIM_EVERY_S:
            self.set_tags({_WRITER_TAG: f"{self._writer} {time.time():.0f}"})
            self._claimed = time.monotonic()

    def release(self) -> None:
        """Says that this process does not go on."""
        self.set_tags({_WRITER_TAG: ""})

    def read(self) -> None:
        """Asks MLflow what it has of the study; of a trial's two runs one is deleted.

        A second one appears if a request that seemed to have failed was carried out after all.
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

    def deliver_series(self, points: Iterable[tuple[TrialRecord, float]]) -> None:
        """Logs what the series lack of some trials, each given with the best before it."""
        metrics: list[Metric] = []
        steps = []
        for record, best in points:
            if not record.is_complete or record.number in self._series:
                continue
            steps.append(record.number)
            values = {
                "tnmse": record.tnmse,
                "loss": record.loss,
                "baseline": record.baseline,
                "best_tnmse": min(best, record.rank),
            }
            metrics += metrics_of(values, record.finished_ms, record.number)
        log_metrics(self._client, self.run_id, metrics)
        self._series.update(steps)

    def deliver_trial(self, record: TrialRecord) -> None:
        """Writes a trial's run, or what is missing of it.

        In three requests, the fewest that MLflow's interface allows; it has none for several runs.
        The last one ends the run: one that is still running was interrupted, and is completed.
        """
        run_id, has_ended = self._trial_runs.get(record.number) or (self._create(record), False)
        if has_ended:
            return
        self._trial_runs[record.number] = (run_id, False)
        if record.is_complete:
            values = {
                "tnmse": record.tnmse,
                "loss": record.loss,
                "baseline": record.baseline,
                "improvement": record.improvement,
            }
            metrics = metrics_of(values, record.finished_ms, record.number)
            params = self._params_of(record, run_id)
            self._client.log_batch(run_id, metrics=metrics, params=params)
        self._client.set_terminated(run_id, _ENDED[record.state], record.finished_ms)
        self._trial_runs[record.number] = (run_id, True)

    def upload(self, files: Mapping[str, Path], on_progress: Callable[[], None]) -> None:
        """Keeps files as the run's artifacts, unless it has just these.

        Args:
            files: by their relative path among the artifacts.
            on_progress: called after each file.
        """
        digest = hashlib.sha256()
        for name, path in sorted(files.items()):
            digest.update(name.encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        if self._tags.get(_FILES_TAG) == digest.hexdigest():
            return
        for name, path in sorted(files.items()):
            directory = Path(name).parent.as_posix()
            self._client.log_artifact(
                self.run_id, str(path), None if directory == "." else directory
            )
            on_progress()
        self.set_tags({_FILES_TAG: digest.hexdigest()})

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

    def _create(self, record: TrialRecord) -> str:
        tags = {PARENT_TAG: self.run_id, _TRIAL_TAG: str(record.number)}
        if not record.is_complete:
            tags["wpo.state"] = record.state
        elif not math.isfinite(record.loss):
            tags["wpo.loss"] = str(record.loss)
        if record.phase is not None:
            tags["wpo.phase"] = record.phase
        run = self._client.create_run(
            self.experiment_id,
            run_name=f"{self._name} trial {record.number}",
            start_time=record.started_ms,
            tags=tags,
        )
        return str(run.info.run_id)

    def _params_of(self, record: TrialRecord, run_id: str) -> list[Param]:
        from mlflow.entities import Param

        params = {"f_lst": json.dumps(record.f_lst), "g_lst": json.dumps(record.g_lst)}
        if len(params["g_lst"]) > MAX_PARAM_LENGTH:
            self._client.log_text(run_id, params["g_lst"], "g_lst.json")
            params["g_lst"] = "whole in the artifact g_lst.json"
        if not math.isnan(record.k_w):
            params["k_w"] = repr(record.k_w)
        return [Param(*item) for item in params.items()]


def new_writer() -> str:
    """A token that tells one who writes from others, and which process that is."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"


def runs_of(client: MlflowClient, experiment_id: str, identity: str) -> list[Run]:
    """A study's runs, first the one that every process agrees on."""
    wanted = f"tags.`{_STUDY_TAG}` = '{identity}' and {STUDIES_FILTER}"
    runs = search_runs(client, experiment_id, wanted)
    return sorted(runs, key=lambda run: (int(run.data.tags[_CREATED_TAG]), run.info.run_id))


def _is_same(present: float | None, value: float) -> bool:
    if present is None:
        return False
    return present == value or (math.isnan(present) and not math.isfinite(value))
