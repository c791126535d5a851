"""Which engine evaluates a study: the fastest one that can be trusted with its problem."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import qmc

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss import ENGINE_NAMES, LossEngine, make_engine
from wpo_optuna.loss.reference import ReferenceEngine
from wpo_optuna.loss.self_check import SelfCheck, check_engine

if TYPE_CHECKING:
    from wpo_optuna.problem import WeightProgrammingProblem

# An engine that deviates by more from aihwkit's tile is not used unless asked for.
TOLERATED_DEVIATION = 0.03

_N_CANDIDATES = 512
_N_CHECKED = 4
_DRAWS = 8


class EngineWarning(UserWarning):
    """A faster engine was passed over."""


@dataclass(frozen=True)
class ChosenEngine:
    """An engine and what is known of its trustworthiness.

    Attributes:
        engine: the engine.
        self_check: how it compares with aihwkit's tile; None where this was not checked.
    """

    engine: LossEngine
    self_check: SelfCheck | None


def choose_engine(
    problem: WeightProgrammingProblem,
    name: str | None = None,
    *,
    device: str = "cpu",
    check: bool = True,
) -> ChosenEngine:
    """Makes the engine asked for, or the fastest that can evaluate the problem faithfully.

    Args:
        problem: the problem.
        name: name of an engine, which is then made whatever its deviation; None tries the
            expected engine, then Monte Carlo, then aihwkit's tile, with a warning for each that
            is passed over.
        device: torch device of the Monte Carlo engine.
        check: whether the expected engine is compared with aihwkit's tile first.

    Raises:
        InvalidArgument: no engine has this name, or it cannot evaluate the problem.
    """
    if name is not None:
        engine = _make(name, problem, device)
        return ChosenEngine(engine, _self_check(engine) if check else None)
    for candidate in reversed(ENGINE_NAMES):
        try:
            engine = _make(candidate, problem, device)
        except InvalidArgument as error:
            warnings.warn(str(error), EngineWarning, stacklevel=2)
            continue
        self_check = _self_check(engine) if check else None
        if self_check is None or self_check.worst <= TOLERATED_DEVIATION:
            return ChosenEngine(engine, self_check)
        warnings.warn(
            f"The {candidate} engine deviates by {self_check.worst:.1%} from aihwkit's tile on "
            f"this problem (at most {TOLERATED_DEVIATION:.0%} is tolerated); the next slower "
            f"engine is used. To use it nevertheless, ask for engine {candidate!r}.",
            EngineWarning,
            stacklevel=2,
        )
    raise AssertionError("the engine of aihwkit's own tile evaluates every problem")


def _make(name: str, problem: WeightProgrammingProblem, device: str) -> LossEngine:
    return make_engine(name, problem, **({"device": device} if name == "montecarlo" else {}))


def _self_check(engine: LossEngine) -> SelfCheck | None:
    """Compares the expected engine with aihwkit's tile where the search will go: near optima."""
    if engine.name != "expected":
        return None
    problem = engine.problem
    dimension = problem.hypercube.dimension
    candidates = qmc.LatinHypercube(dimension, rng=problem.seed).random(_N_CANDIDATES)
    best = candidates[np.argsort(engine.tnmse(candidates))[:_N_CHECKED]]
    return check_engine(engine, ReferenceEngine(problem), best, draws=_DRAWS)
