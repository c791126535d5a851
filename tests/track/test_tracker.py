"""The Optuna callback, from outside: real delivering process, real SQLite store."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import mlflow
import optuna
import pytest
from mlflow import MlflowClient
from tracked_studies import (
    all_runs,
    assert_complete,
    finished_trial,
    make_study,
    objective,
    random_points,
    recorded,
)

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.storage import open_storage
from wpo_optuna.track.delivery import ending
from wpo_optuna.track.delivery.description import DeliveryState
from wpo_optuna.track.tracker import MlflowTracker, TrackingWarning


def start_script(directory: Path, script: str) -> subprocess.Popen[str]:
    """Runs a program of its own in a directory, with the modules of these tests."""
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=directory,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_samplers_are_two_runs_of_one_experiment_with_series_over_the_same_steps(
    store: str, working_directory: Path
) -> None:
    """MLflow's default store is used, where ``mlflow ui`` looks without any option.

    Trials run before there was a tracker, or by several threads, are recorded like the others.
    """
    environment = dict(os.environ)
    studies = [make_study(name, sampler=name) for name in ("random", "qmc")]
    for study, n_jobs in zip(studies, (1, 4), strict=True):
        study.optimize(objective, n_trials=3)
        figure = working_directory / f"{study.study_name}.svg"
        figure.write_text(study.study_name)
        with MlflowTracker(tags={"network": "digits"}, parameters={"weights": {"n": 3}}) as tracker:
            study.optimize(objective, n_trials=30, n_jobs=n_jobs, callbacks=[tracker])
            tracker.log_artifact(figure, "figures")
            tracker.log_text("what was done", "notes.txt")
            tracker.log_metrics({"winner_tnmse": 0.06})
            tracker.set_tags({"colour": study.study_name})
            run_id, experiment_id = tracker.run_id, tracker.experiment_id
        assert tracker.undelivered is None
        client = MlflowClient()
        run = client.get_run(run_id)
        assert (run.info.run_name, run.info.experiment_id) == (study.study_name, experiment_id)
        figure_path = client.download_artifacts(run_id, f"figures/{study.study_name}.svg")
        assert Path(figure_path).read_text() == study.study_name
        assert Path(client.download_artifacts(run_id, "notes.txt")).read_text() == "what was done"
    client = MlflowClient()
    assert client.tracking_uri.endswith(f"{working_directory}/mlflow.db")
    for study in studies:
        found = recorded(client, study.study_name)
        assert_complete(found, study, "all")
        assert found.run.params["sampler"] == study.study_name
        assert found.run.params["problem.tile.size"] == "512"
        assert found.run.params["weights.n"] == "3"
        assert found.run.tags["network"] == "digits"
        assert found.run.tags["colour"] == study.study_name
        assert found.run.tags["version.optuna"] == optuna.__version__
        assert {"version.python", "version.torch", "version.aihwkit", "version.mlflow"} <= set(
            found.run.tags
        )
        assert float(found.run.histories["winner_tnmse"][0][1]) == 0.06
    assert len(client.search_experiments(filter_string="name = 'wpo'")) == 1
    assert (working_directory / "mlruns").is_dir()
    assert mlflow.active_run() is None
    changed = {name for name, _ in environment.items() ^ os.environ.items()}
    assert changed <= {"PYTEST_CURRENT_TEST"}


def run_and_raise(study: optuna.Study, tracker: MlflowTracker, error: type[BaseException]) -> None:
    study.optimize(objective, n_trials=5, callbacks=[tracker])
    raise error


def test_a_resumed_study_goes_on_in_its_run(store: str, working_directory: Path) -> None:
    """The storage is reopened, as by another process; the first session was interrupted."""
    storage = f"sqlite:///{working_directory}/wpo.db"
    client = MlflowClient(store)
    study = make_study(storage=storage, seed=1)
    with pytest.raises(KeyboardInterrupt), MlflowTracker() as tracker:
        run_and_raise(study, tracker, KeyboardInterrupt)
    assert recorded(client, "quadratic").run.status == "KILLED"

    study = make_study(storage=storage, seed=2)
    another = optuna.create_study(study_name="another", storage=study._storage)
    tracker = MlflowTracker()
    tracker.attach(study)
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    for text in ("first", "second"):
        tracker.log_text(text, "notes.txt")
    with pytest.raises(InvalidArgument, match="this tracker records 'quadratic'"):
        another.optimize(objective, n_trials=1, callbacks=[tracker])
    with pytest.raises(InvalidArgument, match="status = 'DONE'"):
        tracker.set_status("DONE")
    with pytest.raises(InvalidArgument, match="no such file"):
        tracker.log_artifact("nowhere.svg")
    with pytest.raises(ZeroDivisionError), tracker:
        run_and_raise(study, tracker, ZeroDivisionError)
    found = recorded(client, "quadratic")
    assert_complete(found, study, "all", ended="FAILED")
    assert bytes.fromhex(found.run.artifacts["notes.txt"]) == b"second"

    # What the storage remembers of the delivery does not grow with it.
    state = study._storage.get_study_system_attrs(study._study_id)["wpo:mlflow"]
    assert [extra["text"] for extra in state["delivered"]] == ["second"]
    assert state["undelivered"] == []
    assert study.user_attrs.keys() == {"sampler", "engine", "problem"}


def test_a_tracker_nobody_closes_delivers_all_the_same(store: str, working_directory: Path) -> None:
    """As in ``study.optimize(..., callbacks=[MlflowTracker()])`` and the end of the program."""
    script = """
        from tracked_studies import make_study, objective
        from wpo_optuna.track.tracker import MlflowTracker
        study = make_study("finished", storage="sqlite:///wpo.db")
        study.optimize(objective, n_trials=6, callbacks=[MlflowTracker()])
        tracker = MlflowTracker()
        study = make_study("interrupted", storage="sqlite:///wpo.db")
        study.optimize(objective, n_trials=6, callbacks=[tracker])
        raise KeyboardInterrupt
    """
    start_script(working_directory, script).communicate()
    client = MlflowClient(store)
    for name, ended in (("finished", "FINISHED"), ("interrupted", "KILLED")):
        study = optuna.load_study(study_name=name, storage="sqlite:///wpo.db")
        assert_complete(recorded(client, name), study, "all", ended)


def test_a_trial_costs_the_loop_less_than_a_millisecond_while_mlflow_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The costliest case: nothing is taken, memory fills, the rest is left to the storage.

    Measured as processor time of the whole process, the feeding thread included, so that a busy
    machine does not matter.
    """
    monkeypatch.setattr(ending, "_AWAY_S", 1.0)
    study = make_study()
    study.add_trials([finished_trial(x) for x in random_points(6000)])
    trials = study.get_trials(deepcopy=False)

    def record_all() -> tuple[float, float]:
        tracker = MlflowTracker("http://127.0.0.1:9")
        before, slowest = time.process_time(), 0.0
        for trial in trials:
            started = time.thread_time()
            tracker(study, trial)
            slowest = max(slowest, time.thread_time() - started)
        per_trial = (time.process_time() - before) / len(trials)
        assert not tracker.close()
        return per_trial, slowest

    with pytest.warns(TrackingWarning) as warnings:
        per_trial, slowest = record_all()
    while_running, at_end = (str(warning.message) for warning in warnings)
    assert "http://127.0.0.1:9 cannot be reached" in while_running
    assert "MLflow lacks 6000 trials" in at_end
    assert "memory only" in at_end
    assert per_trial < 1e-3
    assert slowest < 50e-3  # the first one starts the thread


