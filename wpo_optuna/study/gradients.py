"""Searches along the gradient of the expected engine: polishing, and descents from many starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import qmc

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss import gradient_search
from wpo_optuna.loss.gradient_search import LimitedCost, multi_start
from wpo_optuna.study.attributes import (
    CONDUCTANCE,
    GRADIENT_START,
    GRADIENT_STEP,
    LIMITED,
    PHASE,
    PHASE_INDEX,
    PHASE_TOTAL,
    POLISH,
)
from wpo_optuna.study.description import names_in
from wpo_optuna.study.estimate import distinct
from wpo_optuna.study.mirror import Mirror, Origin

if TYPE_CHECKING:
    from optuna import Study

    from wpo_optuna.study.objective import HypercubeObjective

# Trials of a study that are set aside for polishing, and what share of it at most.
N_POLISHED = 5
_MOST_POLISHED_SHARE = 0.05
_POLISH_ITERATIONS = 60

# Points of a front of two objectives, and its lowest conductance relative to that of the lowest
# TNMSE.
_N_FRONT = 16
_LOWEST_SHARE = 0.25

# Limits of the conductance on the way to the one that is asked for.
_STEPS_TO_LIMIT = 6

# Trials that descend before the best of them are polished, and for how many steps: with these,
# four searches of 1000 trials all ended within 0.1 % of the lowest value known.
_N_DESCENDING = 32
_DESCENT_STEPS = 80

# Of a gradient search: one trial for each step and one for each start.
_STARTS_PER_STEP = 64 / 300
# Trials that are stored together.
_TRIALS_AT_ONCE = 16


def number_polished(mirror: Mirror, total: int) -> int:
    """How many of a study's trials are set aside for polishing.

    None without gradients. A small study, or one that has hardly grown since it was last polished,
    is not polished either.

    Args:
        mirror: the study.
        total: the trials that it is to be brought to.
    """
    second = mirror.objective.second
    if not hasattr(mirror.objective.engine, "value_and_grad"):
        return 0
    if second is not None and second.name != CONDUCTANCE:
        return 0  # it has no gradient
    earlier = {origin.total for origin in mirror.origins() if origin.phase == POLISH}
    grown = total - max((before for before in earlier if before < total), default=0)
    most = N_POLISHED if second is None else _N_FRONT
    return min(most, int(grown * _MOST_POLISHED_SHARE))


def compile_gradient(mirror: Mirror) -> None:
    """Compiles the gradient, which takes seconds once for each kind of problem."""
    dimension = mirror.objective.problem.hypercube.dimension
    _with_gradient(mirror.objective).value_and_grad(np.full((1, dimension), 0.5))


def _sampled(mirror: Mirror) -> list[FrozenTrial]:
    """The trials of the search, the best first; not those that refine others."""
    origins = ((trial, Origin.of(trial)) for trial in mirror.completed())
    return [trial for trial, o in origins if o is None or o.phase not in (POLISH, LIMITED)]


def _unpolished(mirror: Mirror, total: int) -> list[FrozenTrial]:
    """The same; none if the study was polished at this total already."""
    is_polished = any(o.phase == POLISH and o.total == total for o in mirror.origins())
    return [] if is_polished else _sampled(mirror)


def polish_best(mirror: Mirror, *, total: int, how_many: int) -> None:
    """Refines the best sampled trials along the gradient and records the best distinct results.

    The best trials descend together first, which sorts out in whose valley the lowest point is;
    bounded L-BFGS then finishes the best distinct ones. Does nothing if the study was polished at
    this total already.

    Args:
        mirror: the study, whose engine has gradients.
        total: of trials that the study is brought to.
        how_many: how many results are recorded; fewer if fewer are distinct.
    """
    sampled = _unpolished(mirror, total)
    if not sampled:
        return
    x, tnmse = refined(mirror.objective, _points(mirror.objective, sampled), how_many)
    mirror.record(x, tnmse, [Origin(POLISH, total, number) for number in range(len(x))], total)


def polish_front(mirror: Mirror, *, total: int, how_many: int) -> None:
    """Finds points of the front of TNMSE and mean conductance, and records the distinct ones.

    The first one has the lowest TNMSE; each other one the lowest under a limit of the conductance,
    and the limits fall evenly. For the arguments see :func:`polish_best`.
    """
    sampled = _unpolished(mirror, total)
    if not sampled:
        return
    objective = mirror.objective
    engine = _with_gradient(objective)
    best, _ = refined(objective, _points(objective, sampled), 1)
    highest = engine.conductance(best)[0]
    limits = np.linspace(highest, _LOWEST_SHARE * highest, how_many)[1:]
    front = [best[0], *gradient_search.under_limits(engine, best[0], limits)]
    strategies = objective.problem.hypercube.decode(np.array(front))
    assert isinstance(strategies, list)
    x = np.array(front)[distinct(strategies, how_many, tolerance=1e-3)]
    tnmse, _ = engine.value_and_grad(x)
    mirror.record(x, tnmse, [Origin(POLISH, total, number) for number in range(len(x))], total)


def polish_under_limit(mirror: Mirror, limit: float, *, total: int) -> None:
    """Finds the lowest TNMSE under a limit of the mean conductance, and records it.

    Args:
        mirror: the study, whose engine has gradients.
        limit: in µS per weight.
        total: of trials that the study is brought to.

    Raises:
        InvalidArgument: no strategy conducts so little.
    """
    sampled = _sampled(mirror)
    if not sampled:
        return
    engine = _with_gradient(mirror.objective)
    best, _ = refined(mirror.objective, _points(mirror.objective, sampled), 1)
    highest = engine.conductance(best)[0]
    if highest > limit:
        # A little below the limit, which rounding must not exceed.
        limits = np.geomspace(highest, limit * (1 - 1e-4), _STEPS_TO_LIMIT + 1)[1:]
        best = np.array(gradient_search.under_limits(engine, best[0], limits)[-1:])
    if engine.conductance(best)[0] > limit:
        _, lowest = gradient_search.polish(_ConductanceAlone(engine), best)
        raise InvalidArgument(
            f"max_conductance = {limit:g}: no strategy was found that conducts so little; the "
            f"lowest that was found conducts {lowest[0]:.4g} µS per weight."
        )
    tnmse, _ = engine.value_and_grad(best)
    earlier = [origin.number for origin in mirror.origins() if origin.phase == LIMITED]
    mirror.record(best, tnmse, [Origin(LIMITED, total, len(earlier))], total)


class _ConductanceAlone:
    """The mean conductance in place of a loss."""

    def __init__(self, engine: LimitedCost) -> None:
        self.value_and_grad = engine.conductance_and_grad


def polish(study: Study, objective: HypercubeObjective) -> None:
    """Refines the best trials of an Optuna study of one's own; adds what is found as trials.

    :func:`wpo_optuna.run_study` does so by itself. Nothing is added where no trial was completed
    since the last time.

    Args:
        study: has completed trials of the objective.
        objective: its engine has gradients, as the expected one has.

    Raises:
        InvalidArgument: the engine has no gradients, or the study no such trials.
    """
    names, states = names_in(study, objective.problem.hypercube), (TrialState.COMPLETE,)
    own = [t for t in study.get_trials(False, states) if t.params.keys() == {*names}]
    sampled = [trial for trial in own if Origin.of(trial) is None]
    if not sampled:
        raise InvalidArgument(
            f"study = {study.study_name!r}: it has no completed trial of this objective, and at "
            "least one is needed."
        )
    total = len(sampled)
    if any(origin and origin[:2] == (POLISH, total) for origin in map(Origin.of, own)):
        return
    sampled.sort(key=lambda trial: (trial.values[0], trial.number))
    x, tnmse = refined(objective, _points(objective, sampled), N_POLISHED)
    for number, evaluation in enumerate(objective.evaluate(x, tnmse=tnmse)):
        origin = {PHASE: POLISH, PHASE_TOTAL: total, PHASE_INDEX: number}
        study.add_trial(
            create_trial(
                values=evaluation.values,
                params=dict(zip(names, x[number].tolist(), strict=True)),
                distributions=objective.problem.hypercube.distributions(names),
                user_attrs=evaluation.attributes() | origin,
            )
        )


def _points(objective: HypercubeObjective, trials: Sequence[FrozenTrial]) -> NDArray[np.float64]:
    """The points ``(n, d)`` of the first trials, from which one descends."""
    return np.array([objective.point(trial.params) for trial in trials[:_N_DESCENDING]])


def refined(
    objective: HypercubeObjective, x: NDArray[np.float64], how_many: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The best distinct points down the gradient from others, and their TNMSE.

    Args:
        objective: its engine has gradients.
        x: points ``(n, d)``, the best first; the first 32 are used.
        how_many: most points that are wanted.

    Returns:
        points ``(k, d)`` and TNMSE ``(k,)``.
    """
    engine = _with_gradient(objective)
    *_, (x, tnmse) = multi_start(engine, x[:_N_DESCENDING], _DESCENT_STEPS)
    x = x[np.argsort(tnmse, kind="stable")]
    strategies = objective.problem.hypercube.decode(x)
    assert isinstance(strategies, list)
    return gradient_search.polish(engine, x[distinct(strategies, how_many)], _POLISH_ITERATIONS)


