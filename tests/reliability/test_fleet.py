"""Several workers on one study, and what happens to them.

The moments of kills and restarts are those of a busy machine; no outcome of a right study fails a
test here (false alarms: none).
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import optuna
import pytest
from optuna.trial import TrialState
from postgresql_server import PostgresqlServer
from workers import (
    HARDWARE,
    SMALL,
    STUDY,
    Worker,
    search,
    serve,
    start_study,
    study_with,
    wait_until_open,
)

from wpo_optuna.samplers import candidate_of
from wpo_optuna.storage import StorageWarning, load_study, open_storage


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresqlServer]:
    server = PostgresqlServer()
    yield server
    server.stop()


def assert_exact(study: optuna.Study, total: int) -> None:
    """Every trial of the study is completed, there are so many, and no two are the same."""
    assert [trial.number for trial in study.trials] == list(range(total))
    assert_completed(study, total)


def assert_completed(study: optuna.Study, total: int) -> None:
    """So many trials are completed, and no two are the same."""
    trials = study.get_trials(states=(TrialState.COMPLETE,))
    assert len(trials) == total
    identities = [candidate_of(trial) or tuple(trial.params.values()) for trial in trials]
    assert set(Counter(identities).values()) == {1}


@pytest.mark.parametrize("sampler", ["de", "random"])
@pytest.mark.parametrize("kind", ["postgresql", "journal"])
def test_a_killed_worker_costs_the_others_nothing_and_the_total_is_exact(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, sampler: str
) -> None:
    url = f"journal:///{tmp_path}/studies.log"
    if kind == "postgresql":
        url = request.getfixturevalue("server").empty()
    workers = [Worker(search, url, sampler, 100) for _ in range(4)]
    study = study_with(url, 20)
    workers[0].kill()
    assert [worker.wait() for worker in workers[1:]] == [0, 0, 0]
    assert_exact(study, 100)
    # It goes on from there.
    assert Worker(search, url, sampler, 113).wait() == 0
    assert_exact(study, 113)


@pytest.mark.parametrize("sampler", ["random", pytest.param("de", marks=pytest.mark.slow)])
def test_through_grpc_which_has_no_lock_the_total_is_exact_as_well(
    tmp_path: Path, sampler: str
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    url = f"grpc://127.0.0.1:{port}"
    server = Worker(serve, f"sqlite:///{tmp_path}/studies.db", port)
    wait_until_open(url)
    workers = [Worker(search, url, sampler, 40) for _ in range(3)]
    study = study_with(url, 10)
    workers[0].kill()
    assert [worker.wait() for worker in workers[1:]] == [0, 0]
    assert_completed(study, 40)
    assert Worker(search, url, sampler, 43).wait() == 0
    assert_completed(study, 43)
    server.kill()


def test_a_worker_that_begins_while_the_database_is_restarted_waits_for_it(
    server: PostgresqlServer,
) -> None:
    open_storage(server.empty())
    server.restart_slowly()
    promotion = Timer(1.5, server.let_in)
    promotion.start()
    with pytest.warns(StorageWarning, match=r"the database system is .*waiting for it"):
        study = optuna.create_study(storage=open_storage(server.url), study_name="later")
    study.add_trial(optuna.trial.create_trial(value=1.0))
    promotion.join()


# Random points that several workers draw are the same where they have the same seed.
FLEETS = {
    "de": ("--n-trials", "400", "--no-polish"),
    "polished": ("--n-trials", "400"),
    "random": ("--n-trials", "60", "--sampler", "random"),
}


@pytest.mark.slow
@pytest.mark.parametrize("words", FLEETS.values(), ids=FLEETS)
def test_four_workers_have_the_total_exactly(
    server: PostgresqlServer, tmp_path: Path, words: tuple[str, ...]
) -> None:
    url = server.empty()
    words = (*words, "--storage", url, "--batch-size", "5")
    workers = [start_study(tmp_path / str(number), *words) for number in range(4)]
    for number, worker in enumerate(workers):
        assert worker.wait() == 0, (tmp_path / str(number) / "told").read_text()
    assert_exact(load_study(url, "fleet"), int(words[1]))


@pytest.mark.slow
def test_a_database_restarted_in_mid_study_is_waited_for_and_nothing_is_lost(
    server: PostgresqlServer, tmp_path: Path
) -> None:
    url = server.empty()
    words = ("--n-trials", "1000", "--no-polish", "--storage", url, "--batch-size", "5")
    workers = [start_study(tmp_path / str(number), *words) for number in range(4)]
    study = study_with(url, 100)
    server.restart("fast")
    study_with(url, 400)
    server.restart("immediate")
    for number, worker in enumerate(workers):
        told = tmp_path / str(number) / "told"
        assert worker.wait() == 0, told.read_text()
        assert told.read_text().count("the database server went away") <= 2  # once for each
    assert_exact(study, 1000)


@pytest.mark.slow
def test_a_password_of_the_environment_is_kept_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = "s3cret-word"
    server = PostgresqlServer()
    server.require_password(password)
    command = [sys.executable, "-m", "wpo_optuna.study", *SMALL, "--n-trials", "30"]
    command += ["--storage", server.url, "--tracking-uri", "sqlite:///mlflow.db", "--report"]
    (tmp_path / "hardware.py").write_text(HARDWARE)

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    refused = run()
    assert refused.returncode == 1
    assert "no password supplied" in refused.stderr
    monkeypatch.setenv("PGPASSWORD", password)
    done = run()
    assert done.returncode == 0, done.stderr
    stored = load_study(server.url, STUDY)
    kept = [repr(stored.user_attrs), repr(stored.trials)]
    kept += [done.stdout, done.stderr]
    kept += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert (tmp_path / "mlflow.db").exists()
    assert not any(password in text for text in kept)
    server.stop()
