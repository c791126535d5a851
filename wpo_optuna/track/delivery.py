"""Brings a study from its Optuna storage to MLflow: whatever MLflow lacks, and nothing twice."""

from __future__ import annotations

import json
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from wpo_optuna.storage import FinishedTrials
from wpo_optuna.study import attributes as names
from wpo_optuna.track.destination import Destination, refuse_file_of
from wpo_optuna.track.store import connect, find_or_create_experiment, settle, turn
from wpo_optuna.track.study_run import PARAMETERS_FILE, StudyRun, new_writer
from wpo_optuna.track.trials import (
    ATTRIBUTES,
    TrialRecord,
    best_before,
    best_of,
    write_parquet,
    write_shown,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from optuna import Study
    from optuna.storages import BaseStorage

# A study of at most so many trials has, for "auto", a run for each of them.
AUTO_ALL_TRIALS = 1000

TABLE_FILE, PARQUET_FILE, BEST_TRIAL_FILE = "trials.json", "trials.parquet", "best_trial.json"
STRATEGY_FILE, SETTINGS_FILE = "strategy.json", "settings.yaml"
_TABLES = json.dumps([{"path": TABLE_FILE, "type": "table"}])

_DESCRIBING = (
    names.SAMPLER, names.SAMPLER_OPTIONS, names.SEED, names.ENGINE, names.BASELINE,
    names.FINGERPRINT, names.PROBLEM, names.SELF_CHECK,
)  # fmt: skip
_FORBIDDEN_IN_NAMES = re.compile(r"[^\w\-. :/]", re.ASCII)
_TRIALS_AT_ONCE = 250
# The best so far at a trial needs all trials before it: while a study is run, a trial waits for
# those, but not for one whose process has perhaps died.
_LONGEST_WAIT_FOR_EARLIER_S = 10.0
# While a study is run, MLflow is asked so often whether it still has what it had.
_ASK_EVERY_S = 5.0

OnProgress = Callable[[int, int], None]


def _ignore(n_done: int, n_all: int) -> None:
    pass


@dataclass(frozen=True)
class Delivered:
    """A study in MLflow.

    Attributes:
        run_id: the study's run.
        experiment_id: its experiment.
        n_trials: finished trials that were delivered, now or before.
        is_recorded_elsewhere: whether another process is recording the study, and will end its run.
    """

    run_id: str
    experiment_id: str
    n_trials: int
    is_recorded_elsewhere: bool = False


def deliver(
    study: Study,
    destination: Destination,
    *,
    running: bool = False,
    on_progress: OnProgress = _ignore,
) -> Delivered:
    """Brings to MLflow what it lacks of a study. A second time it changes nothing.

    Everything comes from the study's storage and from the folder of its results.

    Args:
        study: the study.
        destination: where it goes.
        running: whether trials may still come; otherwise the run is ended, as the study says.
        on_progress: told, again and again, how many trials are done, and of how many.

    Raises:
        InvalidArgument: MLflow's store would be the file of the study's storage.
        Exception: whatever MLflow or the storage raises when it is away; nothing is lost then.
    """
    delivery = Delivery(study, destination)
    if names.DESTINATION not in study.user_attrs:
        destination.remember(study)
    return delivery.bring(running, on_progress)


class Delivery:
    """The deliveries of one study one after the other: each costs as much as there is new.

    Args:
        study: the study.
        destination: where it goes.

    Attributes:
        delivered: what MLflow had last; None before the study's run was found.

    Raises:
        InvalidArgument: MLflow's store would be the file of the study's storage.
    """

    def __init__(self, study: Study, destination: Destination) -> None:
        refuse_file_of(storage_of(study), destination.tracking_uri)
        self._study = study
        self._destination = destination
        self._writer = new_writer()
        self._trials = FinishedTrials(study, ATTRIBUTES, reads_only=True)
        self._waiting: list[TrialRecord] = []
        self._records: list[TrialRecord] = []  # numbers ascend
        self._lacking: set[int] = set()
        self._attributes: dict[str, Any] = {}
        self._client: MlflowClient | None = None
        self._run: StudyRun | None = None
        self._asked = 0.0
        self.delivered: Delivered | None = None

    def bring(self, running: bool, on_progress: OnProgress = _ignore) -> Delivered:
        """Like :func:`deliver`."""
        is_new = self._read(running)
        if running and not is_new and time.monotonic() < self._asked + _ASK_EVERY_S:
            assert self.delivered is not None
            return self.delivered
        self._asked = 0.0
        try:
            with turn(f"{self._destination.uri} {self._identity}"):
                self.delivered = self._write(running, on_progress)
        except BaseException:
            self._run = None  # what failed may have been carried out all the same
            raise
        self._asked = time.monotonic()
        return self.delivered

    def _read(self, running: bool) -> bool:
        """Reads what is new in the storage; returns whether something is."""
        attributes = self._study.user_attrs
        is_new = attributes != self._attributes
        self._attributes = attributes
        self._identity = identity_of(self._study)
        self._waiting += [TrialRecord.from_trial(trial) for trial in self._trials.read_new()]
        self._waiting.sort(key=lambda record: record.number)
        patience_ms = 1000 * (time.time() - _LONGEST_WAIT_FOR_EARLIER_S)
        n_ready, last = 0, self._records[-1].number if self._records else -1
        for record in self._waiting:
            if running and record.number > last + 1 and record.finished_ms > patience_ms:
                break
            n_ready, last = n_ready + 1, max(last, record.number)
        ready, self._waiting = self._waiting[:n_ready], self._waiting[n_ready:]
        self._records += ready
        self._records.sort(key=lambda record: record.number)
        self._lacking |= {record.number for record in ready}
        return is_new or bool(ready)

    def _write(self, running: bool, on_progress: OnProgress) -> Delivered:
        while True:
            run = self._opened(running)
            if run is None:
                assert self.delivered is not None
                return self.delivered
            run.describe(self._parameters(), self._tags())
            run.log_metrics(self._metrics())
            if running:
                run.set_status(names.RUNNING, 0)
            self._write_trials(run, on_progress)
            if running:
                return self._told(run)
            best = best_of(self._records)
            if best is not None:
                run.log_metrics({"improvement": best.improvement})
            with tempfile.TemporaryDirectory(prefix="wpo_delivery_") as directory:
                files = self._files(Path(directory))
                run.upload(files, lambda: on_progress(len(self._records), len(self._records)))
            run.set_tags({"mlflow.loggedArtifacts": _TABLES, "mlflow.note.content": _note(best)})
            if run.is_still_mine():
                break
            self._run = None
        run.set_status(self._end_of(run), max((r.finished_ms for r in self._records), default=0))
        run.release()
        settle(self._destination.uri)
        return self._told(run)

    def _opened(self, running: bool) -> StudyRun | None:
        """The run as MLflow has it now; None while another process records the running study."""
        if self._run is not None and self._run.is_still_mine():
            self._run.claim()
            return self._run
        self._client = self._client or connect(self._destination.uri)
        experiment = find_or_create_experiment(self._client, self._destination.experiment_name)
        started_ms = self._records[0].started_ms if self._records else int(time.time() * 1000)
        run = StudyRun.find(
            self._client, experiment, self._identity, self._study.study_name, self._writer,
            started_ms,
        )  # fmt: skip
        self._is_recorded_elsewhere = run.is_written_by_another
        self._told(run)
        if running and self._is_recorded_elsewhere:
            return None
        run.claim()
        run.read()
        run.place_under(self._parent())
        self._lacking = {record.number for record in self._records}
        self._run = run
        return run

    def _told(self, run: StudyRun) -> Delivered:
        n_trials = len(self._records) - len(self._lacking)
        self.delivered = Delivered(
            run.run_id, run.experiment_id, n_trials, self._is_recorded_elsewhere
        )
        return self.delivered

    def _write_trials(self, run: StudyRun, on_progress: OnProgress) -> None:
        lacking = [
            (record, best)
            for record, best in zip(self._records, best_before(self._records), strict=True)
            if record.number in self._lacking
        ]

        def go_on() -> None:
            run.claim()
            on_progress(len(self._records) - len(self._lacking), len(self._records))

        for start in range(0, len(lacking), _TRIALS_AT_ONCE):
            go_on()
            run.deliver_series(lacking[start : start + _TRIALS_AT_ONCE])
        which = self._which_trial_runs()
        for record, best in lacking:
            if which == "all" or (which == "best" and record.rank < best):
                go_on()
                run.deliver_trial(record)
            self._lacking.discard(record.number)

    def _which_trial_runs(self) -> str:
        destination = self._destination
        if destination.trial_runs != "auto":
            return destination.trial_runs
        planned = (destination.planned_trials, self._attributes.get(names.N_TRIALS))
        n_trials = max(len(self._records), *(n or 0 for n in planned))
        return "all" if n_trials <= AUTO_ALL_TRIALS else "best"

    def _parameters(self) -> dict[str, str]:
        params: dict[str, str] = {}
        for name in _DESCRIBING:
            if name in self._attributes:
                params |= flatten(self._attributes[name], name)
        return params | dict(self._destination.parameters)

    def _tags(self) -> dict[str, str]:
        versions = self._attributes.get(names.VERSIONS, {})
        return {
            **{f"version.{name}": version for name, version in versions.items()},
            **dict(self._destination.tags),
        }

    def _metrics(self) -> dict[str, float]:
        metrics = dict(self._attributes.get(names.METRICS, {}))
        self_check = self._attributes.get(names.SELF_CHECK, {})
        for name in ("worst", "mean"):
            if self_check.get(name) is not None:
                metrics[f"self_check_{name}_percent"] = 100.0 * self_check[name]
        return {name: float(value) for name, value in metrics.items() if value is not None}

    def _parent(self) -> str | None:
        """Identity of the study under whose run this one's is put."""
        name = self._attributes.get(names.PARENT_STUDY)
        if name is None:
            return None
        try:
            parent = optuna.load_study(study_name=name, storage=storage_of(self._study))
        except KeyError:  # deleted, or copied elsewhere without it
            return None
        return identity_of(parent)

    def _end_of(self, run: StudyRun) -> str:
        status = self._attributes.get(names.STATUS, names.RUNNING)
        if status != names.RUNNING:
            return str(status)
        if self._is_recorded_elsewhere:
            return names.RUNNING
        if run.status != names.RUNNING:
            return run.status
        return names.KILLED if names.STATUS in self._attributes else names.FINISHED

    def _files(self, directory: Path) -> dict[str, Path]:
        """The run's artifacts by relative path; those that are not in the results are written."""
        written = {
            PARAMETERS_FILE: json.dumps(self._parameters(), indent=2),
            STRATEGY_FILE: _json(self._attributes.get(names.STRATEGY)),
            SETTINGS_FILE: self._attributes.get(names.SETTINGS),
            BEST_TRIAL_FILE: _json(_document(best_of(self._records))),
        }
        for name, text in written.items():
            if text is not None:
                (directory / name).write_text(text, encoding="utf-8")
        write_parquet(self._records, directory / PARQUET_FILE)
        write_shown(self._records, directory / TABLE_FILE)
        return _files_in(directory) | self._results()

    def _results(self) -> dict[str, Path]:
        """The files of the results folder, if it is here and this study's."""
        folder = Path(self._attributes.get(names.RESULTS, ""))
        if not folder.is_absolute() or not folder.is_dir():
            return {}
        strategy = folder / STRATEGY_FILE
        if strategy.exists() and names.STRATEGY in self._attributes:
            try:
                if json.loads(strategy.read_text("utf-8")) != self._attributes[names.STRATEGY]:
                    return {}  # another study of the same name has written there since
            except ValueError:
                return {}
        return _files_in(folder)


def storage_of(study: Study) -> BaseStorage:
    """The storage of a study, of which a callback is given the study alone."""
    return study._storage  # Optuna has no public way from one to the other


def identity_of(study: Study) -> str:
    """Tells a study from others of its name in other databases; made when first asked for."""
    if names.IDENTITY not in study.user_attrs:
        study.set_user_attr(names.IDENTITY, uuid.uuid4().hex)
    # Another process may have done the same: the later one's is everybody's.
    return str(study.user_attrs[names.IDENTITY])


def flatten(value: Any, name: str) -> dict[str, str]:
    """Parameters of nested mappings: names joined by dots, other values as JSON."""
    if isinstance(value, Mapping):
        flat: dict[str, str] = {}
        for key, item in value.items():
            flat |= flatten(item, f"{name}.{key}")
        return flat
    text = value if isinstance(value, str) else json.dumps(value)
    return {_FORBIDDEN_IN_NAMES.sub("_", name): text}


def _note(best: TrialRecord | None) -> str:
    note = (
        f"All trials: `{TABLE_FILE}`, to be looked at under Artifacts, and `{PARQUET_FILE}` at "
        "full precision."
    )
    if best is None:
        return note
    return (
        f"Best trial {best.number}: TNMSE {best.tnmse:.6g}, {best.improvement:.2f} % below the "
        f"baseline's {best.baseline:.6g}.\n\n{note}"
    )


def _document(best: TrialRecord | None) -> dict[str, Any] | None:
    if best is None:
        return None
    return {
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


def _json(document: Any) -> str | None:
    return None if document is None else json.dumps(document, indent=2)


def _files_in(folder: Path) -> dict[str, Path]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files}
