"""The search of a study: sampled trials, then gradients where the engine has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import CmaEsSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from wpo_optuna.loss.expected import ExpectedEngine
from wpo_optuna.loss.gradient_search import multi_start, polish
from wpo_optuna.study.estimate import distinct
from wpo_optuna.study.optimize import PHASE, Origin, record, recorded

if TYPE_CHECKING:
    from optuna import Study

    from wpo_optuna.study.objective import HypercubeObjective

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
# Steps whose trials are recorded together: each time, all trials are looked through.
_STEPS_AT_ONCE = 16

OnFinished = Callable[[Sequence[FrozenTrial]], None]


@dataclass(frozen=True)
class Budget:
    """How the trials of a study are spent.

    Attributes:
        sampled: trials before the polishing, those of earlier ones included.
        polished: trials that refine the best of them by gradient descent.
    """

    sampled: int
    polished: int

    @classmethod
    def of(cls, n_trials: int, n_polished_before: int = 0) -> Budget:
        """Divides a total; a small study, or one that has hardly grown, is not polished.

        Args:
            n_trials: the total of the study.
            n_polished_before: its smaller total when it was last polished; 0 if it never was.
        """
        grown = n_trials - n_polished_before
        n_polished = min(N_POLISHED, int(grown * _MOST_POLISHED_SHARE))
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


def budget_of(study: Study, n_trials: int) -> Budget:
    """How the trials of a study are spent, given what it was polished at."""
    earlier = {origin.total for origin in recorded(study) if origin.phase == POLISH}
    return Budget.of(n_trials, max((total for total in earlier if total < n_trials), default=0))


def polish_best(
    study: Study,
    objective: HypercubeObjective,
    *,
    n_trials: int,
    n_polished: int,
    on_finished: OnFinished,
) -> None:
    """Refines the best sampled trials along the gradient and records the best distinct results.

    The best trials descend together first, which sorts out in whose valley the lowest point is;
    bounded L-BFGS then finishes the best distinct ones. Does nothing if the study was polished at
    this total already.

    Args:
        study: the study.
        objective: with the expected engine, which has gradients.
        n_trials: the total of trials that the study is brought to.
        n_polished: how many results are recorded.
        on_finished: called with newly recorded trials.
    """
    assert isinstance(objective.engine, ExpectedEngine)
    origins = [Origin(POLISH, n_trials, index) for index in range(n_polished)]
    if recorded(study).issuperset(origins):
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
    x, tnmse = polish(objective.engine, x[distinct(strategies, n_polished)], _POLISH_ITERATIONS)
    on_finished(record(study, objective, x, tnmse, origins[: len(x)]))


def search_by_gradient(
    study: Study,
    objective: HypercubeObjective,
    *,
    n_trials: int,
    seed: int,
    on_finished: OnFinished,
    should_stop: Callable[[], bool],
) -> None:
    """Descends from many starts at once; records the best so far of each step and every end.

    The search is deterministic: a resumed one repeats the steps whose trials the study has
    already, which takes seconds, and records the others. A study that is to have more trials than
    before gets further starts of its own for these.

    Args:
        study: the study.
        objective: with the expected engine, which has gradients.
        n_trials: trials in total; about a fifth of them are starts, the others steps.
        seed: seed of the Latin hypercube of starts.
        on_finished: called with newly recorded trials.
        should_stop: asked after each step.
    """
    present = recorded(study)
    totals = {o.total for o in present if o.phase in (GRADIENT_STEP, GRADIENT_START)}
    if n_trials > max(totals, default=0):
        totals.add(n_trials)
    for before, total in pairwise([0, *sorted(totals)]):
        descent = _Descent(before, total)
        if not present.issuperset(descent.origins):
            descent.carry_out(study, objective, seed, on_finished, should_stop)
        if should_stop():
            return


@dataclass(frozen=True)
class _Step:
    """The best point ``(d,)`` so far after a step, its TNMSE, and the origin of its trial."""

    x: NDArray[np.float64]
    tnmse: float
    origin: Origin


def _record_steps(
    study: Study, objective: HypercubeObjective, steps: Sequence[_Step]
) -> list[FrozenTrial]:
    if not steps:
        return []
    return record(
        study,
        objective,
        np.array([step.x for step in steps]),
        np.array([step.tnmse for step in steps]),
        [step.origin for step in steps],
    )


@dataclass(frozen=True)
class _Descent:
    """The part of a gradient search that brings a study from one total of trials to another."""

    before: int
    total: int

    @property
    def n_starts(self) -> int:
        n_trials = self.total - self.before
        return max(1, round(n_trials * _STARTS_PER_STEP / (1 + _STARTS_PER_STEP)))

    @property
    def n_steps(self) -> int:
        return self.total - self.before - self.n_starts

    @property
    def origins(self) -> list[Origin]:
        """Those of the steps, then those of the starts."""
        return [
            *(Origin(GRADIENT_STEP, self.total, index) for index in range(self.n_steps)),
            *(Origin(GRADIENT_START, self.total, index) for index in range(self.n_starts)),
        ]

    def carry_out(
        self,
        study: Study,
        objective: HypercubeObjective,
        seed: int,
        on_finished: OnFinished,
        should_stop: Callable[[], bool],
    ) -> None:
        assert isinstance(objective.engine, ExpectedEngine)
        rng = np.random.default_rng([seed, self.before] if self.before else seed)
        dimension = objective.problem.hypercube.dimension
        starts = qmc.LatinHypercube(dimension, rng=rng).random(self.n_starts)
        origins, present = self.origins, recorded(study)
        x_best, best = self._best_before(study, objective)
        steps: list[_Step] = []
        for step, (x, tnmse) in enumerate(multi_start(objective.engine, starts, self.n_steps)):
            leader = int(np.argmin(tnmse))
            if x_best is None or tnmse[leader] < best:
                x_best, best = x[leader].copy(), float(tnmse[leader])
            if step < self.n_steps and origins[step] not in present:
                steps.append(_Step(x_best, best, origins[step]))
            is_last = step == self.n_steps
            if len(steps) == _STEPS_AT_ONCE or is_last or should_stop():
                on_finished(_record_steps(study, objective, steps))
                steps = []
            if should_stop():
                return
        on_finished(record(study, objective, x, tnmse, origins[self.n_steps :]))

    def _best_before(
        self, study: Study, objective: HypercubeObjective
    ) -> tuple[NDArray[np.float64] | None, float]:
        """The best point of the descents before this one, and its TNMSE."""
        earlier = [
            trial
            for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if (origin := Origin.of(trial)) is not None and origin.total <= self.before
        ]
        if not earlier:
            return None, np.inf
        best = min(earlier, key=lambda trial: (trial.value, trial.number))
        return np.array(objective.point(best.params)), float(best.user_attrs["tnmse"])
