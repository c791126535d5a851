"""Stored studies of a small problem, as they are when they end, to be reported on."""

from __future__ import annotations

import atexit
import functools
import shutil
import sqlite3
import tempfile
from pathlib import Path

import optuna
from small_problems import small_problem

from wpo_optuna.loss.monte_carlo import MonteCarloEngine
from wpo_optuna.problem import WeightProgrammingProblem
from wpo_optuna.report.measurements import measure
from wpo_optuna.storage import FinishedTrials, open_storage
from wpo_optuna.study import attributes
from wpo_optuna.study.description import summary
from wpo_optuna.study.estimate import Estimate
from wpo_optuna.study.objective import HypercubeObjective
from wpo_optuna.study.scoring import Finalist, Scores, strategy_of
from wpo_optuna.study.settings import StudySettings

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
    FinishedTrials(study).append(found.trials)
    return study


def finish(study: optuna.Study, problem: WeightProgrammingProblem, folder: Path) -> None:
    """Scores the two best trials, without drawing anything, and measures the winner."""
    objective = objective_of(problem)
    trials = sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.value)

    def score(tnmse: float) -> Estimate:
        return Estimate(tnmse, 0.99 * tnmse, 1.01 * tnmse, draws=24)

    of_engine = [trial.user_attrs["tnmse"] for trial in trials[:2]]
    scores = Scores(
        n_trials=len(trials),
        n_wanted=2,
        finalists=tuple(
            Finalist(trial.number, tnmse, score(1.02 * tnmse))
            for trial, tnmse in zip(trials, of_engine, strict=False)
        ),
        winner=score(1.03 * of_engine[0]),
        baseline=score(objective.baseline),
    )
    study.set_user_attr(attributes.SCORES, scores.to_json())
    study.set_user_attr(attributes.RESULTS, str(folder))
    study.set_user_attr(attributes.SETTINGS, StudySettings.checked({}).to_yaml())
    strategy = strategy_of(objective, trials[0])
    strategy.save(folder / "strategy.json")
    measure(problem, strategy, folder, winning_trial=scores.winning_trial)


@functools.cache
def objective_of(problem: WeightProgrammingProblem) -> HypercubeObjective:
    """The objective of a problem, made once."""
    return HypercubeObjective(problem, MonteCarloEngine(problem))
