"""The file stays an ordinary Optuna database, for Optuna's own storage and commands."""

from __future__ import annotations

import math
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

import wpo_optuna
from wpo_optuna.sqlite import SQLiteStorage

MINIMIZE = [StudyDirection.MINIMIZE]


def _rich_templates() -> list[FrozenTrial]:
    distributions = {
        "x": FloatDistribution(0, 1),
        "log": FloatDistribution(1e-5, 1, log=True),
        "step": FloatDistribution(0, 1, step=0.25),
        "n": IntDistribution(1, 100, log=True),
        "kind": CategoricalDistribution(["a", 1, 2.5, None, True]),
    }
    params = {"x": 1 / 3, "log": 1e-3, "step": 0.75, "n": 7, "kind": None}
    common = {
        "params": params,
        "distributions": distributions,
        "user_attrs": {"g_lst": [[0.1, 2 / 3], [25.0]], "note": "Ω µS", "tuple": (1, 2)},
        "system_attrs": {"nan": math.nan, "nested": {"a": [None, True]}},
        "intermediate_values": {0: 1.5, 3: math.inf, 2: -math.inf, 4: math.nan},
    }
    return [
        create_trial(state=TrialState.COMPLETE, value=0.1 + 0.2, **common),
        create_trial(state=TrialState.COMPLETE, value=math.inf, **common),
        create_trial(state=TrialState.PRUNED, value=-math.inf, **common),
        create_trial(state=TrialState.FAIL, **common),
        create_trial(state=TrialState.RUNNING, **common),
        create_trial(state=TrialState.WAITING, **common),
    ]


def _comparable(trials: list[FrozenTrial]) -> list[str]:
    # NaN differs from itself, its text does not; parameters keep their order, attributes need not.
    return [
        repr(
            (
                trial.number,
                trial._trial_id,
                trial.state,
                trial.values,
                trial.datetime_start,
                trial.datetime_complete,
                list(trial.params.items()),
                list(trial.distributions.items()),
                sorted(trial.user_attrs.items()),
                sorted(trial.system_attrs.items()),
                sorted(trial.intermediate_values.items()),
            )
        )
        for trial in trials
    ]


def test_every_kind_of_trial_reads_the_same_through_plain_rdb_storage(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "study.db")
    study_id = storage.create_new_study([StudyDirection.MAXIMIZE], "rich")
    storage.set_study_user_attr(study_id, "problem", {"f_lst": [1.0, None]})
    with storage.batch(study_id):
        for template in _rich_templates():
            storage.create_new_trial(study_id, template)
    written = _comparable(storage.get_all_trials(study_id))
    plain = RDBStorage(f"sqlite:///{storage.path}")
    assert _comparable(plain.get_all_trials(study_id)) == written
    assert plain.get_study_directions(study_id) == [StudyDirection.MAXIMIZE]
    assert plain.get_study_user_attrs(study_id) == {"problem": {"f_lst": [1.0, None]}}
    again = SQLiteStorage(storage.path)
    assert _comparable(again.get_all_trials(study_id)) == written


