"""Which engine evaluates a study: the fastest one that can be trusted with its problem."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import qmc

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss import LossEngine, make_engine
from wpo_optuna.loss.base import DrawingEngine
from wpo_optuna.loss.monte_carlo import MonteCarloEngine, checked_device
from wpo_optuna.loss.reference import ReferenceEngine
from wpo_optuna.loss.self_check import TOLERATED_DEVIATION, SelfCheck, check_engine

if TYPE_CHECKING:
    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

_N_CANDIDATES = 512
_N_CHECKED = 4


class EngineWarning(UserWarning):
    """A faster engine was passed over, or the one in use may not be what is wanted."""


@dataclass(frozen=True)
class ChosenEngine:
    """An engine and what is known of the trustworthiness of the expected engine.

    Attributes:
        engine: the engine.
        self_check: how the expected engine compares with one that draws the noise, also where it
            was passed over for that; None where this was not checked.
    """

    engine: LossEngine
    self_check: SelfCheck | None


def drawing_engine(problem: WeightProgrammingProblem) -> DrawingEngine:
    """The fastest engine that draws the problem's noise: Monte Carlo if it can, or aihwkit's tile.

    Raises:
        InvalidArgument: aihwkit's tile cannot simulate the problem's hardware.
    """
    try:
        return MonteCarloEngine(problem)
    except InvalidArgument:
        return ReferenceEngine(problem)


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
        device: torch device of the Monte Carlo engine. Another one than the CPU is a reason to
            prefer that engine to the expected one, which has no use for it.
        check: whether the expected engine is compared with one that draws the noise first.

    Raises:
        InvalidArgument: no engine has this name, or it cannot evaluate the problem, or there is no
            such device.
    """
    is_on_cpu = checked_device(device).type == "cpu"
    slower = ("montecarlo", "aihwkit")
    wanted = (name,) if name is not None else ("expected", *slower) if is_on_cpu else slower
    engine, self_check = _first_possible(problem, wanted, device), None
    if check and engine.name == "expected":
        self_check = _self_check(engine)
        if self_check.worst > TOLERATED_DEVIATION and name is None:
            _warn(
                f"{_told(self_check)}; the next slower engine is used. To use it nevertheless, "
                "ask for engine 'expected'."
            )
            engine = _first_possible(problem, slower, device)
        elif self_check.worst > TOLERATED_DEVIATION:
            _warn(
                f"{_told(self_check)}. It is used nevertheless, because the engine or sampler "
                "asked for or the study's earlier trials need it."
            )
    if not is_on_cpu and engine.name != "montecarlo":
        _warn(
            f"device = {device!r} is for the Monte Carlo engine alone; the {engine.name} engine "
            "works on the CPU."
        )
    return ChosenEngine(engine, self_check)


def _first_possible(
    problem: WeightProgrammingProblem, names: Sequence[str], device: str
) -> LossEngine:
    """The first of these engines that can evaluate the problem, with a warning for each before."""
    for name in names[:-1]:
        try:
            return _make(name, problem, device)
        except InvalidArgument as error:
            _warn(str(error))
    return _make(names[-1], problem, device)


def _make(name: str, problem: WeightProgrammingProblem, device: str) -> LossEngine:
    return make_engine(name, problem, **({"device": device} if name == "montecarlo" else {}))


def _self_check(engine: LossEngine) -> SelfCheck:
    """Compares an engine with one that draws the noise where the search will go: near optima."""
    problem = engine.problem
    dimension = problem.hypercube.dimension
    candidates = qmc.LatinHypercube(dimension, rng=problem.seed).random(_N_CANDIDATES)
    best = candidates[np.argsort(engine.tnmse(candidates))[:_N_CHECKED]]
    self_check = check_engine(engine, drawing_engine(problem), best)
    if not self_check.is_conclusive:
        _warn(
            f"The self-check of the {engine.name} engine stayed inconclusive: the noise is so "
            f"strong that {self_check.draws} draws {_of(self_check)} leave standard errors of up "
            f"to {max(self_check.standard_errors):.1%}."
        )
    return self_check


def _told(self_check: SelfCheck) -> str:
    return (
        f"The {self_check.engine} engine deviates by {self_check.worst:.1%} from "
        f"{self_check.draws} draws {_of(self_check)} on this problem (at most "
        f"{TOLERATED_DEVIATION:.0%} is tolerated)"
    )


def _of(self_check: SelfCheck) -> str:
    if self_check.compared_with == "aihwkit":
        return "on aihwkit's tile"
    return "of the Monte Carlo engine"


def _warn(message: str) -> None:
    warnings.warn(message, EngineWarning, stacklevel=4)
