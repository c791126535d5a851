"""Where a study is recorded in MLflow, checked before anything is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from wpo_optuna.errors import InvalidArgument, check_choice, first_line
from wpo_optuna.storage import masked_url, storage_url
from wpo_optuna.study.attributes import DESTINATION

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

    from wpo_optuna.study.settings import RecordSettings

TRIAL_RUNS = ("auto", "all", "best", "none")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")

_SERVERS = ("http", "https", "databricks", "databricks-uc", "uc")
_VARIABLE = "MLFLOW_TRACKING_URI"
DEFAULT_URI = "sqlite:///mlflow.db"
# MLflow's in its database.
_LONGEST_NAME = 256


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

    Raises:
        InvalidArgument: one of them cannot be used.
    """

    tracking_uri: str | None = None
    experiment_name: str = "wpo"
    trial_runs: str = "auto"
    parameters: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_tracking_uri(self.uri, _named(self.tracking_uri))
        name = self.experiment_name
        if not (name.strip() and name.isprintable() and len(name) <= _LONGEST_NAME):
            shown = name if len(name) <= _LONGEST_NAME else f"{name[:20]}..."
            raise InvalidArgument(
                f"experiment_name = {shown!r}: a name is needed, of at most {_LONGEST_NAME} "
                "printable characters."
            )
        check_choice("trial_runs", self.trial_runs, TRIAL_RUNS)

    @property
    def uri(self) -> str:
        """The tracking URI that is meant."""
        return self.tracking_uri or os.environ.get(_VARIABLE) or DEFAULT_URI

    def remember(self, study: Study) -> None:
        """Keeps its fields with the study, without the password."""
        uri = None if self.tracking_uri is None else masked_url(self.tracking_uri)
        fields = asdict(self) | {"tracking_uri": uri}
        if study.user_attrs.get(DESTINATION) != fields:
            study.set_user_attr(DESTINATION, fields)

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
        given = {
            "tracking_uri": tracking_uri,
            "experiment_name": experiment_name,
            "trial_runs": trial_runs,
        }
        fields = dict(study.user_attrs.get(DESTINATION, {}))
        fields |= {name: value for name, value in given.items() if value is not None}
        if "***" in (fields.get("tracking_uri") or ""):
            raise InvalidArgument(
                f"tracking_uri = {fields['tracking_uri']!r}: it is kept and shown without the "
                "password; give --tracking-uri with it."
            )
        return cls(**fields)


def destination_of(settings: RecordSettings) -> Destination | None:
    """Where a study with these settings is tracked; None if nowhere.

    Raises:
        InvalidArgument: MLflow does not take the address or a name.
    """
    if settings.tracking_uri is False:
        return None
    uri = settings.tracking_uri if isinstance(settings.tracking_uri, str) else None
    return Destination(uri, settings.experiment, settings.trial_runs)


def _named(tracking_uri: str | None) -> str:
    """How a message names the tracking URI: as the argument, or as what stands in its place."""
    if tracking_uri:
        return f"tracking_uri = {masked_url(tracking_uri)!r}"
    if os.environ.get(_VARIABLE):
        return f"{_VARIABLE} = {masked_url(os.environ[_VARIABLE])!r}"
    return f"tracking_uri = {DEFAULT_URI!r}, which is MLflow's default"


def _check_tracking_uri(uri: str, named: str) -> None:
    """Refuses what MLflow would refuse, without importing it: that takes seconds."""
    scheme = urlsplit(uri).scheme.partition("+")[0]
    plugins = {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}
    if (scheme or uri) not in {*DATABASES, *_SERVERS, *plugins}:
        raise InvalidArgument(
            f"{named}: accepted is a database such as {DEFAULT_URI}, or a server such as "
            f"http://127.0.0.1:5000; the kinds are {', '.join((*_SERVERS[:2], *DATABASES))}."
        )
    if scheme in DATABASES:
        try:
            make_url(uri).get_dialect().import_dbapi()
        except (ImportError, ArgumentError, ValueError) as error:
            reason = without_password(first_line(error), uri)
            raise InvalidArgument(f"{named}: SQLAlchemy has no driver for it ({reason}).") from None


def refuse_file_of(storage: BaseStorage, tracking_uri: str | None) -> None:
    """Refuses the file of a study's own storage: MLflow cannot keep its tables there.

    Args:
        storage: the study's storage.
        tracking_uri: MLflow's tracking URI; None for MLflow's default.

    Raises:
        InvalidArgument: the URI names the storage's file.
    """
    url = storage_url(storage)
    file = None if url is None else file_of(url)
    if file is not None and file_of(Destination(tracking_uri).uri) == file:
        raise InvalidArgument(
            f"{_named(tracking_uri)}: Optuna keeps the study in this file, and MLflow needs one of "
            "its own; accepted is another file such as sqlite:///tracking.db, or a server."
        )


def file_of(url: str) -> Path | None:
    """The file that a storage's or tracking URI names; None if it names none."""
    scheme, _, location = url.partition(":///")
    path = location.partition("?")[0]
    if scheme.partition("+")[0] not in ("sqlite", "journal") or path in ("", ":memory:"):
        return None
    return Path(path).resolve()


def without_password(text: str, uri: str) -> str:
    """Another program's message about a URI, without the URI's password."""
    text = text.replace(uri.rstrip("/"), masked_url(uri).rstrip("/"))
    password = urlsplit(uri).password
    return text.replace(f":{password}@", ":***@") if password else text
