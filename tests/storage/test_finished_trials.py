"""Finished trials read and appended in bulk, alone and beside other programs."""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import os
import resource
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import RDBStorage
from optuna.storages._rdb import models  # what the tables are is what one test is about
from optuna.trial import FrozenTrial, TrialState, create_trial
from postgresql_server import PostgresqlServer

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.storage import (
    FinishedTrials,
    StorageError,
    StorageWarning,
    load_study,
    open_storage,
)

SPACE: dict[str, BaseDistribution] = {
    "x": FloatDistribution(-1.0, 1.0),
    "rate": FloatDistribution(1e-9, 1.0, log=True),
    "step": FloatDistribution(0.0, 1.0, step=0.1),
    "n": IntDistribution(0, 2**40),
    "flag": CategoricalDistribution([False, True]),
    "digit": CategoricalDistribution([0, 1]),
    "kind": CategoricalDistribution(["a", None, 3.5, "ä"]),
}
POINT = {"x": 0.1, "rate": 1e-9, "step": 0.3, "n": 2**40, "flag": True, "digit": 1, "kind": None}
ATTRIBUTES = {
    "tnmse": 0.1,
    "g_lst": np.linspace(0, 25, 44).reshape(4, 11).tolist(),
    "none": None,
    "text": "ä" * 3000,
    "nan": math.inf,
}


def trial_of(number: int, **options: Any) -> FrozenTrial:
    defaults = {
        "value": number / 7,
        "params": {"x": 1 / (number + 2)},
        "distributions": {"x": SPACE["x"]},
        "user_attrs": {"tnmse": number / 7, "other": "x"},
        "system_attrs": {"candidate": number},
    }
    return create_trial(**(defaults | options))


def rich_trials() -> list[FrozenTrial]:
    """Trials of every state with every kind of contents."""
    contents = {"params": POINT, "distributions": SPACE}
    return [
        trial_of(0, **contents, user_attrs=ATTRIBUTES, intermediate_values={3: 0.5, 1: math.nan}),
        trial_of(1, **contents, value=math.inf),
        trial_of(2, **contents, value=-math.inf, intermediate_values={0: math.inf, 2: -math.inf}),
        trial_of(3, value=None, state=TrialState.FAIL),
        trial_of(4, value=None, state=TrialState.PRUNED, intermediate_values={0: 1.5}),
        trial_of(5, value=2.5, state=TrialState.PRUNED),
        trial_of(6, params={}, distributions={}, user_attrs={}, system_attrs={}),
    ]


def candidate(trial: FrozenTrial) -> Any:
    return trial.system_attrs.get("candidate")


def new_study(url: str, **options: Any) -> optuna.Study:
    return optuna.create_study(storage=open_storage(url), study_name="one", **options)


def finished_trials(study: optuna.Study) -> FinishedTrials:
    return FinishedTrials(study, identity=candidate)


def contents(trials: Sequence[FrozenTrial], *, with_number: bool = True) -> list[str]:
    """All that is in trials; text, because NaN is not equal to itself."""
    return [
        repr(
            (
                trial.number if with_number else None,
                trial.state,
                trial.values,
                trial.datetime_start,
                trial.datetime_complete,
                list(trial.params.items()),
                trial.distributions,
                sorted(trial.user_attrs.items()),
                sorted(trial.system_attrs.items()),
                sorted(trial.intermediate_values.items()),
            )
        )
        for trial in trials
    ]


