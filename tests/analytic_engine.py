"""A loss without noise and without hardware, for tests of what is around the engines."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wpo_optuna.loss.base import LossEngine
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem


class AnalyticEngine(LossEngine):
    """TNMSE = 0.05 + mean squared distance from a fixed point; the baseline's is 0.1.

    Attributes:
        batches: number of points of each call.
    """

    name = "montecarlo"  # a study's engine must have one of the known names

    def __init__(self, problem: WeightProgrammingProblem) -> None:
        super().__init__(problem)
        self.batches: list[int] = []

    def tnmse(self, x: ArrayLike, seed: int | None = None) -> NDArray[np.float64]:
        points = self.problem.hypercube.check_points(x)
        self.batches.append(len(points))
        return 0.05 + ((points - np.linspace(0.2, 0.8, points.shape[1])) ** 2).mean(axis=1)

    def tnmse_of(self, converter: object, repeats: int = 100, seed: int = 0) -> NDArray[np.float64]:
        return np.full(repeats, 0.1)
