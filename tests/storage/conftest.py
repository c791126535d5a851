"""The databases that the storage's tests run on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
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


@pytest.fixture
def grpc_url() -> str:
    """The URL of a proxy of an empty storage in memory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    serve = partial(optuna.storages.run_grpc_proxy_server, optuna.storages.InMemoryStorage())
    options = {"host": "127.0.0.1", "port": port}
    threading.Thread(target=serve, kwargs=options, daemon=True).start()
    proxy = optuna.storages.GrpcStorageProxy(host="127.0.0.1", port=port)
    proxy.wait_server_ready(timeout=60)
    return f"grpc://127.0.0.1:{port}"


@pytest.fixture(params=["sqlite", "postgresql", "journal", "grpc", "memory"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a storage of any kind."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql")()
    if request.param == "grpc":
        return request.getfixturevalue("grpc_url")
    return {
        "sqlite": f"sqlite:///{tmp_path}/studies.db",
        "journal": f"journal:///{tmp_path}/studies.log",
        "memory": "memory",
    }[request.param]
