"""The Optuna callback, from outside: real processes, real SQLite store."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import mlflow
import optuna
import pytest
from following import children, run_script, start_script, wait_until
from mlflow import MlflowClient
from tracked_studies import (
    all_runs,
    assert_complete,
    make_study,
    objective,
    recorded,
)

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.storage import open_storage
from wpo_optuna.study import attributes
from wpo_optuna.track.tracker import MlflowTracker


def test_two_studies_are_two_runs_of_one_experiment_with_series_over_the_same_steps(
    store: str, working_directory: Path
) -> None:
    """MLflow's default store is used, where ``mlflow ui`` looks without any option.

    Trials run before there was a tracker, or by several threads, are recorded like the others.
    """
    environment = dict(os.environ)
    studies = [make_study(name, sampler=name) for name in ("random", "qmc")]
    for study, n_jobs in zip(studies, (1, 4), strict=True):
        study.optimize(objective, n_trials=3)
        with MlflowTracker(tags={"network": "digits"}, parameters={"weights": {"n": 3}}) as tracker:
            study.optimize(objective, n_trials=20, n_jobs=n_jobs, callbacks=[tracker])
        assert tracker.undelivered is None
        run = MlflowClient().get_run(tracker.run_id)
        assert run.info.run_name == study.study_name
    client = MlflowClient()
    for study in studies:
        found = recorded(client, study.study_name)
        assert_complete(found, study, "all")
        assert found.run.params["sampler"] == study.study_name
        assert found.run.params["weights.n"] == "3"
        assert found.run.tags["network"] == "digits"
        assert found.run.tags["version.optuna"] == optuna.__version__
    assert len(client.search_experiments(filter_string="name = 'wpo'")) == 1
    assert (working_directory / "mlruns").is_dir()
    assert mlflow.active_run() is None
    changed = {name for name, _ in environment.items() ^ os.environ.items()}
    assert changed <= {"PYTEST_CURRENT_TEST"}
    assert not list(Path(tempfile.gettempdir()).glob("wpo_memory_*"))


def run_and_raise(study: optuna.Study, tracker: MlflowTracker, error: type[BaseException]) -> None:
    study.optimize(objective, n_trials=4, callbacks=[tracker])
    raise error


def test_a_resumed_study_goes_on_in_its_run(store: str) -> None:
    """The storage is reopened, as by another process; the first session was interrupted.

    The run lasts from the first session's start to the last one's end.
    """
    client, before_ms = MlflowClient(store), 1000 * time.time()
    study = make_study(storage=open_storage("sqlite:///wpo.db"), seed=1)
    with pytest.raises(KeyboardInterrupt), MlflowTracker() as tracker:
        run_and_raise(study, tracker, KeyboardInterrupt)
    assert recorded(client, "quadratic").run.status == "KILLED"

    study = make_study(storage=open_storage("sqlite:///wpo.db"), seed=2)
    another = optuna.create_study(study_name="another", storage=open_storage("sqlite:///wpo.db"))
    tracker = MlflowTracker()
    study.optimize(objective, n_trials=1, callbacks=[tracker])
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    with pytest.raises(InvalidArgument, match="this tracker records 'quadratic'"):
        another.optimize(objective, n_trials=1, callbacks=[tracker])
    with pytest.raises(InvalidArgument, match="status = 'DONE'"):
        tracker.close("DONE")
    with pytest.raises(ZeroDivisionError), tracker:
        run_and_raise(study, tracker, ZeroDivisionError)
    found = recorded(client, "quadratic")
    assert_complete(found, study, "all", ended="FAILED")
    assert len(study.trials) == 9
    first, last = study.trials[0].datetime_start, study.trials[-1].datetime_complete
    assert before_ms - 1 <= found.run.start_time <= 1000 * first.timestamp()
    assert found.run.end_time >= 1000 * last.timestamp()


def test_a_tracker_nobody_closes_delivers_all_the_same(store: str) -> None:
    """As in ``study.optimize(..., callbacks=[MlflowTracker()])`` and the end of the program."""
    script = """
        from tracked_studies import make_study, objective
        from wpo_optuna.storage import open_storage
        from wpo_optuna import MlflowTracker
        study = make_study("finished", storage=open_storage("sqlite:///wpo.db"))
        study.optimize(objective, n_trials=6, callbacks=[MlflowTracker()])
        make_study("in memory").optimize(objective, n_trials=6, callbacks=[MlflowTracker()])
        tracker = MlflowTracker()
        study = make_study("interrupted", storage=open_storage("sqlite:///wpo.db"))
        study.optimize(objective, n_trials=6, callbacks=[tracker])
        raise KeyboardInterrupt
    """
    run_script(script)
    client = MlflowClient(store)
    for name, ended in (("finished", "FINISHED"), ("interrupted", "KILLED")):
        study = optuna.load_study(study_name=name, storage="sqlite:///wpo.db")
        assert_complete(recorded(client, name), study, "all", ended)
    assert set(recorded(client, "in memory").trials) == set(range(6))


KERNEL = """
    import time
    from tracked_studies import make_study, objective
    from wpo_optuna.storage import open_storage
    from wpo_optuna import MlflowTracker
    study = make_study("kernel", storage=STORAGE)
    tracker = MlflowTracker()
    study.optimize(objective, n_trials=30, callbacks=[tracker])
    if WAIT:
        tracker.run_id
        time.sleep(1.5)
    print("done", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("storage", ["sqlite", "memory"])
def test_a_notebook_whose_kernel_is_killed_loses_nothing_that_was_stored(
    storage: str, number: int, store: str
) -> None:
    """Its whole process group is: at once, or, of a study in memory, when that has been copied."""
    opened = 'open_storage("sqlite:///wpo.db")' if storage == "sqlite" else "None"
    kernel = start_script(
        KERNEL.replace("STORAGE", opened).replace("WAIT", str(storage == "memory"))
    )
    assert kernel.stdout is not None
    assert kernel.stdout.readline() == "done\n"
    os.killpg(kernel.pid, number)
    kernel.wait()
    client = MlflowClient(store)
    wait_until(lambda: [r.info.status for r in all_runs(client) if r.info.run_name == "kernel"])
    wait_until(lambda: recorded(client, "kernel").run.status == "KILLED")
    found = recorded(client, "kernel")
    assert set(found.trials) == set(range(30))
    if storage == "sqlite":
        study = optuna.load_study(study_name="kernel", storage="sqlite:///wpo.db")
        assert_complete(found, study, "all", "KILLED")


def test_two_processes_on_one_study_record_it_once_in_a_new_store(
    working_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both would create MLflow's tables, in the place that a variable names."""
    uri = f"sqlite:///{working_directory}/elsewhere.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    script = """
        import time
        from tracked_studies import make_study, objective
        from wpo_optuna.storage import open_storage
        from wpo_optuna import MlflowTracker
        study = make_study(storage=open_storage("sqlite:///wpo.db"), seed=None)
        def slow(trial):
            time.sleep(0.05)
            return objective(trial)
        with MlflowTracker() as tracker:
            study.optimize(slow, n_trials=20, callbacks=[tracker])
    """
    make_study(storage=open_storage("sqlite:///wpo.db"))
    workers = [start_script(script) for _ in range(2)]
    errors = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    study = optuna.load_study(study_name="quadratic", storage="sqlite:///wpo.db")
    client = MlflowClient(uri)
    assert not (working_directory / "mlflow.db").exists()
    assert len(study.trials) == 40
    assert set(recorded(client, "quadratic").trials) == set(range(40))
    assert len(recorded(client, "quadratic").run.histories["trial_tnmse"]) == 40
    assert len(all_runs(client)) == 41


def test_ctrl_c_while_waiting_for_the_end_ends_the_waiting(store: str) -> None:
    script = """
        from tracked_studies import finished_trials, make_study
        from wpo_optuna.storage import FinishedTrials, open_storage
        from wpo_optuna import MlflowTracker
        study = make_study(storage=open_storage("sqlite:///wpo.db"))
        FinishedTrials(study).append(finished_trials(6000))
        tracker = MlflowTracker(trial_runs="all")
        tracker(study, study.trials[0])
        tracker.run_id
        print("closing", flush=True)
        tracker.close()
    """
    process = start_script(script)
    assert process.stdout is not None
    assert process.stdout.readline() == "closing\n"
    (child,) = children(process.pid)
    time.sleep(0.5)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert time.monotonic() - started < 5, errors
    assert "KeyboardInterrupt" in errors
    assert "-m wpo_optuna.track --study-name quadratic --storage sqlite:///wpo.db" in errors
    wait_until(lambda: not Path(f"/proc/{child}").exists())


@pytest.mark.parametrize("named", ["MLFLOW_TRACKING_URI", "tracking_uri"])
def test_the_file_of_the_optuna_storage_is_refused_before_anything_is_written(
    named: str, working_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(storage=open_storage("sqlite:///wpo.db"))
    Path("link.db").symlink_to("wpo.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{working_directory}/wpo.db")
    tracker = MlflowTracker(None if named.isupper() else "sqlite:///link.db")
    with pytest.raises(InvalidArgument, match=rf"^{named} = [^\n]*needs one of its own[^\n]*$"):
        study.optimize(objective, n_trials=1, callbacks=[tracker])
    assert attributes.DESTINATION not in study.user_attrs
    assert tracker.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trial_runs": "bset"}, "did you mean 'best'?"),
        ({"experiment_name": ""}, "experiment_name = ''"),
        ({"tracking_uri": "htp://127.0.0.1"}, "tracking_uri = 'htp://127.0.0.1': accepted"),
        ({"tracking_uri": "ftp://me:secret@host"}, "ftp://me:***@host"),
        ({"tracking_uri": "./mlruns"}, "accepted is a database"),
        ({"tracking_uri": "postgresql+pg8000://u:secret@h/n"}, "SQLAlchemy has no driver"),
        ({"tracking_uri": None}, "MLFLOW_TRACKING_URI = 'ftp://x': accepted"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(
    arguments: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://x")
    monkeypatch.setitem(sys.modules, "pg8000", None)
    with pytest.raises(InvalidArgument, match=r"^[^\n]*$") as refusal:
        MlflowTracker(**({"tracking_uri": "http://127.0.0.1:9"} | arguments))  # type: ignore[arg-type]
    assert message in str(refusal.value)
    assert "secret" not in str(refusal.value)
