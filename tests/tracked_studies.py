"""Small studies whose trials carry a weight programming trial's attributes, and what MLflow has."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState, create_trial

BASELINE = 0.1524
SERIES = ("tnmse", "loss", "baseline", "best_tnmse")


def attributes(x: list[float], n_knots: int = 5) -> dict[str, Any]:
    """A trial's user attributes, all of them functions of its point."""
    return {
        "tnmse": 0.05 + sum((value - 0.3) ** 2 for value in x),
        "baseline": BASELINE,
        "f_lst": [1.0, 0.1 + x[0]],
        "g_lst": [[25 * value * k / (n_knots - 1) for k in range(n_knots)] for value in x],
        "k_w": 10 + 5 * x[1],
    }


def loss_of(tnmse: float) -> float:
    return (tnmse - BASELINE) / BASELINE + 0.125


def objective(trial: optuna.Trial) -> float:
    x = [trial.suggest_float(f"x_{i}", 0, 1) for i in range(4)]
    for name, value in attributes(x).items():
        trial.set_user_attr(name, value)
    return loss_of(trial.user_attrs["tnmse"])


def make_study(
    name: str = "quadratic", storage: Any = None, seed: int = 1, sampler: str = "random"
) -> optuna.Study:
    samplers = {
        "random": optuna.samplers.RandomSampler(seed=seed),
        "qmc": optuna.samplers.QMCSampler(seed=seed, warn_independent_sampling=False),
    }
    study = optuna.create_study(
        study_name=name, storage=storage, sampler=samplers[sampler], load_if_exists=True
    )
    study.set_user_attr("sampler", sampler)
    study.set_user_attr("engine", "expected")
    study.set_user_attr("problem", {"nbins": 6, "f_lst": [1.0, None], "tile": {"size": 512}})
    return study


def finished_trial(
    x: list[float], n_knots: int = 5, state: TrialState = TrialState.COMPLETE, **changed: Any
) -> FrozenTrial:
    """A trial to be added to a study."""
    values = attributes(x, n_knots) | changed
    return create_trial(
        state=state,
        value=loss_of(values["tnmse"]) if state == TrialState.COMPLETE else None,
        params={f"x_{i}": value for i, value in enumerate(x)},
        distributions={f"x_{i}": optuna.distributions.FloatDistribution(0, 1) for i in range(4)},
        user_attrs=values if state == TrialState.COMPLETE else {},
    )


def random_points(n: int, seed: int = 0) -> list[list[float]]:
    return np.random.default_rng(seed).random((n, 4)).tolist()


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """All that can be read of a run, except what has to differ between two of the same content."""

    name: str
    status: str
    start_time: int
    end_time: int
    params: dict[str, str]
    tags: dict[str, str]
    histories: dict[str, list[tuple[int, str, int]]]
    artifacts: dict[str, str]


@dataclasses.dataclass(frozen=True)
class RecordedStudy:
    """What MLflow has of a study."""

    run: RecordedRun
    trials: dict[int, RecordedRun]


# When and beside how many others a run was made, by which program, and the id of the parent.
_OWN_TAGS = (
    "wpo.created_ns", "wpo.writer", "mlflow.runColor", "mlflow.source.name", "mlflow.parentRunId",
)  # fmt: skip


def recorded(client: MlflowClient, study_name: str, experiment: str = "wpo") -> RecordedStudy:
    """Reads a study back; fails if it or one of its trials is there twice."""
    study_runs = [
        run
        for run in all_runs(client, experiment)
        if run.data.tags.get("wpo.kind") == "study" and run.info.run_name == study_name
    ]
    assert len(study_runs) == 1, f"{len(study_runs)} runs of study {study_name}"
    parent = study_runs[0]
    trials: dict[int, RecordedRun] = {}
    for run in all_runs(client, experiment):
        is_under_it = run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
        if is_under_it and run.data.tags.get("wpo.kind") != "study":
            number = int(run.data.tags["wpo.trial_number"])
            assert number not in trials, f"trial {number} has two runs"
            trials[number] = read_run(client, run)
    return RecordedStudy(read_run(client, parent), trials)


