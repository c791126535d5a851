"""Brings a study from its Optuna storage to MLflow: whatever MLflow lacks, and nothing twice."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from wpo_optuna.storage import FinishedTrials
from wpo_optuna.study import attributes as names
from wpo_optuna.track.destination import Destination, file_of, refuse_file_of
from wpo_optuna.track.store import connect, find_or_create_experiment, turn
from wpo_optuna.track.study_run import PARAMETERS_FILE, PARQUET_FILE, StudyRun
from wpo_optuna.track.trials import (
    ATTRIBUTES,
    milliseconds,
    numbers_of,
    numbers_of_strategy,
    rank,
    write_parquet,
    write_shown,
)
from wpo_optuna.track.view import keep_view

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

# A study of at most so many trials has, for "auto", a run for each of them.
AUTO_ALL_TRIALS = 1000

TABLE_FILE, STRATEGY_FILE, SETTINGS_FILE = "trials.json", "strategy.json", "settings.yaml"
_TABLES = json.dumps([{"path": TABLE_FILE, "type": "table"}])
_NOTE = (
    f"All trials: `{TABLE_FILE}`, to be looked at under Artifacts, and `{PARQUET_FILE}` at full "
    "precision."
)

_DESCRIBING = (
    names.SAMPLER, names.SAMPLER_OPTIONS, names.SEED, names.ENGINE, names.BASELINE,
    names.FINGERPRINT, names.PROBLEM, names.SELF_CHECK,
)  # fmt: skip
_FORBIDDEN_IN_NAMES = re.compile(r"[^\w\-. :/]", re.ASCII)
_TRIALS_AT_ONCE = 100
OnProgress = Callable[["Delivered"], None]


@dataclass(frozen=True)
class Delivered:
    """A study in MLflow.

    Attributes:
        run_id: the study's run.
        experiment_id: its experiment.
        n_trials: finished trials that were delivered, now or before.
        n_finished: finished trials that the study has.
    """

    run_id: str
    experiment_id: str
    n_trials: int
    n_finished: int


def deliver(
    study: Study, destination: Destination, on_progress: OnProgress = lambda delivered: None
) -> Delivered:
    """Brings to MLflow what it lacks of a study. A second time it changes nothing.

    Everything comes from the study's storage and from the folder of its results.

    Args:
        study: the study.
        destination: where it goes.
        on_progress: told, again and again, what is done.

    Raises:
        InvalidArgument: MLflow's store would be the file of the study's storage.
        Exception: whatever MLflow or the storage raises when it is away; nothing is lost then.
    """
    delivery = Delivery(study, destination, on_progress)
    if names.DESTINATION not in study.user_attrs:
        destination.remember(study)
    return delivery.bring(running=False)


class Delivery:
    """The deliveries of one study one after the other: each costs as much as there is new.

    What MLflow has is asked for at first, after a failure, when somebody else has delivered
    meanwhile, and at the end, when what two have written at the same time is reduced to one.

    The arguments are those of :func:`deliver`.
    """

    def __init__(
        self,
        study: Study,
        destination: Destination,
        on_progress: OnProgress = lambda delivered: None,
    ) -> None:
        refuse_file_of(storage_of(study), destination.tracking_uri)
        self._study = study
        self._destination = destination
        self._on_progress = on_progress
        self._reader = FinishedTrials(study, ATTRIBUTES)
        self._trials: list[FrozenTrial] = []  # numbers ascend
        self._attributes: dict[str, Any] = {}
        self._writer = uuid.uuid4().hex
        self._run: StudyRun | None = None

    def bring(self, running: bool) -> Delivered:
        """Like :func:`deliver`.

        Args:
            running: whether trials may still come; otherwise the run is ended, as the study says.
        """
        attributes, lacking = self._study.user_attrs, self._reader.read_new()
        is_new = bool(lacking) or attributes != self._attributes
        self._attributes = attributes
        self._trials = sorted(self._trials + lacking, key=lambda trial: trial.number)
        run, self._run = self._run, None  # what fails may have been carried out all the same
        # A server would otherwise be asked for many of the runs by each of several deliverers.
        with turn(f"{self._destination.uri} {self._study.study_name}"):
            if run is None or not running or not run.is_written_by(self._writer):
                run, lacking, is_new = self._open(), self._trials, True
            if is_new:
                self._write(run, lacking, running)
        self._run = run
        return self._delivered(run, n_lacking=0)

    def _open(self) -> StudyRun:
        """The study's run as MLflow has it now."""
        client = connect(self._destination.uri)
        experiment = find_or_create_experiment(client, self._destination.experiment_name)
        keep_view(client, experiment)
        started_ms = self._attributes.get(names.STARTED, int(time.time() * 1000))
        if self._trials:
            first = self._trials[0]
            first_ms = milliseconds(first.datetime_start or first.datetime_complete)
            started_ms = min(started_ms, first_ms)
        identity, name = identity_of(self._study), self._study.study_name
        run = StudyRun.find(client, experiment, identity, name, started_ms)
        run.read(self._writer)
        if names.PARENT_STUDY in self._attributes:
            # It may have been deleted, or left behind where this one was copied from.
            with contextlib.suppress(KeyError):
                name, storage = self._attributes[names.PARENT_STUDY], storage_of(self._study)
                run.place_under(identity_of(optuna.load_study(study_name=name, storage=storage)))
        return run

    def _write(self, run: StudyRun, lacking: Sequence[FrozenTrial], running: bool) -> None:
        versions = self._attributes.get(names.VERSIONS, {})
        tags = {f"version.{name}": version for name, version in versions.items()}
        run.describe(self._parameters(), tags | dict(self._destination.tags))
        if running:
            run.set_status(names.RUNNING, 0)
        self._write_trials(run, lacking)
        if running:
            return
        run.log_metrics(self._metrics())
        with tempfile.TemporaryDirectory(prefix="wpo_delivery_") as directory:
            self._write_files(Path(directory))
            run.upload(Path(directory))
        strategy = self._attributes.get(names.STRATEGY, {})
        warning = strategy.get("provenance", {}).get("warning")
        note = _NOTE if warning is None else f"**{warning}**\n\n{_NOTE}"
        run.set_tags({"mlflow.loggedArtifacts": _TABLES, "mlflow.note.content": note})
        # A session that was killed left its trials, but no end.
        completed = (milliseconds(trial.datetime_complete) for trial in self._trials)
        ended_ms = max(completed, default=0)
        ended_ms = max(ended_ms, self._attributes.get(names.ENDED, 0))
        status = self._attributes.get(names.STATUS, names.FINISHED)
        # One that still says it is running was killed.
        run.set_status(names.KILLED if status == names.RUNNING else status, ended_ms)

    def _delivered(self, run: StudyRun, n_lacking: int) -> Delivered:
        n_finished = len(self._trials)
        return Delivered(run.run_id, run.experiment_id, n_finished - n_lacking, n_finished)

    def _write_trials(self, run: StudyRun, lacking: Sequence[FrozenTrial]) -> None:
        best_before = accumulate(map(rank, self._trials), min, initial=math.inf)
        best = dict(zip((trial.number for trial in self._trials), best_before, strict=False))
        which = self._which_trial_runs()
        uri = self._destination.uri
        database = None if file_of(uri) is None else uri
        for start in range(0, len(lacking), _TRIALS_AT_ONCE):
            self._on_progress(self._delivered(run, len(lacking) - start))
            part = lacking[start : start + _TRIALS_AT_ONCE]
            run.deliver_series([(trial, best[trial.number]) for trial in part])
            if which == "best":
                part = [trial for trial in part if rank(trial) < best[trial.number]]
            if which != "none":
                run.deliver_trials(part, database)

    def _which_trial_runs(self) -> str:
        destination = self._destination
        if destination.trial_runs != "auto":
            return destination.trial_runs
        n_trials = max(len(self._trials), self._attributes.get(names.N_TRIALS) or 0)
        return "all" if n_trials <= AUTO_ALL_TRIALS else "best"

    def _parameters(self) -> dict[str, str]:
        told = {name: self._attributes[name] for name in _DESCRIBING if name in self._attributes}
        return flatten(told) | dict(self._destination.parameters)

    def _metrics(self) -> dict[str, float]:
        """Numbers about the whole study; MLflow's pages that compare runs keep their order."""
        best = min(self._trials, key=rank, default=None)
        metrics: dict[str, float | None] = {"n_trials": len(self._trials)}
        f_lst, g_lst = (), ()
        if best is not None and math.isfinite(rank(best)):
            metrics |= numbers_of(best)
            f_lst, g_lst = (best.user_attrs.get(name, ()) for name in ("f_lst", "g_lst"))
        if names.STRATEGY in self._attributes:
            winner = self._attributes[names.STRATEGY]
            f_lst, g_lst = winner["f_lst"], winner["g_lst_us"]
        metrics |= self._attributes.get(names.METRICS, {})
        metrics |= numbers_of_strategy(f_lst, g_lst)
        self_check = self._attributes.get(names.SELF_CHECK, {})
        for name, key in (("at_least", "worst"), ("mean", "mean")):
            if self_check.get(key) is not None:
                metrics[f"self_check_{name}_percent"] = 100.0 * self_check[key]
        return {name: float(value) for name, value in metrics.items() if value is not None}

    def _write_files(self, directory: Path) -> None:
        """Writes the run's artifacts; those that are in the results folder are taken from there."""
        strategy = self._attributes.get(names.STRATEGY)
        texts = {
            PARAMETERS_FILE: json.dumps(self._parameters(), indent=2),
            STRATEGY_FILE: None if strategy is None else json.dumps(strategy, indent=2),
            SETTINGS_FILE: self._attributes.get(names.SETTINGS),
        }
        for name, text in texts.items():
            if text is not None:
                (directory / name).write_text(text, encoding="utf-8")
        write_parquet(self._trials, directory / PARQUET_FILE)
        write_shown(self._trials, directory / TABLE_FILE)
        results = Path(self._attributes.get(names.RESULTS, ""))
        if not results.is_absolute() or not results.is_dir():
            return
        kept = results / STRATEGY_FILE
        if strategy and kept.exists() and json.loads(kept.read_text("utf-8")) != strategy:
            return  # another study of the same name has written there since
        shutil.copytree(results, directory, dirs_exist_ok=True)


def storage_of(study: Study) -> BaseStorage:
    """The storage of a study, of which a callback is given the study alone."""
    return study._storage  # Optuna has no public way from one to the other


def identity_of(study: Study) -> str:
    """Tells a study from others of its name in other databases; made when first asked for."""
    if names.IDENTITY not in study.user_attrs:
        study.set_user_attr(names.IDENTITY, uuid.uuid4().hex)
    # Another process may have done the same: the later one's is everybody's.
    return str(study.user_attrs[names.IDENTITY])


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Parameters of nested mappings: names joined by dots, other values as JSON."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            flat[_FORBIDDEN_IN_NAMES.sub("_", prefix + name)] = text
    return flat
