"""What every loss engine offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from wpo_optuna.errors import InvalidArgument

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem


def not_batched(what: str) -> InvalidArgument:
    """The refusal of hardware that aihwkit's tile alone can simulate."""
    return InvalidArgument(
        f'{what}, which aihwkit\'s own tile alone can simulate: use the engine "aihwkit".'
    )


class LossEngine(ABC):
    """Evaluates the time-averaged normalised mean-squared error (TNMSE) of strategies.

    Attributes:
        name: name by which :func:`wpo_optuna.loss.make_engine` makes the engine.
        problem: the problem whose strategies are evaluated.
    """

    name: str

    def __init__(self, problem: WeightProgrammingProblem) -> None:
        if problem.other_rpu_configs:
            raise InvalidArgument(
                f"problem has {len(problem.other_rpu_configs)} other_rpu_configs: make_engine "
                f"makes what evaluates it; a {type(self).__name__} alone knows one device."
            )
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

    def conductance(self, x: ArrayLike, seed: int | None = None) -> NDArray[np.float64]:
        """Mean conductance of the strategies at points of the hypercube.

        It is the sum over the devices of a weight, averaged over the weights and the times, as
        aihwkit reads them: programmed, derived again from the programmed weights, and drifted. The
        read power of a tile is proportional to it.

        Args:
            x: points ``(n, d)``, or one point ``(d,)``.
            seed: see :meth:`tnmse`.

        Returns:
            array ``(n,)`` in µS per weight; NaN counts as +inf.

        Raises:
            InvalidArgument: x has another number of coordinates or leaves the unit cube.
        """
        raise NotImplementedError(f"The engine {self.name!r} does not know conductances.")

    def tnmse_and_conductance(
        self, x: ArrayLike, seed: int | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """TNMSE ``(n,)`` and mean conductance ``(n,)`` in µS per weight, in one draw.

        The latter is None where an engine does not know it. For arguments and errors see
        :meth:`tnmse`.
        """
        return self.tnmse(x, seed), None

    def conductance_of(
        self, converter: BaseConductanceConverter, repeats: int = 100, seed: int = 0
    ) -> NDArray[np.float64]:
        """Mean conductance with any aihwkit converter, drawn repeatedly; see :meth:`conductance`.

        Args:
            converter: how weights become conductances.
            repeats: number of independent draws.
            seed: seed of the draws.

        Returns:
            array ``(repeats,)`` in µS per weight; a deterministic engine repeats one value.
        """
        raise NotImplementedError(f"The engine {self.name!r} does not know conductances.")


class DrawingEngine(LossEngine):
    """An engine that draws the noise: it knows the weights that act, not only their error."""

    def tnmse_of(
        self, converter: BaseConductanceConverter, repeats: int = 100, seed: int = 0
    ) -> NDArray[np.float64]:
        """See :meth:`LossEngine.tnmse_of`."""
        drawn = self._acting_weights(converter, repeats, seed)
        return np.concatenate([self._errors(weights) for weights in drawn])

    def draw_weights(self, converter: BaseConductanceConverter, draws: int, seed: int) -> Tensor:
        """The weights that act at each of the T times, with drift compensated, in several draws.

        For every time they are programmed anew. The draws are those of :meth:`tnmse_of`.

        Args:
            converter: how weights become conductances.
            draws: number of independent draws.
            seed: seed of the draws.

        Returns:
            ``(draws, T, test_in_features, test_out_features)``, unitless.
        """
        drawn = self._acting_weights(converter, draws, seed)
        return torch.cat([weights.mT.cpu() for weights in drawn])

    @abstractmethod
    def _acting_weights(
        self, converter: BaseConductanceConverter, draws: int, seed: int
    ) -> Iterable[Tensor]:
        """Acting weights ``(n, T, out, in)``, a few of the draws at a time."""

    def _errors(self, weights: Tensor) -> NDArray[np.float64]:
        """TNMSE ``(n,)`` of acting weights ``(n, T, out, in)``, infinite where they are NaN.

        With m = max |W| it is 100 times the mean of ((w_t - W) / m)² over times and weights: the
        100 is the reference's amplification of the normalised error, 10, squared.
        """
        target = self.problem.test_weights.T.to(weights.device)
        deviation = (weights - target) / self.problem.max_abs_weight
        # In two steps, since torch adds up to a single number in another order than to several.
        tnmse = 100 * deviation.square_().mean(dim=3).double().mean(dim=(1, 2))
        return tnmse.nan_to_num(nan=torch.inf, posinf=torch.inf).cpu().numpy()
