"""Weight programming optimisation for analogue memory, as an Optuna study recorded in MLflow.

The whole of it:
    run_study                   finds a strategy for a problem, or goes on with finding it
    WeightProgrammingProblem    what is optimised: weights, hardware, times, baseline
    ProgrammingStrategy         what is found: factors and conductance curves
    apply_strategy              programs a network with it

Its parts, for studies of your own:
    HypercubeObjective          the loss as an Optuna objective
    Hypercube                   the points of the search
    make_engine                 what evaluates them
    DESampler, make_sampler     what proposes them
    open_storage                a storage by its URL, quick with many trials
    polish                      refines the best trials by gradient descent
    strategy_of                 the strategy that a trial stands for
    MlflowTracker               records a study in MLflow

In place of aihwkit's optimiser:
    WeightProgrammingOptimizer
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wpo_optuna.hypercube import Hypercube
    from wpo_optuna.loss import make_engine
    from wpo_optuna.network.apply import apply_strategy
    from wpo_optuna.optimizer import WeightProgrammingOptimizer
    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem
    from wpo_optuna.samplers import DESampler, make_sampler
    from wpo_optuna.storage import open_storage
    from wpo_optuna.strategy import ProgrammingStrategy
    from wpo_optuna.study.gradients import polish
    from wpo_optuna.study.objective import HypercubeObjective
    from wpo_optuna.study.run import run_study
    from wpo_optuna.study.scoring import strategy_of
    from wpo_optuna.track.tracker import MlflowTracker

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
    "open_storage",
    "polish",
    "run_study",
    "strategy_of",
]

_MODULES = {
    "DESampler": "samplers",
    "Hypercube": "hypercube",
    "HypercubeObjective": "study.objective",
    "MlflowTracker": "track.tracker",
    "ProgrammingStrategy": "strategy",
    "WeightProgrammingOptimizer": "optimizer",
    "WeightProgrammingProblem": "problem",
    "apply_strategy": "network.apply",
    "make_engine": "loss",
    "make_sampler": "samplers",
    "open_storage": "storage",
    "polish": "study.gradients",
    "run_study": "study.run",
    "strategy_of": "study.scoring",
}


def __getattr__(name: str) -> Any:
    """Imports torch, aihwkit or mlflow only once a name is used that needs them."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, whether they are imported yet or not."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
