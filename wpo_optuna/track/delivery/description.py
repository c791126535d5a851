"""What MLflow is told about a study, and what the study's storage remembers of its delivery."""

from __future__ import annotations

import getpass
import json
import re
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import optuna

from wpo_optuna.study.environment import versions
from wpo_optuna.track.delivery.destination import Destination
from wpo_optuna.track.delivery.messages import (
    Artifact,
    Extra,
    Metrics,
    StudyDescription,
    Tags,
    Text,
    milliseconds,
)
from wpo_optuna.track.delivery.tracking_uri import masked

if TYPE_CHECKING:
    from optuna import Study

# User attributes of a study that become parameters of its run.
DESCRIBING_ATTRIBUTES = (
    "sampler", "sampler_options", "seed", "engine", "baseline", "problem_fingerprint", "problem",
    "self_check",
)  # fmt: skip
# The user attribute that says how the engine compares with aihwkit's tile, and what of it becomes
# metrics, so that studies can be compared and sorted by it.
_SELF_CHECK = "self_check"
_SELF_CHECK_METRICS = ("worst", "mean")
# The user attribute that names the study, in the same storage, under whose run this one's is put.
PARENT_STUDY = "parent_study"
_STATE = "wpo:mlflow"
_SETTLING_S = 0.3
_FORBIDDEN_IN_NAMES = re.compile(r"[^\w\-. :/]", re.ASCII)
# Fields of the state that earlier versions of this package did not write.
_ADDED_LATER = ("experiment_name", "trial_runs", "tracking_uri", "all_runs_below")
_KINDS = {"artifact": Artifact, "text": Text, "metrics": Metrics, "tags": Tags}


@dataclass(frozen=True)
class DeliveryState:
    """What a study's storage keeps about its delivery, so that a lost run can be rebuilt.

    Attributes:
        identity: tells the study from others of the same name, also in a copied database.
        versions: the packages that ran the study.
        experiment_name: the experiment that has it; None if an earlier version of this package
            delivered it, which did not say.
        trial_runs: which trials have a run of their own; None likewise.
        tracking_uri: where MLflow is, without a password; None for MLflow's default.
        all_runs_below: where ``auto`` goes over from all trials to the best; None where that has
            not been decided.
        status: how the study's run ended; None if it has not.
        delivered: everything beside the trials that MLflow got.
        undelivered: what it has still to get.
    """

    identity: str
    versions: tuple[tuple[str, str], ...]
    experiment_name: str | None = None
    trial_runs: str | None = None
    tracking_uri: str | None = None
    all_runs_below: int | None = None
    status: str | None = None
    delivered: tuple[Extra, ...] = ()
    undelivered: tuple[Extra, ...] = ()

    @classmethod
    def read(cls, study: Study) -> DeliveryState | None:
        """What the storage has; None for a study that was never delivered."""
        stored = study._storage.get_study_system_attrs(study._study_id).get(_STATE)
        if stored is None:
            return None
        return cls(
            identity=stored["identity"],
            versions=tuple(stored["versions"].items()),
            **{name: stored.get(name) for name in _ADDED_LATER},
            status=stored["status"],
            delivered=tuple(_read_extra(extra) for extra in stored["delivered"]),
            undelivered=tuple(_read_extra(extra) for extra in stored["undelivered"]),
        )

    @classmethod
    def begin(cls, study: Study, destination: Destination) -> DeliveryState:
        """What the storage has when a delivery begins, after this one's part is written to it."""
        state = cls.read(study)
        if state is None:
            current = study.user_attrs.get("versions") or versions()
            state = cls(identity=uuid.uuid4().hex, versions=tuple(current.items()))
            state._with(study, destination).write(study)
            # Another process may do the same at the same time: the later one's is everybody's.
            time.sleep(_SETTLING_S)
            state = cls.read(study)
            assert state is not None
        begun = state._with(study, destination)
        if begun != state:
            begun.write(study)
        return begun

    def _with(self, study: Study, destination: Destination) -> DeliveryState:
        """The state that a delivery to a destination begins with."""
        state = self
        if state.all_runs_below is None and destination.trial_runs == "auto":
            n_trials = study._storage.get_n_trials(study._study_id)
            state = replace(state, all_runs_below=destination.all_runs_below(n_trials))
        return state.at(destination) if destination.is_live else state

    def at(self, destination: Destination) -> DeliveryState:
        """The state of a study that is delivered to this destination, also later on."""
        uri = destination.tracking_uri
        return replace(
            self,
            experiment_name=destination.experiment_name,
            trial_runs=destination.trial_runs,
            tracking_uri=None if uri is None else masked(uri),
        )

    def write(self, study: Study) -> None:
        """Replaces what the storage has."""
        stored = {
            "identity": self.identity,
            "versions": dict(self.versions),
            **{name: getattr(self, name) for name in _ADDED_LATER},
            "status": self.status,
            "delivered": [_write_extra(extra) for extra in self.delivered],
            "undelivered": [_write_extra(extra) for extra in self.undelivered],
        }
        study._storage.set_study_system_attr(study._study_id, _STATE, stored)

    def after(
        self, delivered: Sequence[Extra], undelivered: Sequence[Extra], status: str | None
    ) -> DeliveryState:
        """The state after a session.

        Args:
            delivered: extras that MLflow got in the session.
            undelivered: extras that it did not get.
            status: how the run ended; None if that is not to be changed.
        """
        # A later file or value takes the place of an earlier one of the same name.
        kept = {extra.name: extra for extra in (*self.delivered, *delivered)}
        return replace(
            self,
            delivered=tuple(kept.values()),
            undelivered=tuple(undelivered),
            status=status or self.status,
        )