def all_runs(client: MlflowClient, experiment: str = "wpo") -> list[Run]:
    found = client.get_experiment_by_name(experiment)
    return (
        [] if found is None else list(client.search_runs([found.experiment_id], max_results=50000))
    )


def read_run(client: MlflowClient, run: Run) -> RecordedRun:
    run_id = run.info.run_id
    return RecordedRun(
        name=run.info.run_name,
        status=run.info.status,
        start_time=run.info.start_time,
        end_time=run.info.end_time,
        params=dict(run.data.params),
        tags={name: value for name, value in run.data.tags.items() if name not in _OWN_TAGS},
        histories={
            # As text, so that NaN equals itself.
            key: sorted(
                (metric.step, repr(metric.value), metric.timestamp)
                for metric in client.get_metric_history(run_id, key)
            )
            for key in run.data.metrics
        },
        artifacts={
            file.path: Path(client.download_artifacts(run_id, file.path)).read_bytes().hex()
            for file in client.list_artifacts(run_id)
            if not file.is_dir
        },
    )


def assert_complete(
    found: RecordedStudy, study: optuna.Study, trial_runs: str, ended: str = "FINISHED"
) -> None:
    """Checks that MLflow has a study's trials exactly, each once."""
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    best = math.inf
    expected: dict[str, list[tuple[int, float]]] = {name: [] for name in SERIES}
    improving = set()
    for trial in complete:
        tnmse = trial.user_attrs["tnmse"]
        if tnmse < best:
            improving.add(trial.number)
        best = min(best, tnmse)
        for name, value in zip(SERIES, (tnmse, trial.value, BASELINE, best), strict=True):
            expected[name].append((trial.number, value))
    for name in SERIES:
        assert [(step, float(value)) for step, value, _ in found.run.histories[name]] == (
            expected[name]
        ), name
    wanted = {
        "all": {trial.number for trial in trials if trial.state.is_finished()},
        "best": improving,
        "none": set(),
    }[trial_runs]
    assert set(found.trials) == wanted
    for number, run in found.trials.items():
        assert_trial_run(run, trials[number])
    assert found.run.status == ended
    assert_table(found, study)


def assert_trial_run(run: RecordedRun, trial: FrozenTrial) -> None:
    if trial.state != TrialState.COMPLETE:
        assert run.status in ("KILLED", "FAILED")
        return
    assert run.status == "FINISHED"
    attributes = trial.user_attrs
    assert json.loads(run.params["f_lst"]) == attributes["f_lst"]
    assert json.loads(run.params["g_lst"]) == attributes["g_lst"]
    assert float(run.params["k_w"]) == attributes["k_w"]
    improvement = 100 * (BASELINE - attributes["tnmse"]) / BASELINE
    values = {name: float(history[0][1]) for name, history in run.histories.items()}
    assert all(len(history) == 1 for history in run.histories.values())
    assert values == {
        "tnmse": attributes["tnmse"],
        "loss": trial.value,
        "baseline": BASELINE,
        "improvement": improvement,
    }


def assert_table(found: RecordedStudy, study: optuna.Study) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = pa.BufferReader(bytes.fromhex(found.run.artifacts["trials.parquet"]))
    rows = pq.read_table(source).to_pylist()
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    assert [row["number"] for row in rows] == [trial.number for trial in trials]
    for row, trial in zip(rows, trials, strict=True):
        assert row["state"] == trial.state.name
        if trial.state == TrialState.COMPLETE:
            assert {name: row[name] for name in ("tnmse", "baseline", "f_lst", "g_lst", "k_w")} == {
                name: trial.user_attrs[name]
                for name in ("tnmse", "baseline", "f_lst", "g_lst", "k_w")
            }
            assert row["loss"] == trial.value
            assert row["x"] == list(trial.params.values())
    shown = json.loads(bytes.fromhex(found.run.artifacts["trials.json"]))
    assert [row[0] for row in shown["data"]] == [trial.number for trial in trials]
