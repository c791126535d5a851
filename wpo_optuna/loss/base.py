"""What every loss engine offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem


class LossEngine(ABC):
    """Evaluates the time-averaged normalised mean-squared error (TNMSE) of strategies.

    Attributes:
        name: name by which :func:`wpo_optuna.loss.make_engine` makes the engine.
        problem: the problem whose strategies are evaluated.
    """

    name: ClassVar[str]

    def __init__(self, problem: WeightProgrammingProblem) -> None:
        self.problem = problem

    @abstractmethod
    def tnmse(self, x: ArrayLike, seed: int | None = None) -> NDArray[np.float64]:
        """TNMSE of the strategies at points of the hypercube.

        Args:
            x: points ``(n, d)``, or one point ``(d,)``.
            seed: seed of the noise; None takes the engine's own, which stays the same from call
                to call (common random numbers).

        Returns:
            array ``(n,)``; NaN counts as +inf.

        Raises:
            InvalidArgument: x has another number of coordinates or leaves the unit cube.
        """

    @abstractmethod
    def tnmse_of(
        self, converter: BaseConductanceConverter, repeats: int = 100, seed: int = 0
    ) -> NDArray[np.float64]:
        """TNMSE of any aihwkit converter, drawn repeatedly.

        Args:
            converter: how weights become conductances.
            repeats: number of independent draws.
            seed: seed of the draws.

        Returns:
            array ``(repeats,)``; a deterministic engine repeats one value.
        """
