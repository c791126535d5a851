"""Weight programming optimisation for analogue memory, as an Optuna study recorded in MLflow."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wpo_optuna.apply import apply_strategy
    from wpo_optuna.hypercube import Hypercube
    from wpo_optuna.loss import make_engine
    from wpo_optuna.objective import HypercubeObjective
    from wpo_optuna.optimizer import WeightProgrammingOptimizer
    from wpo_optuna.problem import WeightProgrammingProblem
    from wpo_optuna.run import run_study
    from wpo_optuna.samplers import DESampler, make_sampler
    from wpo_optuna.strategy import ProgrammingStrategy
    from wpo_optuna.tracking import MlflowTracker

__version__ = "0.1.0"

__all__ = [
    "DESampler",
    "Hypercube",
    "HypercubeObjective",
    "MlflowTracker",
    "ProgrammingStrategy",
    "WeightProgrammingOptimizer",
    "WeightProgrammingProblem",
    "apply_strategy",
    "make_engine",
    "make_sampler",
    "run_study",
]

_MODULES = {
    "DESampler": "samplers",
    "Hypercube": "hypercube",
    "HypercubeObjective": "objective",
    "MlflowTracker": "tracking",
    "ProgrammingStrategy": "strategy",
    "WeightProgrammingOptimizer": "optimizer",
    "WeightProgrammingProblem": "problem",
    "apply_strategy": "apply",
    "make_engine": "loss",
    "make_sampler": "samplers",
    "run_study": "run",
}


def __getattr__(name: str) -> Any:
    """Imports torch, aihwkit or mlflow only once a name is used that needs them."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
