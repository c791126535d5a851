"""Records any Optuna study in MLflow, from a callback, without the study waiting for MLflow."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from wpo_optuna.errors import InvalidArgument, check_choice
from wpo_optuna.study.attributes import FAILED, FINISHED, KILLED, VERSIONS
from wpo_optuna.study.environment import versions
from wpo_optuna.track.delivery import flatten
from wpo_optuna.track.destination import Destination
from wpo_optuna.track.follower import Follower
from wpo_optuna.track.store import KIND_TAG, SHOWN_FILTER
from wpo_optuna.track.study_run import PARENT_TAG

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_FIRST_CONTACT_S = 30.0


def page_of_experiment(server: str, experiment_id: str) -> str:
    """Page of MLflow's UI where an experiment's studies are compared.

    Without the filter that it contains, MLflow lists the latest trials' runs, a hundred at a time,
    and studies come into view as they are reached.

    Args:
        server: address of the UI, for instance of ``mlflow ui``.
        experiment_id: the experiment.
    """
    return _page(server, experiment_id, {"searchFilter": SHOWN_FILTER, "compareRunsMode": "CHART"})


def page_of_trials(server: str, experiment_id: str, run_id: str) -> str:
    """Page of MLflow's UI with a study's trials, those of the lowest TNMSE first.

    Args:
        server: address of the UI.
        experiment_id: the experiment.
        run_id: the study's run.
    """
    of_study = f"tags.`{KIND_TAG}` = 'trial' and tags.`{PARENT_TAG}` = '{run_id}'"
    order = {"orderByKey": "metrics.`tnmse`", "orderByAsc": "true"}
    return _page(server, experiment_id, {"searchFilter": of_study, **order})


def _page(server: str, experiment_id: str, query: Mapping[str, str]) -> str:
    # MLflow's other workflow, which it may open by itself, is about traces of language models.
    query = {**query, "workflowType": "machine_learning"}
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{urlencode(query)}"


class MlflowTracker(AbstractContextManager["MlflowTracker"]):
    """Optuna callback that records a study in MLflow.

    One run per study, found again when the study is resumed, with the series ``trial_tnmse``,
    ``trial_loss`` and ``best_tnmse`` over the trial number and a table of all trials; under it a
    run per trial. The metrics ``tnmse``, ``loss`` and ``baseline`` of a run are those of its trial,
    or of the study's best. A :class:`~wpo_optuna.track.follower.Follower` brings everything there,
    and is waited for by :meth:`close`, as a context manager, or at the end of the program.

        study.optimize(HypercubeObjective(problem, engine), callbacks=[MlflowTracker()])

    Args:
        tracking_uri: MLflow's tracking URI; None takes MLflow's default, which is
            ``MLFLOW_TRACKING_URI`` or else ``sqlite:///mlflow.db``, where ``mlflow ui`` looks too.
        experiment_name: MLflow experiment, for a family of studies that are compared.
        trial_runs: which trials get a run of their own, see
            :class:`~wpo_optuna.track.destination.Destination`.
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
        parameters: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        show_progress_bar: bool = True,
    ) -> None:
        self._destination = Destination(
            tracking_uri=os.fspath(tracking_uri) if tracking_uri is not None else None,
            experiment_name=experiment_name,
            trial_runs=trial_runs,
            parameters=flatten(parameters or {}),
            tags={name: str(value) for name, value in (tags or {}).items()},
        )
        self._show_progress_bar = show_progress_bar
        self._lock = threading.Lock()
        self._follower: Follower | None = None

    @property
    def undelivered(self) -> str | None:
        """What MLflow lacks after :meth:`close`, and how to deliver it; None if nothing."""
        return None if self._follower is None else self._follower.undelivered

    @property
    def run_id(self) -> str | None:
        """The study's run; None while MLflow is away.

        Right after the first trial it waits for MLflow, up to some seconds.
        """
        if self._follower is None:
            return None
        self._follower.wait_for_contact(_FIRST_CONTACT_S)
        delivered = self._follower.delivered
        return None if delivered is None else delivered.run_id

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Records a study from its first trial on; the signature is that of Optuna's callbacks.

        Raises:
            InvalidArgument: the tracker records another study, or MLflow's store would be the file
                of the study's storage. Nothing is written then.
        """
        with self._lock:
            if self._follower is None or self._follower.is_finished:
                self._follower = self._begin(study)
            follower = self._follower
        if follower.study.study_name != study.study_name:
            raise InvalidArgument(
                f"study = {study.study_name!r}: this tracker records "
                f"{follower.study.study_name!r}; make another MlflowTracker for another study."
            )

    def close(self, status: str = FINISHED) -> bool:
        """Ends the study's run, see :meth:`~wpo_optuna.track.follower.Follower.finish`.

        Args:
            status: how the study ended: ``FINISHED``, ``KILLED`` or ``FAILED``.

        Returns:
            whether MLflow has everything.

        Raises:
            InvalidArgument: another status.
        """
        check_choice("status", status, (FINISHED, KILLED, FAILED))
        if self._follower is not None:
            self._follower.finish(status)
        return self.undelivered is None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.close(KILLED if issubclass(kind, KeyboardInterrupt) else FAILED)

    def _begin(self, study: Study) -> Follower:
        if VERSIONS not in study.user_attrs:
            study.set_user_attr(VERSIONS, versions())
        follower = Follower(study, self._destination, show_progress_bar=self._show_progress_bar)
        # A tracker that nobody holds any more gets no further trials.
        weakref.finalize(self, follower.end, FINISHED).atexit = False
        return follower
