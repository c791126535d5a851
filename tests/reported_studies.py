"""Stored studies of a small problem, as they are when they end, to be reported on."""

from __future__ import annotations

import atexit
import functools
import shutil
import sqlite3
import tempfile
from pathlib import Path

import numpy as np
import optuna
from small_problems import small_problem

from wpo_optuna.loss.monte_carlo import MonteCarloEngine
from wpo_optuna.problem import WeightProgrammingProblem
from wpo_optuna.report import measure
from wpo_optuna.storage import FinishedTrials, open_storage
from wpo_optuna.study import attributes
from wpo_optuna.study.estimate import Estimate
from wpo_optuna.study.objective import HypercubeObjective
from wpo_optuna.study.opening import summary
from wpo_optuna.study.scoring import Finalist, Scores, strategy_of

FINISHED, ALSO_FINISHED, UNFINISHED, EMPTY = "digits-random", "digits-2", "cut off", "empty"
N_TRIALS = 60


@functools.cache
def directory() -> Path:
    """A database ``wpo.db`` with all of the studies, and their results; not to be changed."""
    path = Path(tempfile.mkdtemp(prefix="wpo_reported_"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    storage = f"sqlite:///{path}/wpo.db"
    problem = small_problem(t_steps=[1.0, 60.0, 3600.0], baseline_iterations=20)
    finish(search(storage, FINISHED, problem), problem, path / FINISHED)
    also = search(storage, ALSO_FINISHED, problem, seed=2, n_trials=30)
    finish(also, problem, path / ALSO_FINISHED)
    search(storage, UNFINISHED, problem, seed=3, n_trials=8)
    search(storage, EMPTY, problem, n_trials=0)
    with sqlite3.connect(path / "wpo.db") as database:  # the file alone is copied by tests
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def stored_study(name: str = FINISHED) -> optuna.Study:
    """One of the database's studies."""
    storage = open_storage(f"sqlite:///{directory()}/wpo.db")
    return optuna.load_study(study_name=name, storage=storage)


def search(
    storage: str, name: str, problem: WeightProgrammingProblem, seed: int = 1,
    n_trials: int = N_TRIALS,
) -> optuna.Study:  # fmt: skip
    """A study with random trials, not scored."""
    objective = objective_of(problem)
    found = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    found.optimize(objective, n_trials=n_trials)
    study = optuna.create_study(study_name=name, storage=open_storage(storage))
    for attribute, value in {
        attributes.FINGERPRINT: problem.fingerprint,
        attributes.PROBLEM: summary(problem),
        attributes.SAMPLER: "random",
        attributes.SAMPLER_OPTIONS: {},
        attributes.SEED: seed,
        attributes.ENGINE: objective.engine.name,
        attributes.BASELINE: objective.baseline,
        attributes.VERSIONS: {"optuna": optuna.__version__},
    }.items():
        study.set_user_attr(attribute, value)
    FinishedTrials(study).append(found.trials, None, lambda trial: None)
    return study


def finish(
    study: optuna.Study, problem: WeightProgrammingProblem, folder: Path, n_finalists: int = 2
) -> Scores:
    """Scores the best trials, with fewer draws than a real study, and measures the winner."""
    trials = sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.value)
    objective, engine = objective_of(problem), MonteCarloEngine(problem)

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
    study.set_user_attr(attributes.SCORES, scores.to_json())
    study.set_user_attr(attributes.RESULTS, str(folder))
    measure(problem, strategies[best], folder, winning_trial=scores.winning_trial)
    return scores


@functools.cache
def objective_of(problem: WeightProgrammingProblem) -> HypercubeObjective:
    """The objective of a problem, made once."""
    return HypercubeObjective(problem, MonteCarloEngine(problem))
