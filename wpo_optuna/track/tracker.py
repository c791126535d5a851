"""Records a study in MLflow, from an Optuna callback, without the study waiting for MLflow."""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.track.delivery.description import flatten
from wpo_optuna.track.delivery.destination import Destination, check_tags
from wpo_optuna.track.delivery.ending import end_at_exit, undelivered, wait_for_end
from wpo_optuna.track.delivery.feeder import Feeder, TrackingWarning
from wpo_optuna.track.delivery.messages import Artifact, Extra, Metrics, Tags, Text
from wpo_optuna.track.delivery.study_run import STUDIES_FILTER

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

__all__ = ["MlflowTracker", "TrackingWarning"]

STATUSES = ("FINISHED", "KILLED", "FAILED")

_FIRST_CONTACT_S = 30.0


def page_of_experiment(server: str, experiment_id: str) -> str:
    """Page of MLflow's UI where an experiment's studies are compared.

    Args:
        server: address of the UI.
        experiment_id: the experiment.
    """
    query = urlencode({"searchFilter": STUDIES_FILTER, "compareRunsMode": "CHART"})
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


class MlflowTracker:
    """Optuna callback that records a study in MLflow.

    One run per study, found again when the study is resumed, with the series ``tnmse``, ``loss``,
    ``baseline`` and ``best_tnmse`` over the trial number, what the study's user attributes
    ``problem``, ``sampler`` and ``engine`` say as parameters, and a table of all trials. Under it
    a run per trial, with ``f_lst``, ``g_lst`` and ``k_w`` as parameters.

    A trial costs the study some microseconds: a thread and a process of its own deliver it. MLflow
    may be slow or away: the study goes on, a :class:`TrackingWarning` says so once, and what MLflow
    lacks is delivered when it is back, or later by ``python -m wpo_optuna.track``, from Optuna's
    storage. Every trial is recorded exactly once, whatever happens in between.

    Used as a context manager, or closed with :meth:`close`, it waits until everything is
    delivered; so does the end of the program.

        study.optimize(HypercubeObjective(problem, engine), callbacks=[MlflowTracker()])

    Args:
        tracking_uri: MLflow's tracking URI; None takes MLflow's default, which is
            ``MLFLOW_TRACKING_URI`` or else ``sqlite:///mlflow.db``, where ``mlflow ui`` looks too.
        experiment_name: MLflow experiment, for a family of studies that are compared.
        trial_runs: which trials get a run of their own: ``"all"``, ``"best"`` for those that
            improved the best, ``"none"``, or ``"auto"``: the first 1000 and of the others the
            best, or, if more than 1000 are planned from the beginning, the best alone.
        planned_trials: how many trials the study will have, if that is known.
        parameters: further parameters of the study's run; nested mappings are flattened.
        tags: further tags of the study's run.
        show_progress_bar: whether waiting at the end shows progress on a terminal.

    Raises:
        InvalidArgument: an argument cannot be used.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment_name: str = "wpo",
        trial_runs: str = "auto",
        *,
        planned_trials: int | None = None,
        parameters: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        show_progress_bar: bool = True,
    ) -> None:
        flat: dict[str, str] = {}
        for name, value in (parameters or {}).items():
            flat |= flatten(value, name)
        self._destination = Destination(
            tracking_uri=os.fspath(tracking_uri) if tracking_uri is not None else None,
            experiment_name=experiment_name,
            trial_runs=trial_runs,
            planned_trials=planned_trials or 0,
            parameters=tuple(flat.items()),
            tags=tuple((name, str(value)) for name, value in (tags or {}).items()),
            is_live=True,
        )
        self._show_progress_bar = show_progress_bar
        self._lock = threading.Lock()
        self._feeder: Feeder | None = None
        self._ended: Feeder | None = None
        self._early_extras: list[Extra] = []
        self._status = "FINISHED"
        #: What MLflow lacks after :meth:`close`, and how to deliver it; None if nothing.
        self.undelivered: str | None = None

    @property
    def tracking_uri(self) -> str | None:
        """MLflow's tracking URI; None for MLflow's default."""
        return self._destination.tracking_uri

    @property
    def run_id(self) -> str | None:
        """The study's run; None while MLflow is away.

        Right after the first trial it waits for MLflow, up to some seconds.
        """
        feeder = self._feeder or self._ended
        if feeder is None:
            return None
        end = time.monotonic() + _FIRST_CONTACT_S
        while not (feeder.stuck_since or feeder.has_ended.is_set()):
            if feeder.has_opened.wait(0.05) or time.monotonic() > end:
                break
        return feeder.run_id

    @property
    def experiment_id(self) -> str | None:
        """The experiment of the study's run; None while MLflow is away. Waits like `run_id`."""
        feeder = self._feeder or self._ended
        return feeder.experiment_id if feeder is not None and self.run_id else None

    def page(self, server: str = "http://127.0.0.1:5000") -> str | None:
        """Page of MLflow's UI where the experiment's studies are compared; None like `run_id`.

        Without the filter that it contains, MLflow lists the latest trials' runs, a hundred at a
        time, and studies come into view as they are reached.

        Args:
            server: address of the UI, for instance of ``mlflow ui``.
        """
        if self.experiment_id is None:
            return None
        return page_of_experiment(server, self.experiment_id)

    def attach(self, study: Study) -> None:
        """Begins the study's run, or goes on with it, before the first trial.

        Raises:
            InvalidArgument: the tracker records another study, or MLflow's store would be the file
                of the study's storage. Nothing is written then.
        """
        feeder = self._feeder
        if feeder is None:
            with self._lock:
                if self._feeder is None:
                    self._feeder = self._begin(study)
                feeder = self._feeder
        if feeder.study._study_id != study._study_id:
            raise InvalidArgument(
                f"study = {study.study_name!r}: this tracker records {feeder.study.study_name!r}; "
                "make another MlflowTracker for another study."
            )

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Records a finished trial; the signature is that of Optuna's callbacks."""
        self.attach(study)
        assert self._feeder is not None
        if trial.state.is_finished():
            self._feeder.put(trial)

    def log_artifact(self, path: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        """Keeps a file with the study's run. It is read in the background: leave it in place.

        Args:
            path: the file.
            artifact_path: directory among the run's artifacts; None for the top.

        Raises:
            InvalidArgument: there is no such file.
        """
        if not Path(path).is_file():
            raise InvalidArgument(f"path = {os.fspath(path)!r}: there is no such file.")
        self._put(Artifact(str(Path(path).resolve()), artifact_path))

    def log_text(self, text: str, artifact_file: str) -> None:
        """Keeps a text with the study's run, as the file ``artifact_file``."""
        self._put(Text(text, artifact_file))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Logs values to the study's run."""
        values = tuple((name, float(value)) for name, value in metrics.items())
        self._put(Metrics(values, step, int(time.time() * 1000)))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the study's run."""
        values = tuple((name, str(value)) for name, value in tags.items())
        check_tags(values)
        self._put(Tags(values))

    def set_status(self, status: str) -> None:
        """Says how the study ended, if nothing else does: ``FINISHED``, ``KILLED``, ``FAILED``.

        Raises:
            InvalidArgument: another status.
        """
        if status not in STATUSES:
            raise InvalidArgument(f"status = {status!r}: accepted is {', '.join(STATUSES)}.")
        self._status = status
        if self._feeder is not None:
            self._feeder.intended_status = status

    def close(self, status: str | None = None) -> bool:
        """Delivers everything, ends the study's run, and waits for that.

        While MLflow takes something it waits as long as that takes; when MLflow is away it gives
        up after some seconds, and a :class:`TrackingWarning` says how to deliver the rest.

        Args:
            status: how the study ended; None takes that of :meth:`set_status`, or ``FINISHED``.

        Returns:
            whether MLflow has everything.

        Raises:
            InvalidArgument: another status.
        """
        if status is not None:
            self.set_status(status)
        feeder, self._feeder = self._feeder, None
        self._ended = feeder or self._ended
        if feeder is None:
            return self.undelivered is None
        feeder.finish(self._status)
        try:
            wait_for_end(feeder, self._show_progress_bar)
        finally:
            self.undelivered = undelivered(feeder)
            if self.undelivered is not None:
                warnings.warn(self.undelivered, TrackingWarning, stacklevel=2)
        return self.undelivered is None

    def __enter__(self) -> MlflowTracker:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exception_type is None:
            self.close()
        else:
            self.close("KILLED" if issubclass(exception_type, KeyboardInterrupt) else "FAILED")

    def _begin(self, study: Study) -> Feeder:
        feeder = Feeder(study, self._destination)
        feeder.intended_status = self._status
        for extra in self._early_extras:
            feeder.put_extra(extra)
        self._early_extras.clear()
        end_at_exit(feeder)
        # A tracker that nobody holds any more gets no further trials.
        weakref.finalize(self, feeder.finish).atexit = False
        return feeder

    def _put(self, extra: Extra) -> None:
        with self._lock:
            if self._feeder is None:
                self._early_extras.append(extra)
            else:
                self._feeder.put_extra(extra)
