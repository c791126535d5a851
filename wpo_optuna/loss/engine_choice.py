"""Which engine evaluates a study: the fastest one that can be trusted with its problem.

The expected engine is trusted where it agrees with drawn noise on a handful of strategies.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss import LossEngine, make_engine
from wpo_optuna.loss.monte_carlo import checked_device
from wpo_optuna.loss.over_devices import EngineOverDevices
from wpo_optuna.loss.reference import ReferenceEngine

if TYPE_CHECKING:
    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

_FASTEST_FIRST = ("expected", "montecarlo", "aihwkit")

# The strategies that the self-check compares are the best of so many.
_N_CANDIDATES = 512
_N_CHECKED = 4

# An engine that deviates by more is not to be trusted, and the standard error with which this can
# be told.
TOLERATED_DEVIATION = 0.03
_SMALL_ERROR = 0.0075

# Seed of the draws, different from those of any study's search and scores.
_SEED = 1_618_033

# What a second allows for four strategies: so many weights programmed, once each. A draw costs
# about as much as so many weights more.
_AFFORDABLE_WEIGHTS = {"montecarlo": 2_000_000, "aihwkit": 300_000}
_WEIGHTS_OF_A_DRAW = 2_000
_FEWEST_DRAWS = 4


class EngineWarning(UserWarning):
    """A faster engine was passed over, or the one in use may not be what is wanted."""


@dataclass(frozen=True)
class SelfCheck:
    """How the expected engine compares with one that draws the noise.

    Attributes:
        deviations: relative deviation of the expected engine for each strategy.
        standard_errors: their standard errors, from the draws.
        draws: draws of each strategy.
        compared_with: name of the other engine.
    """

    deviations: tuple[float, ...]
    standard_errors: tuple[float, ...]
    draws: int
    compared_with: str = "aihwkit"

    @property
    def drawn(self) -> str:
        """What it was compared with, in words."""
        return f"{self.draws} draws of the {self.compared_with} engine"

    @property
    def worst(self) -> float:
        """Largest deviation that is certain: what it exceeds two standard errors by."""
        certain = np.abs(self.deviations) - 2 * np.asarray(self.standard_errors)
        return float(max(0.0, certain.max()))

    @property
    def mean(self) -> float:
        """Mean deviation."""
        return float(np.mean(self.deviations))

    @property
    def is_conclusive(self) -> bool:
        """Whether it is certain enough on which side of the tolerated deviation the engine is."""
        errors = np.asarray(self.standard_errors)
        possible = np.abs(self.deviations) + 2 * errors
        is_known = (errors <= _SMALL_ERROR) | (possible <= TOLERATED_DEVIATION)
        return self.worst > TOLERATED_DEVIATION or bool(is_known.all())

    def to_json(self) -> dict[str, Any]:
        """The numbers by name."""
        derived = {"worst": self.worst, "mean": self.mean, "is_conclusive": self.is_conclusive}
        return asdict(self) | derived


class ChosenEngine(NamedTuple):
    """An engine and how the expected engine, if checked, did: also where it was passed over."""

    engine: LossEngine
    self_check: SelfCheck | None


def drawing_engine(problem: WeightProgrammingProblem, like: LossEngine | None = None) -> LossEngine:
    """The fastest engine that draws the problem's noise: Monte Carlo if it can, or aihwkit's tile.

    For a problem of one device it is a :class:`~wpo_optuna.loss.base.DrawingEngine`.

    Args:
        problem: the problem.
        like: an engine whose weighting of several devices is taken over.

    Raises:
        InvalidArgument: aihwkit's tile cannot simulate the problem's hardware.
    """
    try:
        return _weighing_like(like, make_engine("montecarlo", problem))
    except InvalidArgument:
        return tile_engine(problem, like)


def tile_engine(problem: WeightProgrammingProblem, like: LossEngine | None = None) -> LossEngine:
    """The engine on aihwkit's tile; see :func:`drawing_engine`."""
    return _weighing_like(like, make_engine("aihwkit", problem))


def _weighing_like(other: LossEngine | None, engine: LossEngine) -> LossEngine:
    if isinstance(engine, EngineOverDevices) and isinstance(other, EngineOverDevices):
        engine.baselines = other.baselines
    return engine


