"""Whether an engine agrees with aihwkit's own tile on a handful of strategies.

The tile's noise cannot be seeded, so that a comparison with a few draws would come out differently
from run to run where the hardware is noisy. Strategies are therefore drawn until their means are
known well enough. Where that would take too long, they are compared with many draws of the Monte
Carlo engine, which is ten times faster and repeats.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss import make_engine

if TYPE_CHECKING:
    from wpo_optuna.loss.base import LossEngine
    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

# An engine that deviates by more is not to be trusted.
TOLERATED_DEVIATION = 0.03

# Standard error with which this can be told.
_SMALL_ERROR = 0.0075

# Seed of the draws, different from those of any study's search and scores.
_SEED = 1_618_033


@dataclass(frozen=True)
class SelfCheck:
    """How an engine compares with aihwkit's tile, or with another engine in its place.

    Attributes:
        deviations: relative deviation of the engine for each strategy.
        standard_errors: their standard errors, from the draws.
        draws: draws of each strategy.
        engine: name of the engine that was checked.
        compared_with: name of the engine that it was compared with.
    """

    deviations: tuple[float, ...]
    standard_errors: tuple[float, ...]
    draws: int
    engine: str = "expected"
    compared_with: str = "aihwkit"

    @property
    def worst(self) -> float:
        """Largest deviation that is certain: what it exceeds two standard errors by.

        What is not finite counts as infinite.
        """
        return float(max(0.0, np.max(self._bounds(-2))))

    @property
    def mean(self) -> float:
        """Mean deviation."""
        return float(np.mean(self.deviations))

    @property
    def is_conclusive(self) -> bool:
        """Whether it is certain enough on which side of the tolerated deviation the engine is."""
        if self.worst > TOLERATED_DEVIATION:
            return True
        well_known = np.asarray(self.standard_errors) <= _SMALL_ERROR
        return bool(np.all(well_known | (self._bounds(2) <= TOLERATED_DEVIATION)))

    def to_json(self) -> dict[str, Any]:
        """The numbers by name."""
        return asdict(self) | {
            "worst": self.worst,
            "mean": self.mean,
            "is_conclusive": self.is_conclusive,
        }

    def _bounds(self, n_errors: float) -> NDArray[np.float64]:
        """Absolute deviations, so many standard errors larger."""
        bounds = np.abs(self.deviations) + n_errors * np.asarray(self.standard_errors)
        finite = np.isfinite(self.deviations) & np.isfinite(self.standard_errors)
        return np.where(finite, bounds, np.inf)


def check_engine(
    engine: LossEngine, reference: LossEngine, points: ArrayLike, draws: int
) -> SelfCheck:
    """Compares an engine with another one, usually aihwkit's tile, in so many draws.

    Args:
        engine: the engine to be checked.
        reference: the other one, for the same problem.
        points: strategies to compare, ``(n, d)``.
        draws: draws by the other one of each of them, at least two.
    """
    comparison = _Comparison(engine, reference, points)
    comparison.draw(draws)
    return comparison.result()


def check_engine_repeatably(engine: LossEngine, points: ArrayLike) -> SelfCheck:
    """Compares an engine with aihwkit's tile, or with Monte Carlo where the tile is too noisy.

    It takes seconds, most often less than one: the tile is left as soon as it turns out that more
    draws would be needed than it can do in that time.

    Args:
        engine: the engine to be checked.
        points: strategies to compare, ``(n, d)``.
    """
    problem = engine.problem
    comparison = _Comparison(engine, make_engine("aihwkit", problem), points)
    limits = _limits(problem, fewest=4, seconds=0.5, per_draw=3e-3, per_weight=9e-7)
    if comparison.draw_until_known(limits):
        return comparison.result()
    # Not all hardware that has an expectation can be evaluated by Monte Carlo in batches.
    with suppress(InvalidArgument):
        comparison = _Comparison(engine, make_engine("montecarlo", problem), points)
        limits = _limits(problem, fewest=16, seconds=2.0, per_draw=1.5e-4, per_weight=1.1e-7)
    if not comparison.draw_until_known(limits):
        comparison.draw(limits.most - comparison.n_draws)
    return comparison.result()


@dataclass(frozen=True)
class _Limits:
    """Fewest and most draws of a strategy."""

    fewest: int
    most: int


def _limits(
    problem: WeightProgrammingProblem,
    *,
    fewest: int,
    seconds: float,
    per_draw: float,
    per_weight: float,
) -> _Limits:
    """How many draws of a strategy can be afforded.

    The time is reckoned, from measurements with 192 weights at 2 times to 10240 weights at 6 times
    on one core: so a busy machine decides like an idle one.

    Args:
        problem: the problem.
        fewest: draws that there must be for their scatter to be seen.
        seconds: time for one strategy.
        per_draw: seconds that a draw takes at least.
        per_weight: seconds that each weight at each time adds.
    """
    n_weights = problem.test_weights.numel() * len(problem.t_steps)
    return _Limits(fewest, max(fewest, int(seconds / (per_draw + per_weight * n_weights))))


class _Comparison:
    """An engine's values beside the draws of another, which become more and more."""

    def __init__(self, engine: LossEngine, reference: LossEngine, points: ArrayLike) -> None:
        strategies = engine.problem.hypercube.decode(np.atleast_2d(points))
        assert isinstance(strategies, list)
        self._engine, self._reference = engine, reference
        self._values = engine.tnmse(points)
        self._converters = [strategy.to_converter() for strategy in strategies]
        self._drawn = np.empty((len(strategies), 0))
        self._n_rounds = 0

    @property
    def n_draws(self) -> int:
        """Draws of each strategy so far."""
        return self._drawn.shape[1]

    def draw(self, n: int) -> None:
        """Draws every strategy n times more, each with noise of its own."""
        drawn = []
        for place, converter in enumerate(self._converters):
            sequence = np.random.SeedSequence(_SEED, spawn_key=(place, self._n_rounds))
            seed = int(sequence.generate_state(1)[0])
            drawn.append(self._reference.tnmse_of(converter, repeats=n, seed=seed))
        self._drawn = np.hstack([self._drawn, drawn])
        self._n_rounds += 1

    def draw_until_known(self, limits: _Limits) -> bool:
        """Draws until all means are known well enough.

        Returns:
            False, as soon as this turns out to need more draws than there may be.
        """
        while self.n_draws < (needed := self._n_needed(limits.fewest)) <= limits.most:
            # Growing rounds, since every round has a price of its own.
            n = max(limits.fewest, self.n_draws // 2)
            self.draw(min(n, limits.most - self.n_draws))
        return needed <= self.n_draws

    def _n_needed(self, fewest: int) -> float:
        if self.n_draws < fewest:
            return fewest
        error = max(self.result().standard_errors)
        return max(fewest, self.n_draws * (error / _SMALL_ERROR) ** 2)

    def result(self) -> SelfCheck:
        """The deviations as far as they are known."""
        pairs = [
            _deviation(value, drawn) for value, drawn in zip(self._values, self._drawn, strict=True)
        ]
        return SelfCheck(
            tuple(deviation for deviation, _ in pairs),
            tuple(error for _, error in pairs),
            self.n_draws,
            self._engine.name,
            self._reference.name,
        )


def _deviation(value: float, drawn: NDArray[np.float64]) -> tuple[float, float]:
    """Relative deviation from the mean of the draws, and its standard error."""
    mean = float(drawn.mean())
    if np.all(drawn == value) or (np.isinf(value) and np.isinf(mean)):
        return 0.0, 0.0
    if not (np.isfinite(value) and np.isfinite(mean) and mean > 0):
        return np.inf, 0.0
    return float(value / mean - 1), float(drawn.std(ddof=1) / np.sqrt(len(drawn)) / mean)
