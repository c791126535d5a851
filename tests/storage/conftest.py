"""The databases that the storage's tests run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from postgresql_server import PostgresqlServer


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    server = PostgresqlServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgresql(postgresql_server: PostgresqlServer) -> Callable[[], str]:
    """Empties the database of a server of the tests' own, and says its URL."""
    return postgresql_server.empty


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