def search_by_gradient(
    mirror: Mirror, *, total: int, seed: int, should_stop: Callable[[], bool]
) -> None:
    """Descends from many starts at once; records the best so far of each step and every end.

    The search is deterministic: a resumed one repeats the steps whose trials the study has
    already, which takes seconds, and records the others. A study that is to have more trials than
    before gets further starts of its own for these.

    Args:
        mirror: the study, whose engine has gradients.
        total: of trials; about a fifth of them are starts, the others steps.
        seed: seed of the Latin hypercube of starts.
        should_stop: asked before trials are stored.
    """
    totals = {o.total for o in mirror.origins() if o.phase in (GRADIENT_STEP, GRADIENT_START)}
    if total > max(totals, default=0):
        totals.add(total)
    for before, reached in pairwise([0, *sorted(totals)]):
        n_starts = max(1, round((reached - before) * _STARTS_PER_STEP / (1 + _STARTS_PER_STEP)))
        n_steps = reached - before - n_starts
        origins = [Origin(GRADIENT_STEP, reached, number) for number in range(n_steps)]
        origins += [Origin(GRADIENT_START, reached, number) for number in range(n_starts)]
        present = mirror.origins()
        if present.issuperset(origins):
            continue
        rng = np.random.default_rng([seed, before] if before else seed)
        dimension = mirror.objective.problem.hypercube.dimension
        starts = qmc.LatinHypercube(dimension, rng=rng).random(n_starts)
        found = zip(origins, _descent(mirror, starts, n_steps, before), strict=True)
        new = ((origin, *point) for origin, point in found if origin not in present)
        while batch := list(islice(new, _TRIALS_AT_ONCE)):
            if should_stop():
                return
            batch_origins, x, tnmse = zip(*batch, strict=True)
            mirror.record(np.array(x), np.array(tnmse), batch_origins, reached)


