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

from wpo_optuna.delivery.destination import Destination
from wpo_optuna.delivery.messages import (
    Artifact,
    Extra,
    Metrics,
    StudyDescription,
    Tags,
    Text,
    milliseconds,
)
from wpo_optuna.versions import versions

if TYPE_CHECKING:
    from optuna import Study

# User attributes of a study that become parameters of its run.
DESCRIBING_ATTRIBUTES = (
    "sampler", "sampler_options", "seed", "engine", "baseline", "problem_fingerprint", "problem",
)  # fmt: skip
# The user attribute that names the study, in the same storage, under whose run this one's is put.
PARENT_STUDY = "parent_study"
_STATE = "wpo:mlflow"
_SETTLING_S = 0.3
_FORBIDDEN_IN_NAMES = re.compile(r"[^\w\-. :/]", re.ASCII)
_KINDS = {"artifact": Artifact, "text": Text, "metrics": Metrics, "tags": Tags}


@dataclass(frozen=True)
class DeliveryState:
    """What a study's storage keeps about its delivery, so that a lost run can be rebuilt.

    Attributes:
        identity: tells the study from others of the same name, also in a copied database.
        versions: the packages that ran the study.
        status: how the study's run ended; None if it has not.
        delivered: everything beside the trials that MLflow got.
        undelivered: what it has still to get.
    """

    identity: str
    versions: tuple[tuple[str, str], ...]
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
            status=stored["status"],
            delivered=tuple(_read_extra(extra) for extra in stored["delivered"]),
            undelivered=tuple(_read_extra(extra) for extra in stored["undelivered"]),
        )

    @classmethod
    def read_or_create(cls, study: Study) -> DeliveryState:
        """What the storage has, a new state being written for a study never delivered."""
        state = cls.read(study)
        if state is None:
            current = study.user_attrs.get("versions") or versions()
            cls(identity=uuid.uuid4().hex, versions=tuple(current.items())).write(study)
            # Another process may do the same at the same time: the later one's is everybody's.
            time.sleep(_SETTLING_S)
            state = cls.read(study)
            assert state is not None
        return state

    def write(self, study: Study) -> None:
        """Replaces what the storage has."""
        stored = {
            "identity": self.identity,
            "versions": dict(self.versions),
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
            ``engine`` and ``baseline`` become parameters of its run, and ``parent_study`` names
            the study under whose run it is put.
        destination: where it goes.
        state: what the storage knows.
    """
    attributes = study.user_attrs
    n_trials = study._storage.get_n_trials(study._study_id)
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
        planned_trials=max(destination.planned_trials, n_trials),
        parameters=tuple(parameters.items()),
        tags=tuple(tags.items()),
        started_ms=_started_ms(study),
        is_live=destination.is_live,
        parent_identity=_identity_of_parent(study),
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
