"""Storage URLs: what each opens, and one sentence for each that cannot be opened."""

from __future__ import annotations

import multiprocessing
import os
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.trial import TrialState

from wpo_optuna.errors import WeightProgrammingError
from wpo_optuna.storage import (
    load_study,
    masked_url,
    network_file_system,
    open_storage,
    storage_url,
)


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run_a_study(storage: optuna.storages.BaseStorage) -> None:
    study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert [trial.state for trial in study.trials[-2:]] == [TrialState.COMPLETE] * 2


@pytest.mark.parametrize(
    ("url", "kind", "file"),
    [
        ("sqlite:///wpo.db", RDBStorage, "wpo.db"),
        ("sqlite:///{}/absolute.db", RDBStorage, "absolute.db"),
        ("sqlite:///with space #1.db", RDBStorage, "with space #1.db"),
        ("sqlite:///wpo.db?timeout=30", RDBStorage, "wpo.db"),
        ("sqlite+pysqlite:///wpo.db", RDBStorage, "wpo.db"),
        ("journal:///study.log", JournalStorage, "study.log"),
        ("journal:///{}/study.log", JournalStorage, "study.log"),
        ("memory", InMemoryStorage, None),
        ("sqlite://", InMemoryStorage, None),
        ("sqlite:///:memory:", InMemoryStorage, None),
    ],
)
def test_each_url_opens_its_storage_where_it_says_and_opens_it_again(
    working_directory: Path, url: str, kind: type, file: str | None
) -> None:
    url = url.format(working_directory)
    storage = open_storage(url)
    assert isinstance(storage, kind)
    _run_a_study(storage)
    names = {path.name for path in working_directory.iterdir()}
    if file is None:
        assert names == set()
    else:
        assert file in names
        assert {name for name in names if not name.startswith(file)} == set()
        again = open_storage(url)
        _run_a_study(again)
        assert again.get_n_trials(again.get_study_id_from_name("s")) == 4
    elsewhere = storage_url(storage)
    assert (elsewhere is None) == (file is None)
    if elsewhere is not None:
        os.chdir("/")
        assert len(load_study(elsewhere, "s").trials) == 4


def _files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}


def _refusal(url: str) -> str:
    """The sentence with which a URL is refused, by the storage and by a stored study."""
    before = _files()
    for attempt in (lambda: load_study(url, "s"), lambda: open_storage(url)):
        with pytest.raises(WeightProgrammingError) as caught:
            attempt()
        assert _files() == before
    message = str(caught.value)
    assert message.startswith("storage ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "url",
    [
        "",
        "wpo.db",
        "./wpo.db",
        "redis://localhost",
        "oracle://u:p@h/n",
        "sqlite",
        "sqlite:wpo.db",
        "Memory",
        "journal+x:///a",
        "grpc+x://host:1",
        "postgres://me:secret@localhost/wpo",
        "sqlite://wpo.db",
        "journal://study.log",
        "grpc://host",
        "grpc://:1",
        "grpc://h:1/x",
    ],
)
def test_an_unknown_kind_is_refused_with_all_that_are_accepted(url: str) -> None:
    message = _refusal(url)
    for accepted in ("sqlite:///FILE", "memory", "journal:///FILE", "grpc://", "postgresql://"):
        assert accepted in message
    assert repr(masked_url(url)) in message


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite:///missing/study", "no directory"),
        ("journal:///missing/study", "No such file or directory"),
        ("sqlite:///place", "unable to open database file"),
        ("journal:///place", "Is a directory"),
        ("sqlite:///notes.txt", "file is not a database"),
        ("sqlite:///notes.txt?timeout=1", "file is not a database"),
        ("journal:///notes.txt", "Expecting value"),
        ("postgresql+fast://u:secret@h/n", "Can't load plugin"),
        ("postgresql+psycopg://me:secret@localhost:1/wpo", ""),
        ("mysql+missing://me:secret@localhost:1/wpo", ""),
    ],
)
def test_what_cannot_be_opened_is_told_in_the_librarys_words(url: str, reason: str) -> None:
    Path("place").mkdir()
    Path("notes.txt").write_text("not a database, but long enough to be taken for a page\n" * 99)
    message = _refusal(url)
    assert re.search(rf"cannot be opened as an Optuna storage \(\w+: .*{reason}", message)
    assert "secret" not in message


def test_a_grpc_server_that_cannot_be_reached_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wpo_optuna.storage.urls._GRPC_TIMEOUT_S", 0.2)
    assert "cannot be opened" in _refusal("grpc://127.0.0.1:1")