def choose_engine(
    problem: WeightProgrammingProblem,
    name: str | None = None,
    *,
    device: str = "cpu",
    check: bool = True,
    n_trials: int = 1000,
) -> ChosenEngine:
    """Makes the engine asked for, or the fastest that can evaluate the problem faithfully.

    Args:
        problem: the problem.
        name: name of an engine, which is then made whatever its deviation; None tries the
            expected engine, then Monte Carlo, then aihwkit's tile, with a warning that says why,
            and before a search on the tile how long it will take.
        device: where the expected and the Monte Carlo engine compute, ``"cpu"`` or ``"cuda"``;
            where JAX finds no GPU but torch does, Monte Carlo is used.
        check: whether the expected engine is compared with one that draws the noise first.
        n_trials: trials of the search, for the warning.

    Raises:
        InvalidArgument: no engine has this name, or it cannot evaluate the problem, or there is no
            such device.
    """
    is_on_cpu = checked_device(device).type == "cpu"
    names = _FASTEST_FIRST if name is None else (name,)
    engine, self_check = _first_possible(problem, names, device, n_trials), None
    if check and engine.name == "expected":
        self_check = check_engine(engine, drawing_engine(problem, engine))
        if not self_check.is_conclusive:
            _warn(
                "The self-check of the expected engine stayed inconclusive: the noise is so strong "
                f"that {self_check.drawn} leave standard errors of up to "
                f"{max(self_check.standard_errors):.1%}."
            )
        if self_check.worst > TOLERATED_DEVIATION:
            if name is None:
                reaction = "the next slower one is used; to use it nevertheless, ask for 'expected'"
                engine = _first_possible(problem, names[1:], device, n_trials)
            else:
                reaction = "it is used nevertheless, as the study or its sampler needs it"
            _warn(
                f"The expected engine deviates by {self_check.worst:.1%} from {self_check.drawn} "
                f"on this problem (at most {TOLERATED_DEVIATION:.0%} is tolerated): {reaction}."
            )
    if not is_on_cpu and engine.name == "aihwkit":
        _warn(f"device = {device!r} is for the other engines; aihwkit's tile works on the CPU.")
    return ChosenEngine(engine, self_check)


def _first_possible(
    problem: WeightProgrammingProblem, names: Sequence[str], device: str, n_trials: int
) -> LossEngine:
    """The first of these engines that can evaluate the problem; a warning says why not before."""
    refusal = ""
    for name in names:
        options = {} if name == "aihwkit" else {"device": device}
        try:
            engine = make_engine(name, problem, **options)
        except InvalidArgument as error:
            if name == names[-1]:
                raise
            refusal = str(error)
        else:
            break
    if refusal:
        cost = _cost_on_tile(problem, n_trials) if engine.name == "aihwkit" else ""
        _warn(refusal + cost)
    return engine


def _cost_on_tile(problem: WeightProgrammingProblem, n_trials: int) -> str:
    """What a search on aihwkit's tile takes, by the time of one strategy at one time."""
    alone = problem.on_each_device[0]
    of_one_time = ReferenceEngine(replace(alone, t_steps=problem.t_steps[:1]))
    started = perf_counter()
    of_one_time.tnmse_of(problem.g_converter_baseline, 1)
    n_evaluations = len(problem.t_steps) * len(problem.on_each_device)
    seconds = (perf_counter() - started) * n_evaluations
    total = seconds * (n_trials + problem.baseline_iterations)
    return (
        f" It is used, and takes {_spoken(seconds)} for a strategy, about {_spoken(total)} for "
        f"{n_trials} trials and the baseline on one core, and then the scores; a search with an "
        "rpu_config without this property takes seconds, and evaluate can judge its strategy with "
        "it."
    )


def _spoken(seconds: float) -> str:
    """A duration in a unit that leaves a number of two digits."""
    for unit, length in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.2g} s"


def _warn(message: str) -> None:
    warnings.warn(message, EngineWarning, stacklevel=4)


def check_engine(engine: LossEngine, reference: LossEngine) -> SelfCheck:
    """Compares an engine with one that draws the noise where the search will go: near optima.

    As many draws are taken as about a second allows. That is reckoned and not measured, so that the
    outcome repeats.

    Args:
        engine: the engine to be checked.
        reference: the other one, for the same problem.
    """
    problem = engine.problem
    dimension = problem.hypercube.dimension
    candidates = qmc.LatinHypercube(dimension, rng=problem.seed).random(_N_CANDIDATES)
    points = candidates[np.argsort(engine.tnmse(candidates))[:_N_CHECKED]]
    strategies = problem.hypercube.decode(points)
    assert isinstance(strategies, list)
    n_weights = problem.test_weights.numel() * len(problem.t_steps) + _WEIGHTS_OF_A_DRAW
    n_weights *= len(problem.on_each_device)
    draws = max(_FEWEST_DRAWS, _AFFORDABLE_WEIGHTS[reference.name] // n_weights)
    # Every strategy meets noise of its own, so that chance does not shift all deviations alike.
    seeds = np.random.SeedSequence(_SEED).generate_state(len(strategies))
    pairs = [
        _deviation(value, reference.tnmse_of(strategy.to_converter(), draws, int(seed)))
        for value, strategy, seed in zip(engine.tnmse(points), strategies, seeds, strict=True)
    ]
    deviations, standard_errors = zip(*pairs, strict=True)
    return SelfCheck(deviations, standard_errors, draws, reference.name)


def _deviation(value: float, drawn: NDArray[np.float64]) -> tuple[float, float]:
    """Relative deviation from the mean of the draws, and its standard error."""
    mean = float(drawn.mean())
    if value == mean:  # also where both are infinite, or zero
        return 0.0, 0.0
    if not (np.isfinite(value) and 0 < mean < np.inf):
        return np.inf, 0.0
    return float(value / mean - 1), float(drawn.std(ddof=1) / np.sqrt(len(drawn)) / mean)
