"""The loss over several devices at once, for hardware that one is not sure of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wpo_optuna.loss.base import LossEngine

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.loss.expected import ExpectedEngine
    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

FloatArray = NDArray[np.float64]


class EngineOverDevices(LossEngine):
    """Evaluates strategies on each of a problem's devices.

    A strategy's errors on different devices are comparable relative to what the baseline has
    there. Of these ratios the mean or the largest is taken (``problem.over``), times the
    baseline's error on the first device: a TNMSE as it would be there.

    Args:
        problem: has several devices.
        engines: one for each of ``problem.on_each_device``, all of one kind.

    Attributes:
        engines: as given.
    """

    def __init__(self, problem: WeightProgrammingProblem, engines: Sequence[LossEngine]) -> None:
        self.problem = problem
        self.name = engines[0].name
        self.engines = tuple(engines)

    @cached_property
    def baselines(self) -> FloatArray:
        """TNMSE of the baseline on each device ``(K,)``: what errors there count in relation to.

        Means of ``problem.baseline_iterations`` draws. An engine that is to weigh the devices as
        another one does is given that one's.
        """
        problem = self.problem
        arguments = problem.g_converter_baseline, problem.baseline_iterations, problem.seed
        return np.array([engine.tnmse_of(*arguments).mean() for engine in self.engines])

    def tnmse(self, x: ArrayLike, seed: int | None = None) -> FloatArray:
        """See :meth:`LossEngine.tnmse`; all devices meet the same random numbers."""
        return self._over(self._relative([engine.tnmse(x, seed) for engine in self.engines]))

    def tnmse_and_conductance(
        self, x: ArrayLike, seed: int | None = None
    ) -> tuple[FloatArray, FloatArray | None]:
        """See :meth:`LossEngine.tnmse_and_conductance`."""
        pairs = [engine.tnmse_and_conductance(x, seed) for engine in self.engines]
        tnmse = self._over(self._relative([values for values, _ in pairs]))
        conductances = [values for _, values in pairs if values is not None]
        is_known = len(conductances) == len(pairs)
        return tnmse, self._over(np.array(conductances)) if is_known else None

    def tnmse_of(
        self, converter: BaseConductanceConverter, repeats: int = 100, seed: int = 0
    ) -> FloatArray:
        """See :meth:`LossEngine.tnmse_of`; the worst device is the one of the largest mean."""
        engines = zip(self.engines, self._seeds(seed), strict=True)
        relative = self._relative([e.tnmse_of(converter, repeats, own) for e, own in engines])
        half = repeats // 2
        if self.problem.over == "mean" or half == 0:
            return self._over(relative)
        # The largest of several means is also the unluckiest: other draws say which one it is.
        first, second = relative[:, :half], relative[:, half:]
        worst, other = (draws.mean(axis=1).argmax() for draws in (second, first))
        return np.concatenate([first[worst], second[other]])

    def conductance(self, x: ArrayLike, seed: int | None = None) -> FloatArray:
        """See :meth:`LossEngine.conductance`: the mean over the devices, or the largest."""
        return self._over(np.array([engine.conductance(x, seed) for engine in self.engines]))

    def conductance_of(
        self, converter: BaseConductanceConverter, repeats: int = 100, seed: int = 0
    ) -> FloatArray:
        """See :meth:`LossEngine.conductance_of`: the mean over the devices, or the largest."""
        engines = zip(self.engines, self._seeds(seed), strict=True)
        return self._over(np.array([e.conductance_of(converter, repeats, s) for e, s in engines]))

    def _seeds(self, seed: int) -> list[int]:
        """A seed for each device: independent draws on several devices tell more."""
        return np.random.SeedSequence(seed).generate_state(len(self.engines)).tolist()

    def _relative(self, tnmse: Sequence[FloatArray]) -> FloatArray:
        """Errors ``(K, n)`` relative to the devices' baselines, in units of the first's."""
        return np.array(tnmse) * (self.baselines[0] / self.baselines)[:, None]

    def _over(self, of_devices: FloatArray) -> FloatArray:
        """What counts ``(n,)`` of values ``(K, n)``."""
        return of_devices.max(axis=0) if self.problem.over == "worst" else of_devices.mean(axis=0)


class ExpectedEngineOverDevices(EngineOverDevices):
    """The same with the expected engine's gradients.

    The gradient of the largest of several values is that of the device which has it.
    """

    engines: tuple[ExpectedEngine, ...]

    def value_and_grad(self, x: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """TNMSE ``(n,)`` and its gradient ``(n, d)`` at points ``(n, d)`` or one point ``(d,)``."""
        values, gradients = zip(*(e.value_and_grad(x) for e in self.engines), strict=True)
        factors = (self.baselines[0] / self.baselines)[:, None, None]
        return self._gradient_over(self._relative(values), np.array(gradients) * factors)

    def conductance_and_grad(self, x: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Mean conductance ``(n,)`` in µS and its gradient; see :meth:`value_and_grad`."""
        pairs = [engine.conductance_and_grad(x) for engine in self.engines]
        values, gradients = map(np.array, zip(*pairs, strict=True))
        return self._gradient_over(values, gradients)

    def _gradient_over(
        self, values: FloatArray, gradients: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        if self.problem.over == "mean":
            return values.mean(axis=0), gradients.mean(axis=0)
        worst = values.argmax(axis=0)
        at = np.arange(values.shape[1])
        return values[worst, at], gradients[worst, at]