def start(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


# What is written and read


def test_appended_trials_are_to_optuna_what_its_own_are(url: str) -> None:
    study, trials = new_study(url), rich_trials()
    stored = FinishedTrials(study).append(trials).stored
    by_optuna = optuna.load_study(study_name="one", storage=url)
    assert contents(by_optuna.trials) == contents(stored)
    assert contents(by_optuna.trials, with_number=False) == contents(trials, with_number=False)
    assert [trial.number for trial in stored] == list(range(len(trials)))
    assert by_optuna.best_trial.value == -math.inf
    assert type(by_optuna.trials[0].params["digit"]) is int


def test_trials_of_optunas_own_storage_are_read_as_it_reads_them(url: str) -> None:
    study = optuna.create_study(
        storage=RDBStorage(url), study_name="one", pruner=optuna.pruners.MedianPruner(1, 0)
    )

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1, 1) + trial.suggest_int("n", 0, 3)
        trial.suggest_categorical("letter", ["a", None])
        trial.report(x, 0)
        trial.set_user_attr("tnmse", [x])
        if trial.number == 4:
            raise RuntimeError
        if trial.should_prune():
            raise optuna.TrialPruned
        return x

    study.optimize(objective, n_trials=12, catch=(RuntimeError,))
    study.add_trials(rich_trials())
    read = FinishedTrials(load_study(url, "one")).read_new()
    assert contents(read) == contents(study.trials)
    assert {trial.state for trial in read} == {*TrialState} - {
        TrialState.RUNNING,
        TrialState.WAITING,
    }


def test_several_objectives_keep_their_values(url: str) -> None:
    study = new_study(url, directions=["minimize", "maximize"])
    FinishedTrials(study).append([trial_of(0, value=None, values=[1.0, math.inf])])
    assert FinishedTrials(study).read_new()[0].values == [1.0, math.inf]
    assert study.trials[0].values == [1.0, math.inf]


def test_only_the_wanted_attributes_are_read(url: str) -> None:
    study = new_study(url)
    FinishedTrials(study).append([trial_of(0)])
    (trial,) = FinishedTrials(study, ["tnmse", "none of these"]).read_new()
    assert trial.user_attrs == {"tnmse": 0.0}
    assert trial.system_attrs == {"candidate": 0}


def test_a_copy_can_be_changed_without_its_original(url: str) -> None:
    study = new_study(url)
    FinishedTrials(study).append(rich_trials())
    (trial, *_) = FinishedTrials(study).read_new()
    twin = copy.deepcopy(trial)
    assert contents([twin]) == contents([trial])
    for name in ("params", "user_attrs", "system_attrs", "intermediate_values"):
        getattr(twin, name).clear()
    twin.value = -5.0
    assert contents([trial]) == contents(study.trials[:1])
    mirror = optuna.create_study()
    mirror.add_trials([trial])
    assert mirror.best_trial.params == trial.params


def test_what_is_new_is_read_once_and_running_trials_when_they_are_finished(any_url: str) -> None:
    study = new_study(any_url)
    reader, writer = FinishedTrials(study), FinishedTrials(study)
    assert reader.read_new() == []
    first, second = study.ask(SPACE), study.ask(SPACE)
    writer.append([trial_of(0), trial_of(1)])
    assert [trial.number for trial in reader.read_new()] == [2, 3]
    study.tell(second, 1.0)
    writer.append([trial_of(2)])
    assert [trial.number for trial in reader.read_new()] == [1, 4]
    study.tell(first, state=TrialState.FAIL)
    assert [trial.number for trial in reader.read_new()] == [0]
    assert reader.read_new() == []
    assert [trial.number for trial in study.trials] == list(range(5))


def test_pages_hold_together_what_there_is(any_url: str) -> None:
    study = new_study(any_url)
    reader, writer = FinishedTrials(study), FinishedTrials(study)
    writer.append([trial_of(number) for number in range(4)])
    running = [study.ask(SPACE) for _ in range(7)]
    writer.append([trial_of(number) for number in range(3)])
    study.tell(running[6], 1.0)
    numbers: list[int] = []
    while page := reader.read_new(at_most=3):
        numbers += [trial.number for trial in page]
    assert numbers == [0, 1, 2, 3, 10, 11, 12, 13]


def test_studies_of_one_database_do_not_mix(url: str) -> None:
    studies = [
        optuna.create_study(storage=open_storage(url), study_name=name) for name in ("one", "two")
    ]
    stored = [FinishedTrials(study) for study in studies]
    for number in range(3):
        for index in range(2):
            stored[index].append([trial_of(number, user_attrs={"study": index})])
    for index, study in enumerate(studies):
        read = FinishedTrials(study).read_new()
        assert [trial.number for trial in read] == [0, 1, 2]
        assert {trial.user_attrs["study"] for trial in read} == {index}


