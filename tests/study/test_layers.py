"""Strategies by layer: a study for each, compared with the network-wide strategy, under one run."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import optuna
import pytest
import torch
from mlflow import MlflowClient
from optuna.trial import TrialState
from small_problems import gaussian_weights, small_problem

from wpo_optuna import run_study
from wpo_optuna.loss import make_engine
from wpo_optuna.network.weights import read_weights
from wpo_optuna.study import estimate
from wpo_optuna.study.layers import LayersResult, run_layers
from wpo_optuna.study.problem_setup import ProblemSetup

N_TRIALS = 60
# Weights up to the largest alike, and few large among many small ones: what suits one does not
# suit the other.
WEIGHTS = {
    "first.weight": torch.linspace(-0.5, 0.5, 300),
    "second.weight": 10 * gaussian_weights(200, seed=1) ** 3,
}


CHECKPOINT = read_weights({name: weights.reshape(-1, 10) for name, weights in WEIGHTS.items()})
SETUP = ProblemSetup(
    "net", lambda weights: small_problem(weights=weights), CHECKPOINT,
    small_problem(weights=CHECKPOINT.weights),
)  # fmt: skip


def run(directory: Path) -> LayersResult:
    one = partial(
        run_study,
        n_trials=N_TRIALS,
        storage=f"sqlite:///{directory}/wpo.db",
        tracking_uri=f"sqlite:///{directory}/mlflow.db",
        self_check=False,
        finalists=1,
        trial_runs="none",
        report=False,
    )
    return run_layers(one, SETUP)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layers")


@pytest.fixture(scope="module")
def result(directory: Path) -> Iterator[LayersResult]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "_MOST_DRAWS", 120)
        yield run(directory)


def test_every_layer_has_a_strategy_that_is_scored_beside_the_network_wide_one(
    result: LayersResult,
) -> None:
    assert [layer.name for layer in result.layers] == list(WEIGHTS)
    assert [layer.count for layer in result.layers] == [300, 200]
    assert result.strategies.keys() == WEIGHTS.keys()
    assert len({strategy.f_lst + strategy.g_lst for strategy in result.strategies.values()}) == 2
    for found, weights in zip(result.layers, WEIGHTS.values(), strict=True):
        expected = make_engine("expected", small_problem(weights=weights))
        own, network_wide = (
            expected.tnmse_of(strategy.to_converter(), 1)[0]
            for strategy in (found.strategy, result.network.strategy)
        )
        # The second layer's weights make up nearly all of the network's distribution.
        assert own < network_wide * (0.99 if found.name == "first.weight" else 1.001)
        # A hundred draws or more of a tile as small as this know a mean to 3 %.
        assert found.per_layer.mean == pytest.approx(own, rel=0.15)
        assert found.network_wide.mean == pytest.approx(network_wide, rel=0.15)
    means = result.means()
    mean = (300 * result.layers[0].per_layer.mean + 200 * result.layers[1].per_layer.mean) / 500
    assert means["per_layer"] == pytest.approx(mean)


def test_the_table_has_a_line_for_each_layer_and_one_for_all_weights(
    result: LayersResult, tmp_path: Path
) -> None:
    head, *rows = result.table().splitlines()
    assert head.split("  ")[0] == "layer"
    assert [row.split()[0] for row in rows] == [*WEIGHTS, "all"]
    assert "30×10" in rows[0]
    result.write(tmp_path / "results" / "layers.csv")
    with (tmp_path / "results" / "layers.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["layer"] for row in written] == list(WEIGHTS)
    assert float(written[1]["network_wide_tnmse"]) == result.layers[1].network_wide.mean
    assert written[1]["study"] == "net/second.weight"


def test_the_runs_of_the_layers_are_under_that_of_the_network(
    result: LayersResult, directory: Path
) -> None:
    client = MlflowClient(f"sqlite:///{directory}/mlflow.db")
    experiment = client.get_experiment_by_name("wpo")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {"net", "net/first.weight", "net/second.weight"}
    assert "mlflow.parentRunId" not in runs["net"].data.tags
    for name in WEIGHTS:
        assert runs[f"net/{name}"].data.tags["mlflow.parentRunId"] == runs["net"].info.run_id
    assert result.network.run_id == runs["net"].info.run_id


def test_running_again_adds_no_trial_and_changes_no_score(
    result: LayersResult, directory: Path
) -> None:
    again = run(directory)
    assert again.network.n_new_trials == 0
    assert again.layers == result.layers
    url = f"sqlite:///{directory}/wpo.db"
    for name in ("net", *(f"net/{layer}" for layer in WEIGHTS)):
        study = optuna.load_study(study_name=name, storage=url)
        assert len(study.get_trials(states=(TrialState.COMPLETE,))) == N_TRIALS
