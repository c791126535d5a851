"""Which files are accepted, and that a refused file is left as it was."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.study import StudyDirection

from wpo_optuna.errors import InvalidArgument, WeightProgrammingError
from wpo_optuna.sqlite import SQLiteStorage, StorageError, UnknownSchemaError, schema
from wpo_optuna.sqlite.file_systems import network_file_system
from wpo_optuna.storage import StorageWarning, open_storage

MINIMIZE = [StudyDirection.MINIMIZE]


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def _refusal(path: Path) -> str:
    """The sentence, which must leave the directory as it was."""
    before = _files(path.parent) if path.parent.is_dir() else {}
    with pytest.raises(WeightProgrammingError) as caught:
        SQLiteStorage(path, busy_timeout=0.1)
    assert (_files(path.parent) if path.parent.is_dir() else {}) == before
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def _run(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    message = _refusal(tmp_path / "missing" / "study.db")
    assert f"directory {tmp_path / 'missing'} does not exist" in message
    assert not (tmp_path / "missing").exists()


def test_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.db").mkdir()
    assert "is a directory" in _refusal(tmp_path / "study.db")


def test_a_device_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="not a regular file"):
        SQLiteStorage("/dev/null")


def _as_unprivileged_user(test: object) -> None:
    """Run in a child process without root's right to write anywhere."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            test()  # type: ignore[operator]
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("protected", ["file", "directory"])
def test_what_may_not_be_written_is_refused(memory_directory: Path, protected: str) -> None:
    memory_directory.chmod(0o777)
    path = memory_directory / "study.db"
    if protected == "file":
        SQLiteStorage(path).close()
        path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
    else:
        memory_directory.chmod(0o555)

    def refused() -> None:
        message = _refusal(path)
        assert "no permission" in message
        assert ("directory" in message) == (protected == "directory")

    try:
        _as_unprivileged_user(refused)
    finally:
        memory_directory.chmod(0o777)


