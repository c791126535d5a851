"""Small studies whose trials carry a weight programming trial's attributes, and what MLflow has."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState, create_trial

BASELINE = 0.1524
# A trial's metrics.
NUMBERS = {"tnmse", "loss", "baseline", "improvement_percent_engine", "f_1", "f_2"} | {
    f"g_{pair}_{device}_at_{weight}"
    for pair in (1, 2)
    for device in ("plus", "minus")
    for weight in ("0", "0.5", "1")
}
SERIES = ("trial_tnmse", "trial_loss", "best_tnmse")


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
    name: str = "quadratic", storage: Any = None, seed: int | None = 1, sampler: str = "random"
) -> optuna.Study:
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        sampler=optuna.samplers.RandomSampler(seed=seed),
        load_if_exists=True,
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


def finished_trials(n: int, seed: int = 0) -> list[FrozenTrial]:
    return [finished_trial(x) for x in np.random.default_rng(seed).random((n, 4)).tolist()]


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
    artifacts: dict[str, bytes]


@dataclasses.dataclass(frozen=True)
class RecordedStudy:
    """What MLflow has of a study."""

    run: RecordedRun
    trials: dict[int, RecordedRun]


# Who wrote a run and with which program, its colour beside others, and the id of the parent.
_OWN_TAGS = ("wpo.writer", "mlflow.runColor", "mlflow.source.name", "mlflow.parentRunId")


def recorded(client: MlflowClient, study_name: str, experiment: str = "wpo") -> RecordedStudy:
    """Reads a study back; fails if it or one of its trials is there twice."""
    runs = all_runs(client, experiment)
    studies = [run for run in runs if run.data.tags.get("wpo.kind") == "study"]
    (parent,) = (run for run in studies if run.info.run_name == study_name)
    trials: dict[int, RecordedRun] = {}
    for run in runs:
        is_under_it = run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
        if is_under_it and run not in studies:
            number = int(run.data.tags["wpo.trial_number"])
            assert number not in trials, f"trial {number} has two runs"
            trials[number] = read_run(client, run)
    return RecordedStudy(read_run(client, parent), trials)


def all_runs(client: MlflowClient, experiment: str = "wpo") -> list[Run]:
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    return list(client.search_runs([found.experiment_id], max_results=50000))


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
            file.path: Path(client.download_artifacts(run_id, file.path)).read_bytes()
            for file in client.list_artifacts(run_id)
            if not file.is_dir
        },
    )


def assert_complete(
    found: RecordedStudy, study: optuna.Study, trial_runs: str, ended: str = "FINISHED"
) -> None:
    """Checks that MLflow has a study's trials exactly, each once."""
    trials = study.get_trials(deepcopy=False)
    best = math.inf
    expected: dict[str, list[tuple[int, float]]] = {name: [] for name in SERIES}
    improving = set()
    for trial in trials:
        if trial.state != TrialState.COMPLETE:
            continue
        tnmse = trial.user_attrs["tnmse"]
        if tnmse < best:
            improving.add(trial.number)
        best = min(best, tnmse)
        for name, value in zip(SERIES, (tnmse, trial.value, best), strict=True):
            expected[name].append((trial.number, value))
    for name in SERIES:
        series = [(step, float(value)) for step, value, _ in found.run.histories[name]]
        assert series == expected[name], name
    if improving:
        assert_shows(found.run, trials[max(improving)])
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
    told = trial.user_attrs
    for name in ("f_lst", "g_lst", "k_w"):
        assert json.loads(run.params[name]) == told[name]
    assert all(len(history) == 1 for history in run.histories.values())
    assert run.histories.keys() == NUMBERS
    assert_shows(run, trial)


def assert_shows(run: RecordedRun, trial: FrozenTrial) -> None:
    """Checks the numbers that MLflow's tables show of a trial's run, or of its study's."""
    told = trial.user_attrs
    latest = {
        name: float(max(history, key=lambda point: (point[0], point[2]))[1])
        for name, history in run.histories.items()
    }
    expected = {
        "tnmse": told["tnmse"],
        "loss": trial.value,
        "baseline": BASELINE,
        "improvement_percent_engine": 100 * (BASELINE - told["tnmse"]) / BASELINE,
        "f_1": told["f_lst"][0],
        "f_2": told["f_lst"][1],
        "g_1_minus_at_0": round(told["g_lst"][1][len(told["g_lst"][1]) // 2], 3),
        "g_2_plus_at_1": round(told["g_lst"][2][-1], 3),
    }
    assert {name: latest[name] for name in expected} == expected


def assert_table(found: RecordedStudy, study: optuna.Study) -> None:
    rows = pq.read_table(pa.BufferReader(found.run.artifacts["trials.parquet"])).to_pylist()
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    numbers = [trial.number for trial in trials]
    assert [row["number"] for row in rows] == numbers
    for row, trial in zip(rows, trials, strict=True):
        assert row["state"] == trial.state.name
        if trial.state == TrialState.COMPLETE:
            for name in ("tnmse", "baseline", "f_lst", "g_lst", "k_w"):
                assert row[name] == trial.user_attrs[name]
            assert row["loss"] == trial.value
            assert row["x"] == list(trial.params.values())
    shown = json.loads(found.run.artifacts["trials.json"])
    assert [row[0] for row in shown["data"]] == numbers
