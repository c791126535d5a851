"""Loss engines: three ways to evaluate the same quantity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wpo_optuna.errors import check_choice, check_options
from wpo_optuna.loss.base import LossEngine

if TYPE_CHECKING:
    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

ENGINE_NAMES = ("aihwkit", "montecarlo", "expected")

__all__ = ["ENGINE_NAMES", "LossEngine", "make_engine"]


def make_engine(name: str, problem: WeightProgrammingProblem, **options: Any) -> LossEngine:
    """Makes a loss engine by name.

    Args:
        name: ``"aihwkit"`` (aihwkit's own tile, one candidate at a time), ``"montecarlo"`` (the
            same physics batched over candidates) or ``"expected"`` (the expectation itself,
            deterministic and differentiable).
        problem: the problem whose strategies are evaluated.
        options: keyword arguments of the engine's constructor.

    Raises:
        InvalidArgument: no engine has this name, or this one cannot evaluate the problem.
    """
    engine_class = _engine_class(name)
    check_options(engine_class, options, f"engine {name!r}")
    return engine_class(problem, **options)


def _engine_class(name: str) -> type[LossEngine]:
    check_choice("engine", name, ENGINE_NAMES)
    if name == "aihwkit":
        from wpo_optuna.loss.reference import ReferenceEngine

        return ReferenceEngine
    if name == "montecarlo":
        from wpo_optuna.loss.monte_carlo import MonteCarloEngine

        return MonteCarloEngine
    from wpo_optuna.loss.expected import ExpectedEngine

    return ExpectedEngine
