"""The search of a study: sampled trials, then gradients where the engine has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from optuna.samplers import CmaEsSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from wpo_optuna.loss.expected import ExpectedEngine
from wpo_optuna.loss.gradient_search import multi_start, polish
from wpo_optuna.optimize import PHASE, Interruption, optimize, record
from wpo_optuna.rescoring import distinct

if TYPE_CHECKING:
    from optuna import Study

    from wpo_optuna.objective import HypercubeObjective

POLISH = "polish"
GRADIENT_STEP = "gradient step"
GRADIENT_START = "gradient start"

# Trials of a study that are set aside for polishing, and what share of it at most.
N_POLISHED = 5
_MOST_POLISHED_SHARE = 0.05
_POLISH_ITERATIONS = 60

# Trials that descend before the best of them are polished, and for how many steps: with these,
# four searches of 1000 trials all ended within 0.1 % of the lowest value known.
_N_DESCENDING = 32
_DESCENT_STEPS = 80

# Of a gradient search: one trial for each step and one for each start.
_STARTS_PER_STEP = 64 / 300

OnFinished = Callable[[Sequence[FrozenTrial]], None]


@dataclass(frozen=True)
class Budget:
    """How the trials of a study are spent.

    Attributes:
        sampled: trials that the sampler proposes.
        polished: trials that refine the best of these by gradient descent.
    """

    sampled: int
    polished: int

    @classmethod
    def of(cls, n_trials: int, *, polished: bool) -> Budget:
        """Divides a total; a small study is not polished."""
        n_polished = min(N_POLISHED, int(n_trials * _MOST_POLISHED_SHARE)) if polished else 0
        return cls(n_trials - n_polished, n_polished)


def default_batch_size(study: Study, objective: HypercubeObjective) -> int:
    """How many trials to evaluate at once, if the user does not say.

    An engine's cost per trial falls with the batch until its arrays leave the cache. CMA-ES and
    TPE learn after each batch, so that theirs are small.
    """
    if isinstance(study.sampler, CmaEsSampler):
        # The population size of the algorithm: Hansen, "The CMA evolution strategy", 2016.
        return 4 + int(3 * np.log(objective.problem.hypercube.dimension))
    if isinstance(study.sampler, TPESampler):
        return 8
    return {"expected": 256, "montecarlo": 64}.get(objective.engine.name, 8)


def sample(
    study: Study,
    objective: HypercubeObjective,
    *,
    n_trials: int,
    batch_size: int,
    on_finished: OnFinished,
    should_stop: Callable[[], bool],
) -> None:
    """Brings the study to ``n_trials`` completed trials, not counting polished ones."""
    optimize(
        study,
        objective,
        n_trials=n_trials + _n_of_phase(study, POLISH),
        batch_size=batch_size,
        on_finished=on_finished,
        should_stop=should_stop,
    )


def polish_best(
    study: Study, objective: HypercubeObjective, *, n_polished: int, on_finished: OnFinished
) -> None:
    """Refines the best sampled trials along the gradient and records the best distinct results.

    The best trials descend together first, which sorts out in whose valley the lowest point is;
    bounded L-BFGS then finishes the best distinct ones. Does nothing if the study has that many
    polished trials already.
    """
    assert isinstance(objective.engine, ExpectedEngine)
    n_missing = n_polished - _n_of_phase(study, POLISH)
    if n_missing <= 0:
        return
    trials = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if PHASE not in trial.user_attrs and trial.params.keys() == objective.distributions.keys()
    ]
    best = sorted(trials, key=lambda trial: (trial.value, trial.number))[:_N_DESCENDING]
    if not best:
        return
    starts = np.array([objective.point(trial.params) for trial in best])
    *_, (x, tnmse) = multi_start(objective.engine, starts, _DESCENT_STEPS)
    x = x[np.argsort(tnmse, kind="stable")]
    strategies = objective.problem.hypercube.decode(x)
    assert isinstance(strategies, list)
    x, tnmse = polish(objective.engine, x[distinct(strategies, n_missing)], _POLISH_ITERATIONS)
    on_finished(record(study, objective, x, tnmse, POLISH))


def search_by_gradient(
    study: Study,
    objective: HypercubeObjective,
    *,
    n_trials: int,
    seed: int,
    on_finished: OnFinished,
    interruption: Interruption,
) -> None:
    """Descends from many starts at once; records the best so far of each step and every end.

    The search is deterministic: a resumed one repeats the steps whose trials the study has
    already, which takes seconds, and records the others.

    Args:
        study: the study.
        objective: with the expected engine, which has gradients.
        n_trials: trials in total; about a fifth of them are starts, the others steps.
        seed: seed of the Latin hypercube of starts.
        on_finished: called with newly recorded trials.
        interruption: ends the search after the step at hand.
    """
    assert isinstance(objective.engine, ExpectedEngine)
    n_starts = max(1, round(n_trials * _STARTS_PER_STEP / (1 + _STARTS_PER_STEP)))
    n_steps = n_trials - n_starts
    if _n_of_phase(study, GRADIENT_START) >= n_starts:
        return
    n_recorded = _n_of_phase(study, GRADIENT_STEP)
    starts = qmc.LatinHypercube(objective.problem.hypercube.dimension, rng=seed).random(n_starts)
    x_best, best = starts[0], np.inf
    for step, (x, tnmse) in enumerate(multi_start(objective.engine, starts, n_steps)):
        leader = int(np.argmin(tnmse))
        if tnmse[leader] < best:
            x_best, best = x[leader].copy(), float(tnmse[leader])
        if n_recorded <= step < n_steps:
            on_finished(record(study, objective, x_best[None], np.array([best]), GRADIENT_STEP))
        if interruption.requested:
            return
    on_finished(record(study, objective, x, tnmse, GRADIENT_START))


def _n_of_phase(study: Study, phase: str) -> int:
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sum(trial.user_attrs.get(PHASE) == phase for trial in trials)
