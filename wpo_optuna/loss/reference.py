"""The loss through aihwkit's own tile, one candidate at a time: slow, and the measure of truth.

Source: ``loss_weights`` and ``loss_rpu_config`` of ``aihwkit.inference.converter.wpo``. The read
noise inside aihwkit's compiled tile comes from a generator that Python cannot seed: two
evaluations with equal seeds still differ, by about 1 % on a tile of 512 x 20.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from aihwkit.nn import AnalogLinear
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from wpo_optuna.loss.base import LossEngine
from wpo_optuna.loss.threads import one_thread

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

# (10 ΔW/m)², the reference's amplification of the normalised error.
_ERROR_AMPLIFICATION = 10.0


class ReferenceEngine(LossEngine):
    """Evaluates strategies on aihwkit's inference tile.

    Args:
        problem: the problem whose strategies are evaluated.
        seed: seed of torch's noise (programming, drift, read noise of the devices); the tile's own
            noise in the forward pass cannot be seeded.
    """

    name = "aihwkit"

    def __init__(self, problem: WeightProgrammingProblem, seed: int | None = None) -> None:
        super().__init__(problem)
        self.seed = problem.seed if seed is None else seed

    def tnmse(self, x: ArrayLike, seed: int | None = None) -> NDArray[np.float64]:
        """See :meth:`LossEngine.tnmse`."""
        points = self.problem.hypercube.check_points(x)
        strategies = self.problem.hypercube.decode(points)
        assert isinstance(strategies, list)
        seed = self.seed if seed is None else seed
        return np.array([self._draw(s.to_converter(), seed) for s in strategies])

    def tnmse_of(
        self, converter: BaseConductanceConverter, repeats: int = 100, seed: int = 0
    ) -> NDArray[np.float64]:
        """See :meth:`LossEngine.tnmse_of`."""
        # Neighbouring seeds of a caller must not share draws.
        seeds = np.random.SeedSequence(seed).generate_state(repeats, np.uint64)
        return np.array([self._draw(converter, int(s)) for s in seeds])

    def weights_over_time(self, converter: BaseConductanceConverter, seed: int) -> list[Tensor]:
        """The weights that act at each time in one draw, with drift compensated.

        For every time they are programmed anew.

        Args:
            converter: how weights become conductances.
            seed: seed of torch's noise.

        Returns:
            for each of the problem's times ``(test_in_features, test_out_features)``, unitless.
        """
        with _seeded(seed):
            return list(self._acting_weights(converter))

    def _draw(self, converter: BaseConductanceConverter, seed: int) -> float:
        with _seeded(seed):
            return self._evaluate(converter)

    def _evaluate(self, converter: BaseConductanceConverter) -> float:
        problem = self.problem
        target = problem.test_weights
        error = 0.0
        for effective in self._acting_weights(converter):
            deviation = _ERROR_AMPLIFICATION * (effective - target) / problem.max_abs_weight
            error += float((deviation.double() ** 2).sum())
        tnmse = error / (target.numel() * len(problem.t_steps))
        return np.inf if np.isnan(tnmse) else tnmse

    def _acting_weights(self, converter: BaseConductanceConverter) -> Iterator[Tensor]:
        layer = self._program_target(converter)
        for t in self.problem.t_steps:
            layer.program_analog_weights()
            layer.drift_analog_weights(t)
            # A layer whose outputs exceed the tile's is split into tiles side by side.
            yield torch.cat(
                [tile.alpha * tile.get_weights()[0].T for tile in layer.analog_tiles()], dim=1
            )

    def _program_target(self, converter: BaseConductanceConverter) -> AnalogLinear:
        """A new layer with the target weights: its tile draws its own systematic variations."""
        problem = self.problem
        rpu_config = problem.evaluation_rpu_config()
        # No split along the inputs, also where the tile has no limit (max_input_size 0).
        rpu_config.mapping.max_input_size = problem.test_in_features
        rpu_config.noise_model.g_converter = converter
        layer = AnalogLinear(
            problem.test_in_features, problem.test_out_features, bias=False, rpu_config=rpu_config
        ).eval()
        layer.set_weights(problem.test_weights.T.clone(), None)
        return layer


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds torch's generator, without gradients, and puts its state back afterwards."""
    with one_thread(), torch.random.fork_rng(devices=[]), torch.no_grad():
        # torch.manual_seed would also seed the generators of other devices, for good.
        torch.default_generator.manual_seed(seed)
        yield