@pytest.mark.parametrize(
    "content", [b"tnmse,baseline\n0.1,0.2\n", b"\x00" * 4096, b"SQLite format 2\x00", b"S"]
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    assert "not an SQLite database" in _refusal(path)


def test_a_file_with_only_sqlites_first_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    path.write_bytes(b"SQLite format 3\x00" + b"\xff" * 5000)
    assert "SQLite database" in _refusal(path)


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
def test_another_programs_database_is_refused(tmp_path: Path, journal_mode: str) -> None:
    path = tmp_path / "mlflow.db"
    _run(
        path,
        f"PRAGMA journal_mode = {journal_mode}",
        "CREATE TABLE alembic_version (version_num TEXT)",
        "CREATE TABLE experiments (experiment_id INTEGER)",
        "CREATE TABLE metrics (key TEXT)",
        "CREATE TABLE runs (run_uuid TEXT)",
    )
    message = _refusal(path)
    assert "an SQLite database of another program" in message
    assert "tables alembic_version, experiments, metrics, …" in message


def test_another_programs_database_in_use_is_refused_and_its_log_left_alone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "other.db"
    owner = sqlite3.connect(path)
    owner.execute("PRAGMA journal_mode = WAL")
    owner.execute("CREATE TABLE notes (text TEXT)")
    owner.commit()
    assert (tmp_path / "other.db-wal").stat().st_size > 0
    before = _files(tmp_path)
    del before["other.db-shm"]  # Where readers say how far they have read.
    with pytest.raises(InvalidArgument, match="another program"):
        SQLiteStorage(path)
    after = _files(tmp_path)
    del after["other.db-shm"]
    assert after == before
    owner.close()


@pytest.mark.parametrize("version", ["v3.0.0.d", "v9.0.0.a"])
def test_another_schema_version_is_refused_with_the_remedy(tmp_path: Path, version: str) -> None:
    path = tmp_path / "study.db"
    SQLiteStorage(path).close()
    _run(path, f"UPDATE alembic_version SET version_num = '{version}'")
    message = _refusal(path)
    assert f"its schema is {version}" in message
    assert f"optuna storage upgrade --storage sqlite:///{path}" in message
    assert "newer Optuna" in message


def test_a_half_made_optuna_database_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    _run(path, "CREATE TABLE studies (study_id INTEGER)")
    assert "storage upgrade" in _refusal(path)


def test_an_optuna_database_with_tables_of_the_users_own_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    SQLiteStorage(path).create_new_study(MINIMIZE, "kept")
    _run(path, "CREATE TABLE notes (text TEXT)", "CREATE VIEW v AS SELECT * FROM notes")
    assert SQLiteStorage(path).get_study_id_from_name("kept") == 1


@pytest.mark.parametrize("make", ["missing", "no bytes", "no tables"])
def test_an_empty_place_becomes_what_optuna_itself_would_make(tmp_path: Path, make: str) -> None:
    path = tmp_path / "study 100% #1?.db"
    if make == "no bytes":
        path.touch()
    elif make == "no tables":
        _run(path, "CREATE TABLE t (x)", "DROP TABLE t")
    SQLiteStorage(path).close()
    RDBStorage(f"sqlite:///{tmp_path / 'plain.db'}")
    dumps = []
    for name in (path.name, "plain.db"):
        connection = sqlite3.connect(tmp_path / name)
        dumps.append(sorted(connection.iterdump()))
        connection.close()
    assert dumps[0] == dumps[1]


def test_a_database_locked_for_longer_than_the_timeout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    RDBStorage(f"sqlite:///{path}")
    owner = sqlite3.connect(path, isolation_level=None)
    owner.execute("BEGIN EXCLUSIVE")
    before = path.read_bytes()
    with pytest.raises(StorageError, match="locked by another program"):
        SQLiteStorage(path, busy_timeout=0.1)
    assert path.read_bytes() == before
    owner.execute("ROLLBACK")
    assert SQLiteStorage(path).get_all_studies() == []
    owner.close()


def test_while_others_read_the_journal_mode_stays_and_writing_works(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    RDBStorage(f"sqlite:///{path}")
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM studies").fetchone()
    storage = SQLiteStorage(path)
    assert storage.get_all_studies() == []
    connection = storage._database._open()
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    reader.execute("ROLLBACK")
    storage.create_new_trial(storage.create_new_study(MINIMIZE))
    assert RDBStorage(f"sqlite:///{path}").get_n_trials(1) == 1
    storage.close()
    assert storage.get_n_trials(1) == 1
    connection = storage._database._open()
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    reader.close()


def test_an_optuna_with_an_unknown_schema_falls_back_to_its_own_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "KNOWN_SCHEMA_VERSIONS", frozenset({"v2.6.0.a"}))
    with pytest.raises(UnknownSchemaError, match=r"has the database schema v3\.2\.0\.a"):
        SQLiteStorage(tmp_path / "study.db")
    assert list(tmp_path.iterdir()) == []
    with pytest.warns(StorageWarning, match=r"Optuna's own RDBStorage is used"):
        storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}")
    study = optuna.create_study(storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    _run(tmp_path / "other.db", "CREATE TABLE notes (text TEXT)")
    with pytest.raises(InvalidArgument, match="another program"):
        open_storage(f"sqlite:///{tmp_path / 'other.db'}")


def test_the_tables_known_by_heart_are_those_that_the_installed_optuna_makes() -> None:
    by_heart, tried_out = schema.installed_schema(), schema._tried_out()
    assert (by_heart.version, by_heart.tables) == (tried_out.version, tried_out.tables)


def test_an_optuna_of_the_known_schema_is_not_asked_for_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema.installed_schema.cache_clear()
    monkeypatch.setattr(schema, "_tried_out", lambda: pytest.fail("asked"))
    SQLiteStorage(tmp_path / "study.db").close()


def _migration(folder: Path, version: str, older: str | None, form: str = "{} = {!r}\n") -> None:
    folder.mkdir(exist_ok=True)
    text = form.format("revision", version) + form.format("down_revision", older)
    (folder / f"{version}.py").write_text(f'"""Revises {older}"""\n{text}')


def test_the_newest_migration_is_the_installed_schema(tmp_path: Path) -> None:
    assert schema.head_of_migrations(schema._MIGRATIONS) in schema.KNOWN_SCHEMA_VERSIONS
    migrations = tmp_path / "versions"
    assert schema.head_of_migrations(migrations) is None
    _migration(migrations, "v1", None)
    _migration(migrations, "v3", "v2", '{}: str = "{}"\n')
    _migration(migrations, "v2", "v1")
    assert schema.head_of_migrations(migrations) == "v3"


@pytest.mark.parametrize("form", ["{} = make({!r})\n", "{} = [{!r}]\n", "# {} {}\n"])
def test_a_migration_in_another_manner_makes_optuna_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    migrations = tmp_path / "versions"
    _migration(migrations, "v3.2.0.a", None)
    _migration(migrations, "v9.0.0.a", "v3.2.0.a", form)
    assert schema.head_of_migrations(migrations) is None
    monkeypatch.setattr(schema, "_MIGRATIONS", migrations)
    newer = schema.OptunaSchema("v9.0.0.a", frozenset(), ())
    monkeypatch.setattr(schema, "_tried_out", lambda: newer)
    schema.installed_schema.cache_clear()
    try:
        with pytest.raises(UnknownSchemaError, match=r"schema v9\.0\.0\.a"):
            SQLiteStorage(tmp_path / "study.db")
    finally:
        schema.installed_schema.cache_clear()


@pytest.mark.parametrize(
    ("argument", "value"),
    [("busy_timeout", 0), ("heartbeat_interval", -1), ("grace_period", 0)],
)
def test_times_must_be_positive(tmp_path: Path, argument: str, value: int) -> None:
    with pytest.raises(InvalidArgument, match=rf"{argument}: {value} s; accepted is a positive"):
        SQLiteStorage(tmp_path / "study.db", **{argument: value})
    assert list(tmp_path.iterdir()) == []


_MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /home rw - nfs4 server:/home rw
31 30 8:2 / /home/local rw - xfs /dev/sdb1 rw
32 22 0:41 / /mnt/with\\040space rw master:2 - fuse.sshfs me@host:/ rw
33 22 8:3 / /data rw - ext4 /dev/sdc1 rw
34 33 0:42 / /data rw - lustre lnet:/scratch rw
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/var/study.db", None),
        ("/home/me/study.db", "nfs4"),
        ("/homework/study.db", None),
        ("/home/local/study.db", None),
        ("/mnt/with space/study.db", "fuse.sshfs"),
        ("/data/study.db", "lustre"),
    ],
)
def test_network_file_systems_are_recognised_by_the_nearest_mount(
    path: str, expected: str | None
) -> None:
    assert network_file_system(Path(path), _MOUNTS) == expected


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="only Linux lists its mounts")
def test_this_machines_own_mounts_can_be_read() -> None:
    assert network_file_system(Path("/proc/self")) is None
