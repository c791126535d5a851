"""Whether an engine agrees with one that draws the noise, on a handful of strategies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from wpo_optuna.loss.base import LossEngine

# An engine that deviates by more is not to be trusted.
TOLERATED_DEVIATION = 0.03

# Standard error with which this can be told.
_SMALL_ERROR = 0.0075

# Seed of the draws, different from those of any study's search and scores.
_SEED = 1_618_033

# What a second allows for four strategies: so many weights programmed, once each. A draw costs
# about as much as so many weights more.
_AFFORDABLE_WEIGHTS = {"montecarlo": 2_000_000, "aihwkit": 300_000}
_WEIGHTS_OF_A_DRAW = 2_000
_FEWEST_DRAWS = 4


@dataclass(frozen=True)
class SelfCheck:
    """How an engine compares with another one that draws the noise.

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
    engine: LossEngine, reference: LossEngine, points: ArrayLike, draws: int | None = None
) -> SelfCheck:
    """Compares an engine with another one that draws the noise.

    Args:
        engine: the engine to be checked.
        reference: the other one, for the same problem.
        points: strategies to compare, ``(n, d)``.
        draws: draws by the other one of each of them, at least two; None takes as many as about a
            second allows. That is reckoned and not measured, so that the outcome repeats.
    """
    problem = engine.problem
    if draws is None:
        n_weights = problem.test_weights.numel() * len(problem.t_steps) + _WEIGHTS_OF_A_DRAW
        draws = max(_FEWEST_DRAWS, _AFFORDABLE_WEIGHTS[reference.name] // n_weights)
    strategies = problem.hypercube.decode(np.atleast_2d(points))
    assert isinstance(strategies, list)
    # Every strategy meets noise of its own, so that chance does not shift all deviations alike.
    seeds = np.random.SeedSequence(_SEED).generate_state(len(strategies))
    pairs = [
        _deviation(value, reference.tnmse_of(strategy.to_converter(), draws, int(seed)))
        for value, strategy, seed in zip(engine.tnmse(points), strategies, seeds, strict=True)
    ]
    deviations, standard_errors = zip(*pairs, strict=True)
    return SelfCheck(deviations, standard_errors, draws, engine.name, reference.name)


def _deviation(value: float, drawn: NDArray[np.float64]) -> tuple[float, float]:
    """Relative deviation from the mean of the draws, and its standard error."""
    mean = float(drawn.mean())
    if np.all(drawn == value) or (np.isinf(value) and np.isinf(mean)):
        return 0.0, 0.0
    if not (np.isfinite(value) and np.isfinite(mean) and mean > 0):
        return np.inf, 0.0
    return float(value / mean - 1), float(drawn.std(ddof=1) / np.sqrt(len(drawn)) / mean)