def test_a_database_made_by_plain_rdb_storage_is_read_and_continued(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    plain = RDBStorage(url)
    study_id = plain.create_new_study(MINIMIZE, "rich")
    for template in _rich_templates():
        plain.create_new_trial(study_id, template)
    storage = SQLiteStorage(tmp_path / "study.db")
    assert _comparable(storage.get_all_trials(study_id)) == _comparable(
        plain.get_all_trials(study_id)
    )
    for _ in range(3):
        assert (
            storage.get_trial(storage.create_new_trial(study_id)).number
            == len(plain.get_all_trials(study_id)) - 1
        )
        plain.create_new_trial(study_id)
    numbers = [trial.number for trial in storage.get_all_trials(study_id)]
    assert numbers == list(range(len(_rich_templates()) + 6))


def test_plain_rdb_storage_finishes_what_the_fast_storage_began_and_back(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "study.db")
    study_id = storage.create_new_study(MINIMIZE)
    first, second = storage.create_new_trial(study_id), storage.create_new_trial(study_id)
    assert storage.get_trial(first).state == TrialState.RUNNING
    plain = RDBStorage(f"sqlite:///{storage.path}")
    plain.set_trial_param(first, "x", 0.5, FloatDistribution(0, 1))
    assert storage.get_trial(first).params == {"x": 0.5}
    plain.set_trial_user_attr(first, "tnmse", 0.06)
    plain.set_trial_state_values(first, TrialState.COMPLETE, [0.25])
    assert storage.get_trial(first).values == [0.25]
    assert storage.get_trial(first).user_attrs == {"tnmse": 0.06}
    assert storage.get_best_trial(study_id).number == 0
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.set_trial_user_attr(first, "late", 1)
    storage.set_trial_state_values(second, TrialState.FAIL)
    assert plain.get_trial(second).state == TrialState.FAIL


def test_a_whole_study_runs_with_optunas_samplers_and_loads_by_url(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "study.db")
    study = optuna.create_study(
        storage=storage, study_name="tpe", sampler=optuna.samplers.TPESampler(seed=1)
    )
    assert study._storage is storage

    def objective(trial: optuna.Trial) -> float:
        trial.report(1.0, 0)
        trial.set_user_attr("kind", trial.suggest_categorical("kind", ["a", "b"]))
        return trial.suggest_float("x", -1, 1) ** 2 + trial.suggest_int("n", 0, 3)

    study.enqueue_trial({"x": 0.5, "kind": "b", "n": 1})
    study.optimize(objective, n_trials=25)
    loaded = optuna.load_study(study_name="tpe", storage=f"sqlite:///{storage.path}")
    assert loaded.trials == study.trials
    assert loaded.best_trial == study.best_trial
    assert study.trials[0].params == {"kind": "b", "x": 0.5, "n": 1}
    loaded.optimize(objective, n_trials=2)
    assert [trial.number for trial in study.trials] == list(range(27))


def test_the_optuna_command_lists_its_trials(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "study.db")
    study_id = storage.create_new_study(MINIMIZE, "listed")
    storage.create_new_trial(study_id, _rich_templates()[0])
    command = [sys.executable, "-m", "optuna.cli"]
    script = Path(sys.executable).with_name("optuna")
    shown = subprocess.run(
        [
            *([str(script)] if script.exists() else command),
            *("trials", "--study-name", "listed", "--storage", f"sqlite:///{storage.path}"),
        ],
        capture_output=True,
        text=True,
        check=True,
        env=_environment(),
    )
    assert "COMPLETE" in shown.stdout
    assert "0.30000000000000004" in shown.stdout


def test_commits_are_durable_and_others_may_read_meanwhile(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "study.db")
    connection = storage._database._open()
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    full = 2
    assert connection.execute("PRAGMA synchronous").fetchone() == (full,)
    study_id = storage.create_new_study(MINIMIZE)
    storage.create_new_trial(study_id)
    with storage.batch(study_id):
        storage.create_new_trial(study_id)
        reader = RDBStorage(f"sqlite:///{storage.path}")
        assert reader.get_n_trials(study_id) == 1
    assert reader.get_n_trials(study_id) == 2


def test_closing_leaves_one_file_with_everything(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "study.db")
    study_id = storage.create_new_study(MINIMIZE, "kept")
    storage.create_new_trial(study_id)
    storage.close()
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]
    assert storage.get_n_trials(study_id) == 1


def test_a_program_that_ends_leaves_one_file_with_everything(tmp_path: Path) -> None:
    script = (
        "from wpo_optuna.sqlite import SQLiteStorage; import optuna\n"
        "study = optuna.create_study(storage=SQLiteStorage('study.db'), study_name='s')\n"
        "study.tell(study.ask(), 1.0)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, env=_environment())
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]
    assert SQLiteStorage(tmp_path / "study.db").get_n_trials(1) == 1


def test_deleting_a_study_leaves_no_row_of_it(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "study.db")
    kept, deleted = storage.create_new_study(MINIMIZE), storage.create_new_study(MINIMIZE)
    for study_id in (kept, deleted):
        storage.set_study_user_attr(study_id, "a", 1)
        storage.set_study_system_attr(study_id, "b", 2)
        for template in _rich_templates():
            storage.record_heartbeat(storage.create_new_trial(study_id, template))
    before = _row_counts(storage.path)
    storage.delete_study(deleted)
    after = _row_counts(storage.path)
    assert all(2 * after[table] == before[table] > 0 for table in after)
    assert len(storage.get_all_trials(kept)) == len(_rich_templates())


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(wpo_optuna.__file__).parents[1])}


def _row_counts(path: Path) -> dict[str, int]:
    connection = sqlite3.connect(path)
    tables = [
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        if name.startswith(("trial", "stud"))
    ]
    counts = {
        table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables
    }
    connection.close()
    return counts


@pytest.mark.parametrize("bad", [math.nan, "a", None])
def test_a_value_that_the_tables_cannot_hold_is_refused_and_nothing_written(
    tmp_path: Path, bad: object
) -> None:
    storage = SQLiteStorage(tmp_path / "study.db")
    study_id = storage.create_new_study(MINIMIZE)
    with storage.batch(study_id):
        trial_id = storage.create_new_trial(study_id)
        with pytest.raises((ValueError, TypeError)):
            storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [bad])
        with pytest.raises((ValueError, TypeError)):
            storage.set_trial_param(trial_id, "x", bad, FloatDistribution(0, 1))
        with pytest.raises(TypeError):
            storage.set_trial_user_attr(trial_id, "object", object())
    (trial,) = SQLiteStorage(storage.path).get_all_trials(study_id)
    assert trial.state == TrialState.RUNNING
    assert (trial.params, trial.values, trial.user_attrs) == ({}, None, {})
