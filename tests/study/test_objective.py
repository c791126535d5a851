"""The objective in a plain Optuna study: what the study is told, and which names it uses."""

from __future__ import annotations

from pathlib import Path

import mlflow
import optuna
import pytest
from small_problems import small_problem

from wpo_optuna import DESampler, HypercubeObjective, MlflowTracker, make_engine, polish
from wpo_optuna.study import attributes
from wpo_optuna.study.scoring import strategy_of


@pytest.fixture(scope="module")
def objective() -> HypercubeObjective:
    problem = small_problem(baseline_iterations=3)
    return HypercubeObjective(problem, make_engine("expected", problem))


def test_the_problem_is_among_the_parameters_of_the_studys_mlflow_run(
    objective: HypercubeObjective, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    study = optuna.create_study(sampler=DESampler(seed=1, popsize=1))
    with MlflowTracker(uri, trial_runs="none", show_progress_bar=False) as tracker:
        study.optimize(lambda trial: objective(trial), n_trials=3, callbacks=[tracker])
    told = mlflow.MlflowClient(uri).get_run(tracker.run_id).data.params
    assert told["problem.noise_model"] == "PCMLikeNoiseModel"
    assert told["problem.f_lst"] == "[1.0, null]"
    assert told["problem.t_steps_s"] == "[1.0, 3600.0]"
    assert told["problem.baseline_converter"].startswith("DualPairConductanceConverter(")
    assert told["problem_fingerprint"] == objective.problem.fingerprint
    assert float(told["baseline"]) == objective.baseline
    assert told["engine"] == "expected"


def test_a_study_is_told_what_its_parameters_are_and_what_it_knows_already_stays(
    objective: HypercubeObjective,
) -> None:
    study = optuna.create_study()
    study.set_user_attr("mine", 1)
    study.optimize(objective, n_trials=1)
    told = study.user_attrs
    assert "x_f_1 says where" in told[attributes.COORDINATES]
    other = small_problem(nbins=3)
    study.optimize(HypercubeObjective(other, make_engine("expected", other)), n_trials=1)
    assert study.user_attrs == told
    assert told["mine"] == 1


def test_a_fixed_trial_that_belongs_to_no_study_is_evaluated(objective: HypercubeObjective) -> None:
    params = dict.fromkeys(objective.problem.hypercube.names, 0.5)
    trial = optuna.trial.FixedTrial(params)
    assert objective(trial) == objective.evaluate([objective.point(params)])[0].loss


def test_a_study_begun_with_the_earlier_names_goes_on_with_them(
    objective: HypercubeObjective,
) -> None:
    hypercube = objective.problem.hypercube
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    first = study.ask(hypercube.distributions(hypercube.earlier_names))
    study.tell(first, objective.evaluate([objective.point(first.params)])[0].loss)
    study.optimize(objective, n_trials=2)
    polish(study, objective)
    study.optimize(objective, n_trials=1)
    assert {tuple(trial.params) for trial in study.trials} == {hypercube.earlier_names}
    assert attributes.COORDINATES not in study.user_attrs
    best = strategy_of(objective, study.best_trial)
    assert list(best.f_lst) == study.best_trial.user_attrs["f_lst"]
