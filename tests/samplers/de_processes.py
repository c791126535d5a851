"""Processes that work on one study in a SQLite file."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna
from de_functions import FUNCTIONS, candidates_of_scipy, search_space
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.samplers import DESampler
from wpo_optuna.samplers.candidate_claims import CLAIM_KEY

SPACE: dict[str, BaseDistribution] = dict(search_space("sphere", 2))
POPSIZE = 3
SIZE = POPSIZE * len(SPACE)
STUDY = "one"

OpenStorage = Callable[[], BaseStorage]


def rdb_storage(path: Path) -> BaseStorage:
    """Optuna's own storage in a file."""
    return optuna.storages.RDBStorage(
        f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}}
    )


def make_sampler(**options: Any) -> DESampler:
    return DESampler(**({"seed": 1, "popsize": POPSIZE, "search_space": SPACE} | options))


def evaluate(trial: optuna.Trial) -> float:
    return sum(trial.suggest_float(name, d.low, d.high) ** 2 for name, d in SPACE.items())


def load(storage: BaseStorage, **options: Any) -> optuna.Study:
    return optuna.load_study(storage=storage, study_name=STUDY, sampler=make_sampler(**options))


def completed(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def work(
    open_storage: OpenStorage,
    n_completed: int,
    objective: Callable[[optuna.Trial], float] = evaluate,
    **options: Any,
) -> None:
    """Evaluates trials until so many are completed by all processes together."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = load(open_storage(), **options)

    def stop_at_the_end(study: optuna.Study, trial: FrozenTrial) -> None:
        if len(completed(study)) >= n_completed:
            study.stop()

    if len(completed(study)) < n_completed:
        study.optimize(objective, callbacks=[stop_at_the_end])


def start(function: Callable[..., None], *arguments: Any, **options: Any) -> BaseProcess:
    # Forked, not spawned: importing Optuna anew takes longer than a whole study.
    process = multiprocessing.get_context("fork").Process(
        target=function, args=arguments, kwargs=options, daemon=True
    )
    process.start()
    return process


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.005)


def expected_params(n_trials: int) -> list[dict[str, float]]:
    """The parameters of so many candidates, as scipy proposes them."""
    function, low, high = FUNCTIONS["sphere"]
    points = candidates_of_scipy(
        function, [(low, high)] * len(SPACE), -(-n_trials // SIZE), seed=1, popsize=POPSIZE
    )
    return [dict(zip(SPACE, point.tolist(), strict=True)) for point in points[:n_trials]]


def check_candidates(study: optuna.Study) -> None:
    """Every candidate of each finished generation was completed once, and is scipy's."""
    trials = {}
    for trial in completed(study):
        claim = trial.system_attrs[CLAIM_KEY]
        if not claim["space"]:
            # An independent draw, while the search space was unknown.
            continue
        place = claim["generation"] * SIZE + claim["index"]
        assert place not in trials, "a candidate was evaluated twice"
        trials[place] = trial
    n_finished = (max(trials) // SIZE) * SIZE
    assert set(range(n_finished)) <= trials.keys(), "a candidate was left out"
    expected = expected_params(max(trials) + 1)
    assert all(trial.params == expected[place] for place, trial in trials.items())