def test_recording_costs_the_loop_less_than_a_millisecond_per_trial(store: str) -> None:
    study = make_study()
    study.add_trials([finished_trial(x) for x in random_points(1500)])
    trials = study.get_trials(deepcopy=False)
    with MlflowTracker(trial_runs="best") as tracker:
        before = time.process_time()
        for trial in trials:
            tracker(study, trial)
        assert tracker.run_id
        time.sleep(1.0)  # the thread works while the loop would
        per_trial = (time.process_time() - before) / len(trials)
    assert per_trial < 1e-3
    assert_complete(recorded(MlflowClient(store), "quadratic"), study, "best")


def test_neither_the_package_nor_the_tracker_imports_mlflow_into_the_study() -> None:
    code = (
        "import sys, wpo_optuna, wpo_optuna.track.tracker, wpo_optuna.track;"
        "wpo_optuna.track.tracker.MlflowTracker();"
        "sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_the_environments_tracking_uri_is_the_default_and_a_lost_file_is_told(
    store: str, working_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: what is handed over before the first trial is delivered."""
    (working_directory / "mlflow.db").rename(working_directory / "elsewhere.db")
    elsewhere = f"sqlite:///{working_directory}/elsewhere.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    lost = working_directory / "lost.txt"
    lost.write_text("soon gone")
    tracker = MlflowTracker(experiment_name="other")
    tracker.log_artifact(lost)
    tracker.log_text("early", "early.txt")
    lost.unlink()
    study = make_study()
    with pytest.warns(TrackingWarning, match=r"lost\.txt"), tracker:
        study.optimize(objective, n_trials=2, callbacks=[tracker])
    assert not (working_directory / "mlflow.db").exists()
    found = recorded(MlflowClient(elsewhere), "quadratic", "other")
    assert_complete(found, study, "all")
    assert bytes.fromhex(found.run.artifacts["early.txt"]) == b"early"
    assert "lost.txt" not in found.run.artifacts
    state = DeliveryState.read(study)
    assert state is not None
    assert [extra.name for extra in state.delivered] == ["early.txt"]


def test_studies_run_at_the_same_time_in_a_new_directory_are_all_recorded(
    working_directory: Path,
) -> None:
    """Two processes that would both create MLflow's tables; the database is one whole file."""
    studies = [make_study(f"study-{i}") for i in range(2)]
    trackers = [MlflowTracker() for _ in studies]
    for study, tracker in zip(studies, trackers, strict=True):
        study.optimize(objective, n_trials=3, callbacks=[tracker])
    for tracker in trackers:
        assert tracker.close()
    assert {path.name for path in working_directory.iterdir()} == {"mlflow.db", "mlruns"}
    client = MlflowClient()
    for study in studies:
        assert_complete(recorded(client, study.study_name), study, "all")


def test_how_the_engine_compares_with_the_tile_is_told_once(store: str) -> None:
    """As metrics, to compare studies by, and in full as parameters."""
    study = make_study()
    study.set_user_attr(
        "self_check",
        {"engine": "expected", "deviations": [0.001, -0.004], "worst": 0.002, "mean": -0.0015},
    )
    for _ in range(2):
        with MlflowTracker() as tracker:
            study.optimize(objective, n_trials=2, callbacks=[tracker])
    found = recorded(MlflowClient(store), "quadratic").run
    for name, value in (("worst", 0.2), ("mean", -0.15)):
        ((step, logged, _),) = found.histories[f"self_check_{name}_percent"]
        assert (step, float(logged)) == (0, pytest.approx(value))
    assert found.params["self_check.engine"] == "expected"
    assert found.params["self_check.deviations"] == "[0.001, -0.004]"


def test_no_password_of_the_tracking_uri_is_shown(
    working_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "_AWAY_S", 0.5)
    study = make_study(storage="sqlite:///wpo.db")
    tracker = MlflowTracker("http://me:secret@127.0.0.1:9")
    with pytest.warns(TrackingWarning) as told, tracker:
        study.optimize(objective, n_trials=2, callbacks=[tracker])
    texts = [str(warning.message) for warning in told]
    assert all("http://me:***@127.0.0.1:9" in text for text in texts)
    assert "--tracking-uri 'http://me:***@127.0.0.1:9'" in texts[-1]
    assert not any("secret" in text for text in texts)
    with pytest.raises(InvalidArgument, match=r"ftp://me:\*\*\*@host"):
        MlflowTracker("ftp://me:secret@host")


@pytest.mark.parametrize("way", ["argument", "variable", "default", "link", "plain storage"])
def test_the_file_of_the_optuna_storage_is_refused_before_anything_is_written(
    way: str, working_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "mlflow.db" if way == "default" else "wpo.db"
    url = f"sqlite:///{name}"
    study = make_study(storage=url if way == "plain storage" else open_storage(url))
    tracking_uri: str | None = url
    if way in ("variable", "default"):
        tracking_uri = None
    if way == "variable":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{working_directory}/{name}")
    elif way == "link":
        Path("link.db").symlink_to(name)
        tracking_uri = "sqlite:///link.db"
    attributes = study._storage.get_study_system_attrs(study._study_id)
    tracker = MlflowTracker(tracking_uri)
    named = "MLFLOW_TRACKING_URI" if way == "variable" else "tracking_uri"
    with pytest.raises(InvalidArgument, match=rf"^{named} = [^\n]*needs one of its own[^\n]*$"):
        study.optimize(objective, n_trials=1, callbacks=[tracker])
    assert study._storage.get_study_system_attrs(study._study_id) == attributes
    assert tracker.close()


def test_the_environments_tracking_uri_is_checked_like_the_argument(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://x")
    with pytest.raises(InvalidArgument, match=r"^MLFLOW_TRACKING_URI = 'ftp://x': accepted"):
        MlflowTracker()
    assert MlflowTracker("http://127.0.0.1:9").tracking_uri  # which counts instead


@pytest.mark.parametrize(
    ("uri", "module", "package"),
    [
        ("postgresql+psycopg://me:secret@host/name", "psycopg", "psycopg[binary]"),
        ("mysql+pymysql://me:secret@host/name", "pymysql", "PyMySQL"),
        ("mssql+pymssql://me:secret@host/name", "pymssql", "pymssql"),
    ],
)
def test_a_missing_database_driver_is_named_by_its_package(
    uri: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InvalidArgument) as refusal:
        MlflowTracker(uri)
    assert f"run `pip install '{package}'`" in str(refusal.value)
    assert "secret" not in str(refusal.value)


@pytest.mark.slow
def test_two_processes_on_one_study_record_it_once(store: str, working_directory: Path) -> None:
    script = """
        import time
        from tracked_studies import make_study, objective
        from wpo_optuna.track.tracker import MlflowTracker
        study = make_study(storage="sqlite:///wpo.db", seed=None)
        def slow(trial):
            time.sleep(0.05)
            return objective(trial)
        with MlflowTracker() as tracker:
            study.optimize(slow, n_trials=30, callbacks=[tracker])
    """
    make_study(storage="sqlite:///wpo.db")
    workers = [start_script(working_directory, script) for _ in range(2)]
    errors = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    study = optuna.load_study(study_name="quadratic", storage="sqlite:///wpo.db")
    client = MlflowClient(store)
    found = recorded(client, "quadratic")
    assert len(study.trials) == 60
    assert set(found.trials) == set(range(60))
    assert [step for step, _, _ in found.run.histories["tnmse"]] == list(range(60))
    assert len(all_runs(client)) == 61


def test_a_study_named_by_two_processes_at_the_same_time_ends_in_one_run(
    store: str,
) -> None:
    """The other one's name comes so late that this one has delivered trials under its own."""
    study = make_study()
    tracker = MlflowTracker()
    tracker.log_text("what was done", "notes.txt")
    study.optimize(objective, n_trials=4, callbacks=[tracker])
    first = tracker.run_id
    deadline = time.monotonic() + 60
    while tracker._feeder.n_delivered < 4:  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    state = DeliveryState.read(study)
    assert state is not None
    dataclasses.replace(state, identity="the-other-one").write(study)
    study.add_trial(finished_trial(random_points(1)[0]))  # by the other process
    assert tracker.close()
    assert tracker.run_id != first
    client = MlflowClient(store)
    found = recorded(client, "quadratic")
    assert_complete(found, study, "all")
    assert found.run.tags["wpo.study_id"] == "the-other-one"
    assert "notes.txt" in found.run.artifacts
    assert len(all_runs(client)) == 1 + 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trial_runs": "some"}, "trial_runs = 'some': accepted is auto, all, best, none"),
        ({"experiment_name": ""}, "experiment_name = ''"),
        ({"tracking_uri": "htp://127.0.0.1"}, "tracking_uri = 'htp://127.0.0.1': accepted"),
        ({"tracking_uri": "./mlruns"}, "directories no longer"),
        ({"tracking_uri": "mysql+other://u@host/name"}, "or mysql with +mysqldb, +pymysql"),
        ({"planned_trials": -1}, "planned_trials = -1"),
        ({"tags": {"note": "x" * 9000}}, "'note' has a name of 4 and a value of 9000"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=r"^[^\n]*$") as refusal:
        MlflowTracker(**arguments)  # type: ignore[arg-type]
    assert message in str(refusal.value)
