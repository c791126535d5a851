"""Stored studies of a small problem, as they are when they end, to be reported on."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import optuna
from small_problems import small_problem

from wpo_optuna.loss.monte_carlo import MonteCarloEngine
from wpo_optuna.loss.reference import ReferenceEngine
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem
from wpo_optuna.report.reporting.measurements import keep_measurements
from wpo_optuna.storage import open_storage
from wpo_optuna.study import study_identity as identity
from wpo_optuna.study.estimate import Estimate
from wpo_optuna.study.objective import HypercubeObjective
from wpo_optuna.study.optimize import optimize
from wpo_optuna.study.scoring import SCORES, Finalist, Scores, strategy_of

FINISHED, ALSO_FINISHED, UNFINISHED, EMPTY = "digits-random", "digits-2", "cut off", "empty"
N_TRIALS = 60


@functools.cache
def database() -> Path:
    """An SQLite database with all of the studies; not to be changed."""
    directory = Path(tempfile.mkdtemp(prefix="wpo_reported_"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    path = directory / "wpo.db"
    problem = small_problem(t_steps=[1.0, 60.0, 3600.0], baseline_iterations=20)
    finish(search(f"sqlite:///{path}", FINISHED, problem), problem)
    finish(search(f"sqlite:///{path}", ALSO_FINISHED, problem, seed=2, n_trials=30), problem)
    search(f"sqlite:///{path}", UNFINISHED, problem, seed=3, n_trials=8)
    search(f"sqlite:///{path}", EMPTY, problem, n_trials=0)
    return path


def stored_study(name: str = FINISHED) -> optuna.Study:
    """One of the database's studies."""
    return optuna.load_study(study_name=name, storage=open_storage(f"sqlite:///{database()}"))


def search(
    storage: str, name: str, problem: WeightProgrammingProblem, seed: int = 1,
    n_trials: int = N_TRIALS,
) -> optuna.Study:  # fmt: skip
    """A study with random trials, not scored."""
    objective = objective_of(problem)
    study = identity.create_study(
        open_storage(storage), name, problem,
        {identity.SAMPLER: "random", identity.SAMPLER_OPTIONS: {}, identity.SEED: seed,
         identity.ENGINE: objective.engine.name, identity.BASELINE: objective.baseline},
    )  # fmt: skip
    study.sampler = optuna.samplers.RandomSampler(seed=seed)
    optimize(
        study, objective, n_trials=n_trials, batch_size=64, on_finished=lambda trials: None,
        should_stop=lambda: n_trials == 0,
    )  # fmt: skip
    return study


def finish(study: optuna.Study, problem: WeightProgrammingProblem, n_finalists: int = 2) -> Scores:
    """Scores the best trials, with fewer draws than a real study, and measures the winner."""
    trials = sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.value)
    objective, engine = objective_of(problem), ReferenceEngine(problem)

    def score(converter: object, seed: int) -> Estimate:
        return Estimate.of(engine.tnmse_of(converter, repeats=6, seed=seed))  # type: ignore[arg-type]

    strategies = [strategy_of(objective, trial) for trial in trials[:n_finalists]]
    found = [
        Finalist(trial.number, trial.user_attrs["tnmse"], score(strategy.to_converter(), 10 + i))
        for i, (trial, strategy) in enumerate(zip(trials, strategies, strict=False))
    ]
    best = int(np.argmin([finalist.tnmse.mean for finalist in found]))
    scores = Scores(
        n_trials=len(trials),
        n_wanted=n_finalists,
        finalists=tuple(sorted(found, key=lambda finalist: finalist.tnmse.mean)),
        winner=score(strategies[best].to_converter(), 1),
        baseline=score(problem.g_converter_baseline, 2),
    )
    study.set_user_attr(SCORES, scores.to_json())
    keep_measurements(study, objective, scores, strategies[best])
    return scores


@functools.cache
def objective_of(problem: WeightProgrammingProblem) -> HypercubeObjective:
    """The objective of a problem, made once."""
    return HypercubeObjective(problem, MonteCarloEngine(problem))
