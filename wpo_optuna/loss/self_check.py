"""Whether an engine agrees with aihwkit's own tile on a handful of strategies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from wpo_optuna.loss.base import LossEngine
    from wpo_optuna.loss.reference import ReferenceEngine

# Seed of the draws, different from those of any study's search and scores.
_SEED = 1_618_033


@dataclass(frozen=True)
class SelfCheck:
    """How an engine compares with aihwkit's tile.

    Attributes:
        deviations: relative deviation of the engine for each strategy.
        standard_errors: their standard errors, from the draws on the tile.
        draws: draws of each strategy.
    """

    deviations: tuple[float, ...]
    standard_errors: tuple[float, ...]
    draws: int

    @property
    def worst(self) -> float:
        """Largest deviation that is certain: what it exceeds two standard errors by."""
        certain = np.abs(self.deviations) - 2 * np.asarray(self.standard_errors)
        return float(max(0.0, np.max(certain)))

    @property
    def mean(self) -> float:
        """Mean deviation."""
        return float(np.mean(self.deviations))

    def to_json(self) -> dict[str, Any]:
        """The numbers by name."""
        return asdict(self) | {"worst": self.worst, "mean": self.mean}


def check_engine(
    engine: LossEngine, reference: ReferenceEngine, points: ArrayLike, draws: int
) -> SelfCheck:
    """Compares an engine with aihwkit's tile.

    Args:
        engine: the engine to be checked.
        reference: aihwkit's tile, for the same problem.
        points: strategies to compare, ``(n, d)``.
        draws: draws on the tile of each of them, at least two.
    """
    expected = engine.tnmse(points)
    strategies = engine.problem.hypercube.decode(np.atleast_2d(points))
    assert isinstance(strategies, list)
    deviations, errors = [], []
    for value, strategy in zip(expected, strategies, strict=True):
        drawn = reference.tnmse_of(strategy.to_converter(), repeats=draws, seed=_SEED)
        deviations.append(float(value / drawn.mean() - 1))
        errors.append(float(drawn.std(ddof=1) / np.sqrt(draws) / drawn.mean()))
    return SelfCheck(tuple(deviations), tuple(errors), draws)
