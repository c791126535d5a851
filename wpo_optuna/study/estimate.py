"""Scores that can be believed: strategies on fresh noise, with an interval.

The best of many noisy trials was also lucky (winner's curse), and a deterministic engine has a
bias of its own. Finalists are therefore drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from wpo_optuna.errors import WeightProgrammingError

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.loss import LossEngine
    from wpo_optuna.problem import WeightProgrammingProblem
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

    def __str__(self) -> str:
        return f"{self.mean:.5f} [{self.low:.5f}, {self.high:.5f}]"


def score(
    engine: LossEngine,
    converter: BaseConductanceConverter,
    seed: int,
    on_draws: Callable[[int], object] = lambda n: None,
) -> Estimate:
    """Draws a converter's TNMSE until its 95 % interval is narrower than 1 % of it.

    Args:
        engine: one that draws.
        converter: how weights become conductances.
        seed: seed of the draws; fresh for each score that is compared.
        on_draws: told the number of draws after each round.

    Returns:
        the estimate; after 400 draws whatever its width.

    Raises:
        WeightProgrammingError: the noise model gives values that are no numbers.
    """
    draws = np.empty(0)
    wanted = _FIRST_DRAWS
    while len(draws) < wanted:
        # Each round has seeds of its own: a longer run is no repetition of a shorter one.
        round_seed = int(np.random.SeedSequence([seed, len(draws)]).generate_state(1)[0])
        new = engine.tnmse_of(converter, repeats=wanted - len(draws), seed=round_seed)
        draws = np.concatenate([draws, new])
        on_draws(len(new))
        check_finite(draws, "a score", engine.problem)
        estimate = Estimate.of(draws)
        if estimate.relative_width < RELATIVE_WIDTH:
            break
        needed = len(draws) * (estimate.relative_width / RELATIVE_WIDTH) ** 2
        wanted = min(_MOST_DRAWS, max(len(draws) + 4, math.ceil(1.05 * needed)))
    return estimate


def check_finite(tnmse: ArrayLike, what: str, problem: WeightProgrammingProblem) -> None:
    """Refuses errors that are no numbers.

    Args:
        tnmse: TNMSE, any shape.
        what: what it is of, for the message.
        problem: whose noise model is to blame.

    Raises:
        WeightProgrammingError: one of them is infinite or NaN.
    """
    if not np.all(np.isfinite(tnmse)):
        raise WeightProgrammingError(
            f"{what} is not finite: the noise model {type(problem.noise_model).__name__} gives "
            f"conductances that are no numbers, between {problem.g_min:g} and {problem.g_max:g} µS "
            f"and {problem.t_steps[0]:g} and {problem.t_steps[-1]:g} s."
        )


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
