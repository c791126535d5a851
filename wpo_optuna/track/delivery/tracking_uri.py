"""MLflow's tracking URI: what is accepted, checked before anything is written."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.track.delivery.storage_address import file_of, storage_url

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SERVERS = ("http", "https", "databricks", "databricks-uc", "uc")
_VARIABLE = "MLFLOW_TRACKING_URI"
_DEFAULT = "sqlite:///mlflow.db"


def check_tracking_uri(uri: str | None) -> None:
    """Refuses a tracking URI that MLflow does not take; for None that of the environment.

    Raises:
        InvalidArgument: it is of another kind, or its database driver is not installed.
    """
    effective = uri if uri is not None else os.environ.get(_VARIABLE)
    if not effective:
        return
    named = f"{'tracking_uri' if uri is not None else _VARIABLE} = {masked(effective)!r}"
    scheme = urlsplit(effective).scheme.partition("+")[0]
    if scheme in ("", "file") and effective not in _SERVERS:
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("1", "true"):
            raise InvalidArgument(
                f"{named}: MLflow keeps runs in directories no longer; give a database such as "
                f"{_DEFAULT} or a server such as http://127.0.0.1:5000."
            )
        return
    plugins = {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}
    if scheme not in {*DATABASES, *_SERVERS, *plugins} and effective not in _SERVERS:
        raise InvalidArgument(
            f"{named}: accepted are URIs that begin with "
            f"{', '.join(name + ':' for name in (*_SERVERS[:2], *DATABASES))}."
        )
    if scheme in DATABASES[1:]:
        _check_driver(named, effective, scheme)


def refuse_file_of(storage: BaseStorage, uri: str | None) -> None:
    """Refuses the file of a study's own storage: MLflow cannot keep its tables there.

    Args:
        storage: the study's storage.
        uri: MLflow's tracking URI; None for MLflow's default.

    Raises:
        InvalidArgument: the URI names the storage's file.
    """
    url = storage_url(storage)
    file = None if url is None else file_of(url)
    variable = os.environ.get(_VARIABLE)
    if file is None or file_of(uri or variable or _DEFAULT) != file:
        return
    if uri:
        named = f"tracking_uri = {uri!r}"
    elif variable:
        named = f"{_VARIABLE} = {variable!r}"
    else:
        named = f"tracking_uri = {uri!r}, which is MLflow's default {_DEFAULT}"
    raise InvalidArgument(
        f"{named}: Optuna keeps the study in this file, and MLflow needs one of its own; accepted "
        "is another file such as sqlite:///tracking.db, or a server."
    )


def masked(uri: str) -> str:
    """The URI for people to read: without its password."""
    if "@" not in uri and "?" not in uri:
        return uri  # without what it costs to import Optuna's storages
    from wpo_optuna.storage import masked_url

    return masked_url(uri)


def without_password(text: str, uri: str) -> str:
    """Another program's message about a URI, without the URI's password."""
    text = text.replace(uri.rstrip("/"), masked(uri).rstrip("/"))
    password = urlsplit(uri).password
    return text.replace(f":{password}@", ":***@") if password else text


def _check_driver(named: str, uri: str, scheme: str) -> None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    from wpo_optuna.storage import _DRIVER_PACKAGES

    packages = {**_DRIVER_PACKAGES, "mssql": {"pyodbc": "pyodbc", "pymssql": "pymssql"}}[scheme]
    try:
        dialect = make_url(uri).get_dialect()
    except (ArgumentError, ValueError):  # no such driver, or the port is no number
        raise InvalidArgument(
            f"{named}: is no database that SQLAlchemy knows; accepted is "
            f"{scheme}://USER:PASSWORD@HOST/NAME, or {scheme} with +{', +'.join(packages)}."
        ) from None
    try:
        dialect.import_dbapi()
    except ImportError as error:
        package = packages.get(dialect.driver, dialect.driver)
        raise InvalidArgument(
            f"{named}: its database driver is not installed; run `pip install '{package}'`."
        ) from error