def test_another_version_of_the_tables_is_refused_with_the_remedy() -> None:
    storage = RDBStorage("sqlite:///old.db")
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v3.0.0.d'")
        connection.exec_driver_sql("DROP TABLE trial_heartbeats")
    storage.engine.dispose()
    for url in ("sqlite:///old.db", "sqlite:///old.db?timeout=1"):
        assert "optuna storage upgrade" in _refusal(url)


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
def test_another_programs_database_is_refused(journal_mode: str) -> None:
    connection = sqlite3.connect("other.db")
    connection.execute(f"PRAGMA journal_mode = {journal_mode}")
    connection.execute("CREATE TABLE accounts (name TEXT)")
    connection.commit()
    connection.close()
    assert "another program, with a table accounts" in _refusal("sqlite:///other.db")


def test_a_missing_study_is_named_with_those_that_there_are(any_url: str) -> None:
    if any_url == "memory":
        return
    for name in ("digits-de", "digits-tpe"):
        optuna.create_study(storage=open_storage(any_url), study_name=name)
    assert load_study(any_url, "digits-de").study_name == "digits-de"
    with pytest.raises(WeightProgrammingError) as caught:
        load_study(any_url, "digit-de")
    message = str(caught.value)
    assert message.startswith("study_name = 'digit-de': ")
    assert "(did you mean 'digits-de'?); it has digits-de, digits-tpe" in message


def test_nothing_is_made_where_there_is_no_storage(
    postgresql: Callable[[], str], working_directory: Path
) -> None:
    for url in ("sqlite:///missing.db", "journal:///missing.log"):
        with pytest.raises(WeightProgrammingError, match="no such file"):
            load_study(url, "s")
    assert _files() == {}
    url = postgresql()
    with pytest.raises(WeightProgrammingError):
        load_study(url, "s")
    assert sqlalchemy.inspect(sqlalchemy.create_engine(url)).get_table_names() == []


def test_a_sqlite_file_is_written_safely_and_read_by_others_meanwhile() -> None:
    storage = open_storage("sqlite:///wpo.db")
    with storage.engine.connect() as connection:
        modes = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "busy_timeout")
        ]
    assert modes == ["wal", 2, 60_000]


def test_many_processes_may_make_the_same_new_database_at_once(url: str) -> None:
    def make() -> None:
        optuna.create_study(storage=open_storage(url), study_name="s", load_if_exists=True)

    processes = [multiprocessing.get_context("fork").Process(target=make) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert load_study(url, "s").trials == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/wpo.db", None),
        ("/home/shared/wpo.db", "nfs4"),
        ("/home/shared/local/wpo.db", None),
        ("/mnt/with space/wpo.db", "fuse.sshfs"),
        ("/mnt/with space", "fuse.sshfs"),
        ("/mnt/with", None),
    ],
)
def test_network_file_systems_are_recognised_by_the_nearest_mount(
    path: str, kind: str | None
) -> None:
    mounts = "\n".join(
        f"source {place} {kind} rw 0 0"
        for place, kind in (
            ("/", "ext4"),
            ("/home/shared", "nfs4"),
            ("/home/shared/local", "tmpfs"),
            ("/mnt/with\\040space", "fuse.sshfs"),
        )
    )
    assert network_file_system(Path(path), mounts) == kind
    assert network_file_system(Path(), None) in (None, network_file_system(Path("/")))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///wpo.db", "sqlite:///wpo.db"),
        ("sqlite:////data/me:you@home/wpo.db", "sqlite:////data/me:you@home/wpo.db"),
        ("memory", "memory"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql://me:s3cret@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("mysql+pymysql://me:p@ss/w:rd@host/db", "mysql+pymysql://me:***@host/db"),
        ("postgresql://:secret@host/db", "postgresql://:***@host/db"),
        (
            "postgresql://host/db?user=me&password=secret&sslmode=require",
            "postgresql://host/db?user=me&password=***&sslmode=require",
        ),
        ("https://me:token@mlflow.example.org", "https://me:***@mlflow.example.org"),
    ],
)
def test_passwords_are_masked(url: str, shown: str) -> None:
    assert masked_url(url) == shown


@given(
    user=st.from_regex(r"[a-z]{1,8}", fullmatch=True),
    password=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=12),
)
def test_no_password_survives_masking(user: str, password: str) -> None:
    masked = masked_url(f"postgresql://{user}:{password}@example.org:5432/studies")
    assert re.fullmatch(rf"postgresql://{user}:\*\*\*@example\.org:5432/studies", masked)