# What is kept


def test_a_total_is_never_exceeded_and_failed_trials_do_not_count(any_url: str) -> None:
    study = new_study(any_url)
    first, second = FinishedTrials(study), FinishedTrials(study)
    failed = trial_of(9, value=None, state=TrialState.FAIL)
    assert first.append([trial_of(0), failed, trial_of(1)], total=4).n_complete == 2
    appended = second.append([trial_of(2), trial_of(3), trial_of(4), failed], total=4)
    assert appended.kept == [True, True, False, True]
    assert appended.n_complete == 4
    assert len(appended.stored) == 3
    assert [trial.number for trial in appended.others] == [0, 1, 2]
    last = first.append([trial_of(5)], total=4)
    assert (last.kept, last.stored, last.n_complete) == ([False], [], 4)
    assert [trial.number for trial in last.others] == [3, 4, 5]


def test_of_one_identity_only_the_first_completed_trial_is_stored(any_url: str) -> None:
    study = new_study(any_url)
    failed = trial_of(0, value=None, state=TrialState.FAIL)
    FinishedTrials(study).append([failed, trial_of(1)])
    stored = finished_trials(study)
    stored.read_new()
    twins = [trial_of(0), trial_of(1), trial_of(2), trial_of(2), trial_of(0)]
    assert stored.append(twins).kept == [True, False, True, False, False]
    anonymous = [trial_of(5, system_attrs={}), trial_of(5, system_attrs={})]
    assert [trial.number for trial in stored.append(anonymous).stored] == [4, 5]
    # What another process stores in between counts as well.
    FinishedTrials(study).append([trial_of(7)])
    assert stored.append([trial_of(7), trial_of(8)]).kept == [False, True]


def test_a_failed_append_leaves_nothing_and_can_be_repeated(url: str) -> None:
    study = new_study(url)
    stored, other = finished_trials(study), finished_trials(study)
    other.append([trial_of(0)])
    with pytest.raises(TypeError):
        stored.append([trial_of(1), trial_of(2, user_attrs={"no JSON": object()})])
    assert len(study.trials) == 1
    appended = stored.append([trial_of(1), trial_of(2)])
    assert [trial.number for trial in appended.others] == [0]
    assert [trial.number for trial in appended.stored] == [1, 2]


def test_ctrl_c_in_any_statement_of_an_append_leaves_nothing_locked_or_half_stored(
    url: str,
) -> None:
    storage = open_storage(url, busy_timeout=0.5)
    study = optuna.create_study(storage=storage, study_name="one")
    n_left = 0

    @sqlalchemy.event.listens_for(storage.engine, "after_cursor_execute")
    def press(*_: Any) -> None:
        nonlocal n_left
        n_left -= 1
        if n_left == 0:
            raise KeyboardInterrupt

    stored = finished_trials(study)
    for n_statements in range(1, 100):
        n_left = n_statements
        try:
            stored.append([trial_of(0)])
            break
        except KeyboardInterrupt:
            # Nothing may wait for the traceback of the interruption, which is still at hand here.
            study.set_user_attr("status", f"KILLED at {n_statements}")
            assert study.get_trials(deepcopy=False) == []
    n_left = 0
    assert n_statements > 8
    assert len(study.trials) == 1