def _descent(
    mirror: Mirror, starts: NDArray[np.float64], n_steps: int, before: int
) -> Iterator[tuple[NDArray[np.float64], float]]:
    """The best point ``(d,)`` so far of each step, then the end of each start, and their TNMSE.

    Args:
        mirror: the study.
        starts: points ``(n, d)``.
        n_steps: number of steps.
        before: the best of the descents that brought the study to this total counts as well.
    """
    x_best, best = starts[0], np.inf
    for trial in mirror.completed():
        origin = Origin.of(trial)
        if origin is not None and origin.total <= before:
            x_best, best = np.array(mirror.objective.point(trial.params)), trial.user_attrs["tnmse"]
            break
    descent = multi_start(_with_gradient(mirror.objective), starts, n_steps)
    for x, tnmse in islice(descent, n_steps):
        leader = np.argmin(tnmse)
        if tnmse[leader] < best:
            x_best, best = x[leader], float(tnmse[leader])
        yield x_best, best
    yield from zip(*next(descent), strict=True)


def _with_gradient(objective: HypercubeObjective) -> LimitedCost:
    engine: Any = objective.engine
    if not hasattr(engine, "value_and_grad"):
        raise InvalidArgument(
            f"engine = {engine.name!r}: it has no gradient to descend along; 'expected' has one."
        )
    return engine