def _write_extra(extra: Extra) -> dict[str, Any]:
    kind = next(kind for kind, of_kind in _KINDS.items() if isinstance(extra, of_kind))
    return {"kind": kind, **asdict(extra)}


def _read_extra(stored: Mapping[str, Any]) -> Extra:
    fields = {name: value for name, value in stored.items() if name != "kind"}
    if "values" in fields:
        fields["values"] = tuple((name, value) for name, value in fields["values"])
    extra: Extra = _KINDS[stored["kind"]](**fields)
    return extra


def describe(study: Study, destination: Destination, state: DeliveryState) -> StudyDescription:
    """What MLflow is told about a study.

    Args:
        study: the study; its user attributes ``problem``, ``problem_fingerprint``, ``sampler``,
            ``engine``, ``baseline`` and ``self_check`` become parameters of its run, the last
            metrics as well, and ``parent_study`` names the study under whose run it is put.
        destination: where it goes.
        state: what the storage knows.
    """
    attributes = study.user_attrs
    parameters: dict[str, str] = {}
    for name in DESCRIBING_ATTRIBUTES:
        if name in attributes:
            parameters |= flatten(attributes[name], name)
    parameters |= dict(destination.parameters)
    tags = {f"version.{name}": version for name, version in state.versions}
    tags |= {
        "mlflow.user": _user(),
        "mlflow.source.name": sys.argv[0] or "python",
        "mlflow.source.type": "LOCAL",
    }
    tags |= dict(destination.tags)
    return StudyDescription(
        name=study.study_name,
        identity=state.identity,
        tracking_uri=destination.tracking_uri,
        experiment_name=destination.experiment_name,
        trial_runs=destination.trial_runs,
        all_runs_below=state.all_runs_below or 0,
        parameters=tuple(parameters.items()),
        tags=tuple(tags.items()),
        started_ms=_started_ms(study),
        is_live=destination.is_live,
        parent_identity=_identity_of_parent(study),
        metrics=_self_check_metrics(attributes.get(_SELF_CHECK)),
    )


def _self_check_metrics(self_check: Any) -> tuple[tuple[str, float], ...]:
    if not isinstance(self_check, Mapping):
        return ()
    return tuple(
        (f"self_check_{name}_percent", 100.0 * float(self_check[name]))
        for name in _SELF_CHECK_METRICS
        if self_check.get(name) is not None
    )


def _identity_of_parent(study: Study) -> str | None:
    name = study.user_attrs.get(PARENT_STUDY)
    if name is None:
        return None
    try:
        parent = optuna.load_study(study_name=name, storage=study._storage)
    except KeyError:  # deleted, or copied elsewhere without it
        return None
    state = DeliveryState.read(parent)
    return None if state is None else state.identity


def flatten(value: Any, name: str) -> dict[str, str]:
    """Parameters of nested mappings: names joined by dots, other values as JSON."""
    if isinstance(value, Mapping):
        flat: dict[str, str] = {}
        for key, item in value.items():
            flat |= flatten(item, f"{name}.{key}")
        return flat
    text = value if isinstance(value, str) else json.dumps(value)
    return {_FORBIDDEN_IN_NAMES.sub("_", name): text}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in containers
        return "unknown"


def _started_ms(study: Study) -> int:
    """Start of the first trial; now, if it has not started."""
    try:
        storage = study._storage
        first = storage.get_trial_id_from_study_id_trial_number(study._study_id, 0)
        started_ms = milliseconds(storage.get_trial(first).datetime_start)
    except KeyError:
        started_ms = 0
    return started_ms or int(time.time() * 1000)
