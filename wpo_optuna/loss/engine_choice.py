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
from wpo_optuna.loss.monte_carlo import checked_device
from wpo_optuna.loss.self_check import TOLERATED_DEVIATION, SelfCheck, check_engine_repeatably
from wpo_optuna.loss.threads import one_thread

if TYPE_CHECKING:
    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

_FASTEST_FIRST = ("expected", "montecarlo", "aihwkit")
# The expected engine computes on the CPU only.
_FASTEST_FIRST_ELSEWHERE = ("montecarlo", "aihwkit")

_N_CANDIDATES = 512
_N_CHECKED = 4


class EngineWarning(UserWarning):
    """A faster engine was passed over, or the one in use may not be what is wanted."""


@dataclass(frozen=True)
class ChosenEngine:
    """An engine and what is known of the trustworthiness of the expected engine.

    Attributes:
        engine: the engine.
        self_check: how the expected engine compares with aihwkit's tile, also where it was passed
            over for that; None where this was not checked.
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
        device: torch device of the Monte Carlo engine. Another one than the CPU is a reason to
            prefer that engine to the expected one, which has no use for it.
        check: whether the expected engine is compared with aihwkit's tile first.

    Raises:
        InvalidArgument: no engine has this name, or it cannot evaluate the problem, or there is no
            such device.
    """
    is_on_cpu = checked_device(device).type == "cpu"
    with one_thread():
        if name is not None:
            chosen = _as_asked_for(problem, name, device, check)
        else:
            names = _FASTEST_FIRST if is_on_cpu else _FASTEST_FIRST_ELSEWHERE
            chosen = _fastest_trusted(problem, names, device, check)
    if not is_on_cpu and chosen.engine.name != "montecarlo":
        _warn(
            f"device = {device!r} is for the Monte Carlo engine alone; the {chosen.engine.name} "
            "engine works on the CPU."
        )
    return chosen


def _as_asked_for(
    problem: WeightProgrammingProblem, name: str, device: str, check: bool
) -> ChosenEngine:
    engine = _make(name, problem, device)
    self_check = _self_check(engine) if check and name == "expected" else None
    if self_check is not None and self_check.worst > TOLERATED_DEVIATION:
        _warn(
            f"{_told(self_check)}. It is used nevertheless, because the engine or sampler asked "
            "for or the study's earlier trials need it."
        )
    return ChosenEngine(engine, self_check)


def _fastest_trusted(
    problem: WeightProgrammingProblem, names: Sequence[str], device: str, check: bool
) -> ChosenEngine:
    self_check = None
    for name in names:
        try:
            engine = _make(name, problem, device)
        except InvalidArgument as error:
            _warn(str(error))
            continue
        if check and name == "expected":
            self_check = _self_check(engine)
            if self_check.worst > TOLERATED_DEVIATION:
                _warn(
                    f"{_told(self_check)}; the next slower engine is used. To use it nevertheless, "
                    "ask for engine 'expected'."
                )
                continue
        return ChosenEngine(engine, self_check)
    raise AssertionError("the engine of aihwkit's own tile evaluates every problem")


def _make(name: str, problem: WeightProgrammingProblem, device: str) -> LossEngine:
    return make_engine(name, problem, **({"device": device} if name == "montecarlo" else {}))


def _self_check(engine: LossEngine) -> SelfCheck:
    """Compares an engine with aihwkit's tile where the search will go: near optima."""
    problem = engine.problem
    dimension = problem.hypercube.dimension
    candidates = qmc.LatinHypercube(dimension, rng=problem.seed).random(_N_CANDIDATES)
    best = candidates[np.argsort(engine.tnmse(candidates))[:_N_CHECKED]]
    self_check = check_engine_repeatably(engine, best)
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
    return "of the Monte Carlo engine, which stands in for aihwkit's noisy tile"


def _warn(message: str) -> None:
    warnings.warn(message, EngineWarning, stacklevel=4)
