"""Records any Optuna study in MLflow, from a callback, without the study waiting for MLflow."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from wpo_optuna.errors import InvalidArgument, check_choice
from wpo_optuna.study.attributes import FAILED, FINISHED, KILLED, VERSIONS
from wpo_optuna.study.environment import versions
from wpo_optuna.track.delivery import flatten
from wpo_optuna.track.destination import Destination
from wpo_optuna.track.follower import Follower

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_FIRST_CONTACT_S = 30.0


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
