"""Loss engines: three ways to evaluate the same quantity."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from wpo_optuna.errors import check_choice, check_options
from wpo_optuna.loss.base import LossEngine

if TYPE_CHECKING:
    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

# By name, as JAX and the like are imported by those who use them.
_CLASSES = {
    "aihwkit": "wpo_optuna.loss.reference:ReferenceEngine",
    "montecarlo": "wpo_optuna.loss.monte_carlo:MonteCarloEngine",
    "expected": "wpo_optuna.loss.expected:ExpectedEngine",
}
ENGINE_NAMES = tuple(_CLASSES)

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
    check_choice("engine", name, ENGINE_NAMES)
    engine_class = resolve_name(_CLASSES[name])
    check_options(engine_class, options, f"engine {name!r}")
    if not problem.other_rpu_configs:
        return engine_class(problem, **options)
    from wpo_optuna.loss.over_devices import EngineOverDevices, ExpectedEngineOverDevices

    over_devices = ExpectedEngineOverDevices if name == "expected" else EngineOverDevices
    engines = [engine_class(alone, **options) for alone in problem.on_each_device]
    return over_devices(problem, engines)
