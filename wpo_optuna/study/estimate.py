"""Scores that can be believed: strategies on fresh noise, with an interval.

The best of many noisy trials was also lucky (winner's curse), and a deterministic engine has a
bias of its own. Finalists are therefore drawn again through aihwkit's own tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.loss.reference import ReferenceEngine
    from wpo_optuna.strategy import ProgrammingStrategy

CONFIDENCE = 0.95
# Widest acceptable 95 % interval, from end to end, relative to the mean.
RELATIVE_WIDTH = 0.01
_FIRST_DRAWS = 24
_MOST_DRAWS = 400


@dataclass(frozen=True)
class Estimate:
    """A mean over independent draws and its 95 % interval.

    Attributes:
        mean: mean over the draws.
        low: lower end of the interval (Student's t).
        high: upper end.
        draws: number of draws.
    """

    mean: float
    low: float
    high: float
    draws: int

    @classmethod
    def of(cls, draws: NDArray[np.float64]) -> Estimate:
        """The estimate from at least two draws."""
        mean = float(np.mean(draws))
        error = float(np.std(draws, ddof=1)) / math.sqrt(len(draws))
        half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(draws) - 1)) * error
        return cls(mean, mean - half, mean + half, len(draws))

    @property
    def relative_width(self) -> float:
        """Width of the interval relative to the mean."""
        return (self.high - self.low) / self.mean

    @property
    def standard_error(self) -> float:
        """Standard error of the mean."""
        return (self.high - self.low) / (
            2 * float(stats.t.ppf(0.5 + CONFIDENCE / 2, self.draws - 1))
        )

    def to_json(self) -> dict[str, float]:
        """The estimate's numbers by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, numbers: dict[str, Any]) -> Estimate:
        """Reverses :meth:`to_json`."""
        return cls(**numbers)

    def __str__(self) -> str:
        return f"{self.mean:.5f} [{self.low:.5f}, {self.high:.5f}]"


def score(
    engine: ReferenceEngine,
    converter: BaseConductanceConverter,
    seed: int,
    on_draws: Callable[[int], object] = lambda n: None,
) -> Estimate:
    """Draws a converter's TNMSE until its 95 % interval is narrower than 1 % of it.

    Args:
        engine: aihwkit's own tile.
        converter: how weights become conductances.
        seed: seed of the draws; fresh for each score that is compared.
        on_draws: told the number of draws after each round.

    Returns:
        the estimate; after 400 draws whatever its width.
    """
    draws = np.empty(0)
    wanted = _FIRST_DRAWS
    while len(draws) < wanted:
        # Each round has seeds of its own: a longer run is no repetition of a shorter one.
        round_seed = int(np.random.SeedSequence([seed, len(draws)]).generate_state(1)[0])
        new = engine.tnmse_of(converter, repeats=wanted - len(draws), seed=round_seed)
        draws = np.concatenate([draws, new])
        on_draws(len(new))
        estimate = Estimate.of(draws)
        if not math.isfinite(estimate.mean) or estimate.relative_width < RELATIVE_WIDTH:
            break
        needed = len(draws) * (estimate.relative_width / RELATIVE_WIDTH) ** 2
        wanted = min(_MOST_DRAWS, max(len(draws) + 4, math.ceil(1.05 * needed)))
    return estimate


def distinct(
    strategies: Sequence[ProgrammingStrategy], how_many: int, tolerance: float = 0.01
) -> list[int]:
    """Indices of the first strategies that differ from each other, in the order given.

    Two strategies count as the same if no factor and no conductance differ by more than
    ``tolerance`` of the factor and of the range of conductance.
    """
    chosen: list[int] = []
    for index, candidate in enumerate(strategies):
        if all(_distance(candidate, strategies[other]) > tolerance for other in chosen):
            chosen.append(index)
        if len(chosen) == how_many:
            break
    return chosen


def _distance(a: ProgrammingStrategy, b: ProgrammingStrategy) -> float:
    factors = max(abs(fa / fb - 1) for fa, fb in zip(a.f_lst, b.f_lst, strict=True))
    span = a.g_max - a.g_min
    curves = np.abs(np.asarray(a.g_lst) - np.asarray(b.g_lst)).max() / span
    return max(factors, float(curves))