def test_a_process_that_died_in_its_turn_is_passed_by_and_what_it_had_stored_stays(
    grpc_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wpo_optuna.storage.optuna_calls._PATIENCE_S", 0.1)
    study = new_study(grpc_url)
    dying, living = finished_trials(load_study(grpc_url, "one")), finished_trials(study)
    living.append([trial_of(0), trial_of(1)], total=5)
    with monkeypatch.context() as patch:
        patch.setattr(optuna.storages.GrpcStorageProxy, "set_trial_state_values", _die)
        with pytest.raises(KeyboardInterrupt):
            dying.append([trial_of(2), trial_of(3)], total=5)
    assert [t.state for t in study.trials[2:]] == [TrialState.RUNNING, TrialState.COMPLETE]
    twins = [trial_of(3), trial_of(2), trial_of(4), trial_of(5)]
    assert living.append(twins, total=5).kept == [False, True, True, False]
    assert [t.number for t in study.get_trials(states=(TrialState.FAIL,))] == [2]
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 5


def test_a_process_that_was_passed_by_in_its_turn_hears_of_it(
    grpc_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wpo_optuna.storage.optuna_calls._PATIENCE_S", 0.1)
    study = new_study(grpc_url)
    early, late = finished_trials(load_study(grpc_url, "one")), finished_trials(study)
    finish = optuna.storages.GrpcStorageProxy.set_trial_state_values
    kept = []

    def be_held_up(*arguments: Any) -> bool:
        monkeypatch.setattr(optuna.storages.GrpcStorageProxy, "set_trial_state_values", finish)
        kept.append(late.append([trial_of(1), trial_of(2), trial_of(3)], total=2).kept)
        return finish(*arguments)

    monkeypatch.setattr(optuna.storages.GrpcStorageProxy, "set_trial_state_values", be_held_up)
    kept.append(early.append([trial_of(0), trial_of(1)], total=2).kept)
    assert kept == [[False, True, False], [False, True]]
    assert [candidate(t) for t in study.get_trials(states=(TrialState.COMPLETE,))] == [1, 2]


def test_who_is_interrupted_while_others_store_makes_nobody_wait(
    grpc_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = finished_trials(new_study(grpc_url))
    with monkeypatch.context() as patch:
        patch.setattr("wpo_optuna.storage.optuna_calls.SharedTrials._wait_for_turn", _die)
        with pytest.raises(KeyboardInterrupt):
            stored.append([trial_of(0)])
    began = time.monotonic()
    assert finished_trials(load_study(grpc_url, "one")).append([trial_of(0)]).kept == [True]
    assert time.monotonic() - began < 9  # the patience with a dead one is 10 s


def _die(*_: Any) -> None:
    raise KeyboardInterrupt


# Other processes


def _append_batches(url: str, worker: int, n_batches: int, total: int) -> None:
    stored = finished_trials(load_study(url, "one"))
    for batch in range(n_batches):
        # Every candidate is worked on by two of the three workers.
        numbers = [(batch * 8 + index) * 3 + (worker + index % 2) % 3 for index in range(8)]
        stored.append([trial_of(n, user_attrs={"worker": worker}) for n in numbers], total)


def _optimize(url: str, n_trials: int) -> None:
    study = optuna.load_study(study_name="one", storage=url)
    study.optimize(lambda trial: trial.suggest_float("x", -1.0, 1.0), n_trials=n_trials)


def test_processes_lose_nothing_double_nothing_and_keep_the_total(url: str) -> None:
    study, total, n_batches, n_plain = new_study(url), 250, 20, 15
    processes = [start(_append_batches, url, worker, n_batches, total) for worker in range(3)]
    processes.append(start(_optimize, url, n_plain))
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    trials = study.get_trials()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    times = Counter(map(candidate, trials))
    assert times.pop(None) == n_plain
    assert set(times.values()) == {1}
    # Optuna's own writer knows no total: it may write its last trials after it was reached.
    assert total <= len(trials) <= total + n_plain
    assert len({trial.user_attrs.get("worker") for trial in trials}) > 2


def test_the_total_is_exact_where_all_append(url: str) -> None:
    study = new_study(url)
    processes = [start(_append_batches, url, worker, 10, 97) for worker in range(3)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == len(study.trials) == 97


def _append_for_ever(url: str) -> None:
    stored = FinishedTrials(load_study(url, "one"))
    number = len(stored.read_new())
    while True:
        stored.append([trial_of(number + index, **RICH) for index in range(20)])
        number += 20


RICH = {"params": POINT, "distributions": SPACE, "user_attrs": ATTRIBUTES}


def test_a_batch_is_stored_wholly_or_not_at_all_when_its_process_is_killed(url: str) -> None:
    # The moments are those of a busy machine; no outcome of a right storage fails: false-alarm
    # rate 0.
    study, n_stored = new_study(url), 0
    reader = FinishedTrials(study)
    for pause in (0.0, 0.003, 0.007, 0.02, 0.011):
        process = start(_append_for_ever, url)
        while not (new := reader.read_new()):
            assert process.is_alive()
            time.sleep(0.005)
        time.sleep(pause)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        new += reader.read_new()
        n_stored += len(new)
        assert n_stored % 20 == 0
    trials = optuna.load_study(study_name="one", storage=url).trials
    assert [candidate(trial) for trial in trials] == list(range(n_stored))
    assert all(trial.params == POINT and trial.user_attrs == ATTRIBUTES for trial in trials)


def test_a_locked_file_is_waited_for_and_then_reported(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    study = optuna.create_study(storage=open_storage(url, busy_timeout=1.0), study_name="one")
    stored = FinishedTrials(study)
    other = sqlite3.connect(tmp_path / "studies.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="database is locked; nothing was written"):
        stored.append([trial_of(0)])
    with pytest.raises(InvalidArgument, match="database is locked"):
        open_storage(url, busy_timeout=1.0)
    assert stored.read_new() == []
    other.execute("ROLLBACK")
    assert stored.append([trial_of(0)]).n_complete == 1


def test_who_waits_for_a_locked_file_is_told_so_and_may_press_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, told = f"sqlite:///{tmp_path}/studies.db", []

    def press_ctrl_c_soon(message: Warning, *_: Any, **__: Any) -> None:
        told.append(message)
        threading.Timer(0.2, lambda: signal.raise_signal(signal.SIGINT)).start()

    open_storage(url)
    other = sqlite3.connect(tmp_path / "studies.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr("wpo_optuna.storage.urls._TOLD_AFTER_S", 0.1)
    monkeypatch.setattr("warnings.showwarning", press_ctrl_c_soon)
    with pytest.raises(KeyboardInterrupt):
        open_storage(url)
    (message,) = told
    assert isinstance(message, StorageWarning)
    assert "locked; waiting up to 60 s" in str(message)
    other.execute("ROLLBACK")


def _fill_the_disk(url: str) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
    with pytest.raises(StorageError, match=r"^storage '.*studies.db': .*nothing was written$"):
        _append_for_ever(url)


def test_a_full_disk_is_one_sentence_and_costs_the_batch_at_hand_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    study = new_study(url)
    process = start(_fill_the_disk, url)
    process.join(60)
    assert process.exitcode == 0
    stored = FinishedTrials(study)
    n_stored = len(stored.read_new())
    assert n_stored > 0
    assert n_stored % 20 == 0
    assert stored.append([trial_of(n_stored)]).n_complete == n_stored + 1


# A server that is restarted


def test_what_a_restart_cuts_off_is_repeated(postgresql_server: PostgresqlServer) -> None:
    study, is_restarted = new_study(postgresql_server.empty()), True

    def restarting(trial: FrozenTrial) -> Any:
        """Asked for within the transaction, it restarts the server."""
        nonlocal is_restarted
        if not is_restarted:
            is_restarted = True
            postgresql_server.restart()
        return candidate(trial)

    stored = FinishedTrials(study, identity=restarting)
    stored.append([trial_of(0)])
    FinishedTrials(study).append([trial_of(1)])
    is_restarted = False
    appended = stored.append([trial_of(1), trial_of(2)])
    assert appended.kept == [False, True]
    assert [trial.number for trial in appended.others] == [1]
    assert [candidate(trial) for trial in study.trials] == [0, 1, 2]


def test_a_commit_whose_answer_was_lost_is_not_done_twice(
    postgresql_server: PostgresqlServer,
) -> None:
    storage = open_storage(postgresql_server.empty())
    study = optuna.create_study(storage=storage, study_name="one")
    stored = finished_trials(study)

    def commit_and_restart(connection: sqlalchemy.Connection) -> None:
        database = connection.connection.dbapi_connection
        assert database is not None
        database.commit()
        database.cursor().execute("SELECT 1")
        postgresql_server.restart()

    sqlalchemy.event.listen(storage.engine, "commit", commit_and_restart, once=True)
    appended = stored.append([trial_of(0), trial_of(1)], total=2)
    assert (appended.n_complete, appended.kept) == (2, [False, False])
    assert [trial.number for trial in appended.others] == [0, 1]
    assert [candidate(trial) for trial in study.trials] == [0, 1]


def test_a_server_that_is_away_is_waited_for_and_told_once_each_time(
    postgresql_server: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = new_study(postgresql_server.empty())
    stored = FinishedTrials(study)
    postgresql_server.halt()
    threading.Timer(1.5, postgresql_server.restart).start()
    with pytest.warns(StorageWarning, match=r"went away \(.*waiting for it up to 120 s") as told:
        stored.append([trial_of(0)])
    study.set_user_attr("by Optuna", 1)
    assert len(told) == len(study.trials) == 1
    monkeypatch.setattr("wpo_optuna.storage.reconnecting._PATIENCE_S", 0.1)
    postgresql_server.halt()
    for write in (
        lambda: stored.append([trial_of(1)]),
        lambda: study.set_user_attr("by Optuna", 2),
    ):
        with (
            pytest.warns(StorageWarning),
            pytest.raises(StorageError, match="the same command goes on from there when") as caught,
        ):
            write()
        assert "\n" not in str(caught.value)
    postgresql_server.restart()
    assert stored.append([trial_of(1)]).n_complete == 2


# Optuna's tables


def test_the_dashboard_reads_what_was_appended(url: str) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    FinishedTrials(new_study(url)).append(rich_trials())
    application = dashboard.wsgi(RDBStorage(url))
    answered: list[str] = []
    request = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies/1", "wsgi.errors": None}
    request |= {"wsgi.url_scheme": "http", "SERVER_NAME": "here", "SERVER_PORT": "80"}
    body = b"".join(application(request, lambda status, headers, *_: answered.append(status)))
    assert answered == ["200 OK"]
    states = [trial["state"] for trial in json.loads(body)["trials"]]
    assert states == ["Complete"] * 3 + ["Fail", "Pruned", "Pruned", "Complete"]


def test_optunas_tables_are_those_that_are_written_here() -> None:
    """Where this fails with a new Optuna, see storage/optuna_tables.py."""
    tables = models.BaseModel.metadata.tables.items()
    assert {name: set(table.columns.keys()) for name, table in tables} == {
        "studies": {"study_id", "study_name"},
        "study_directions": {"study_direction_id", "direction", "study_id", "objective"},
        "study_user_attributes": {"study_user_attribute_id", "study_id", "key", "value_json"},
        "study_system_attributes": {"study_system_attribute_id", "study_id", "key", "value_json"},
        "trials": {
            "trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete",
        },
        "trial_params": {
            "param_id", "trial_id", "param_name", "param_value", "distribution_json",
        },
        "trial_values": {"trial_value_id", "trial_id", "objective", "value", "value_type"},
        "trial_intermediate_values": {
            "trial_intermediate_value_id", "trial_id", "step", "intermediate_value",
            "intermediate_value_type",
        },
        "trial_user_attributes": {"trial_user_attribute_id", "trial_id", "key", "value_json"},
        "trial_system_attributes": {"trial_system_attribute_id", "trial_id", "key", "value_json"},
        "trial_heartbeats": {"trial_heartbeat_id", "trial_id", "heartbeat"},
        "version_info": {"version_info_id", "schema_version", "library_version"},
    }  # fmt: skip
    assert {index.name for index in models.TrialModel.__table__.indexes} == {"ix_trials_study_id"}


def test_what_is_new_is_read_by_as_many_statements_after_many_trials(url: str) -> None:
    study = new_study(url)
    reader, writer = FinishedTrials(study), FinishedTrials(study)
    statements: list[str] = []
    event = (sqlalchemy.Engine, "before_cursor_execute", lambda *_: statements.append("one"))

    def n_statements(n_before: int) -> int:
        """Those of writing and reading ten trials, of which there are so many."""
        writer.append([trial_of(index) for index in range(n_before)])
        reader.read_new()
        statements.clear()
        writer.append([trial_of(index) for index in range(10)])
        assert len(reader.read_new()) == 10
        return len(statements)

    sqlalchemy.event.listen(*event)
    assert n_statements(100) == n_statements(3000)
    sqlalchemy.event.remove(*event)
