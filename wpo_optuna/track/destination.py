"""Where a study is recorded in MLflow, checked before anything is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from wpo_optuna.errors import InvalidArgument, check_choice, first_line
from wpo_optuna.study.attributes import DESTINATION

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

TRIAL_RUNS = ("auto", "all", "best", "none")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")

_SERVERS = ("http", "https", "databricks", "databricks-uc", "uc")
_VARIABLE = "MLFLOW_TRACKING_URI"
_DEFAULT = "sqlite:///mlflow.db"
_LONGEST_EXPERIMENT_NAME = 500
_LONGEST_NAME = 250
_LONGEST_TAG = 8000


@dataclass(frozen=True)
class Destination:
    """Where and how a study is recorded.

    Attributes:
        tracking_uri: MLflow's tracking URI; None for MLflow's default.
        experiment_name: the experiment of the study's run.
        trial_runs: trials with a run of their own: ``all``, ``best`` for those that improved the
            best, ``none``, or ``auto``: all of a study of at most 1000 trials, otherwise the best.
        parameters: further parameters of the study's run.
        tags: further tags of the study's run.
        planned_trials: how many trials the study will have, if that is known.

    Raises:
        InvalidArgument: one of them cannot be used.
    """

    tracking_uri: str | None = None
    experiment_name: str = "wpo"
    trial_runs: str = "auto"
    parameters: tuple[tuple[str, str], ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    planned_trials: int | None = None

    def __post_init__(self) -> None:
        check_tracking_uri(self.tracking_uri)
        if not 0 < len(self.experiment_name) <= _LONGEST_EXPERIMENT_NAME:
            raise InvalidArgument(
                f"experiment_name = {self.experiment_name!r}: a name of 1 to "
                f"{_LONGEST_EXPERIMENT_NAME} characters is needed."
            )
        check_choice("trial_runs", self.trial_runs, TRIAL_RUNS)
        if self.planned_trials is not None and self.planned_trials < 0:
            raise InvalidArgument(
                f"planned_trials = {self.planned_trials}: a number of trials or None is needed."
            )
        for name, value in self.tags:
            if not 0 < len(name) <= _LONGEST_NAME or len(value) > _LONGEST_TAG:
                raise InvalidArgument(
                    f"tags: {name!r} has a name of {len(name)} and a value of {len(value)} "
                    f"characters; MLflow takes 1 to {_LONGEST_NAME} and at most {_LONGEST_TAG}."
                )

    @property
    def uri(self) -> str:
        """The tracking URI that is meant."""
        return self.tracking_uri or os.environ.get(_VARIABLE) or _DEFAULT

    def to_json(self) -> dict[str, Any]:
        """Its fields without the password, to be kept with the study."""
        return asdict(self) | {
            "tracking_uri": None if self.tracking_uri is None else masked(self.tracking_uri),
            "parameters": dict(self.parameters),
            "tags": dict(self.tags),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Destination:
        """The destination that :meth:`to_json` wrote."""
        pairs = {name: tuple(dict(fields[name]).items()) for name in ("parameters", "tags")}
        return cls(**{**fields, **pairs})

    def remember(self, study: Study) -> None:
        """Keeps it with the study, without its password."""
        if study.user_attrs.get(DESTINATION) != self.to_json():
            study.set_user_attr(DESTINATION, self.to_json())

    @classmethod
    def of_study(
        cls,
        study: Study,
        tracking_uri: str | None = None,
        experiment_name: str | None = None,
        trial_runs: str | None = None,
    ) -> Destination:
        """Where the arguments say, and where they are None, where the study has been recorded.

        Raises:
            InvalidArgument: an argument cannot be used, or a password is lacking.
        """
        fields = cls().to_json() | dict(study.user_attrs.get(DESTINATION, {}))
        given = {
            "tracking_uri": tracking_uri,
            "experiment_name": experiment_name,
            "trial_runs": trial_runs,
        }
        fields |= {name: value for name, value in given.items() if value is not None}
        if "***" in (fields["tracking_uri"] or ""):
            raise InvalidArgument(
                f"tracking_uri = {fields['tracking_uri']!r}: it is kept and shown without the "
                "password; give --tracking-uri with it."
            )
        return cls.from_json(fields)


def check_tracking_uri(uri: str | None) -> None:
    """Refuses a tracking URI that MLflow does not take; for None that of the environment.

    Raises:
        InvalidArgument: it is of another kind, or its database driver is not installed.
    """
    effective = uri if uri is not None else os.environ.get(_VARIABLE)
    if not effective or effective in _SERVERS:
        return
    named = f"{'tracking_uri' if uri is not None else _VARIABLE} = {masked(effective)!r}"
    scheme = urlsplit(effective).scheme.partition("+")[0]
    if scheme in ("", "file"):
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("1", "true"):
            raise InvalidArgument(
                f"{named}: MLflow keeps runs in directories no longer; give a database such as "
                f"{_DEFAULT} or a server such as http://127.0.0.1:5000."
            )
        return
    plugins = {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}
    if scheme not in {*DATABASES, *_SERVERS, *plugins}:
        raise InvalidArgument(
            f"{named}: accepted are URIs that begin with "
            f"{', '.join(name + ':' for name in (*_SERVERS[:2], *DATABASES))}."
        )
    if scheme in DATABASES:
        _check_database(named, effective)


def _check_database(named: str, uri: str) -> None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except ImportError as error:
        raise InvalidArgument(f"{named}: its driver is not installed ({error}).") from error
    except (ArgumentError, ValueError) as error:
        raise InvalidArgument(
            f"{named}: is no database that SQLAlchemy knows ({first_line(error)})."
        ) from None


def refuse_file_of(storage: BaseStorage, tracking_uri: str | None) -> None:
    """Refuses the file of a study's own storage: MLflow cannot keep its tables there.

    Args:
        storage: the study's storage.
        tracking_uri: MLflow's tracking URI; None for MLflow's default.

    Raises:
        InvalidArgument: the URI names the storage's file.
    """
    from wpo_optuna.storage import storage_url

    url = storage_url(storage)
    file = None if url is None else file_of(url)
    effective = Destination(tracking_uri).uri
    if file is None or file_of(effective) != file:
        return
    named = f"tracking_uri = {effective!r}"
    if not tracking_uri:
        is_set = bool(os.environ.get(_VARIABLE))
        named = f"{_VARIABLE} = {effective!r}" if is_set else f"{named}, which is MLflow's default"
    raise InvalidArgument(
        f"{named}: Optuna keeps the study in this file, and MLflow needs one of its own; accepted "
        "is another file such as sqlite:///tracking.db, or a server."
    )


def file_of(url: str) -> Path | None:
    """The file that a storage's or tracking URI names; None if it names none."""
    scheme, _, location = url.partition(":///")
    path = location.partition("?")[0]
    if scheme.partition("+")[0] not in ("sqlite", "journal") or path in ("", ":memory:"):
        return None
    return Path(path).resolve()


def masked(uri: str) -> str:
    """The URI for people to read: without its password."""
    from wpo_optuna.storage import masked_url

    return masked_url(uri)


def without_password(text: str, uri: str) -> str:
    """Another program's message about a URI, without the URI's password."""
    text = text.replace(uri.rstrip("/"), masked(uri).rstrip("/"))
    password = urlsplit(uri).password
    return text.replace(f":{password}@", ":***@") if password else text
