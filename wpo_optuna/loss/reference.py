"""The loss through aihwkit's own tile, one candidate at a time: slow, and the measure of truth.

Source: ``loss_weights`` and ``loss_rpu_config`` of ``aihwkit.inference.converter.wpo``. The read
noise inside aihwkit's compiled tile comes from a generator that Python cannot seed: two
evaluations with equal seeds still differ, by about 1 % on a tile of 512 x 20.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
from aihwkit.simulator.parameters.enums import WeightNoiseType
from aihwkit.simulator.tiles.torch_tile import TorchSimulatorTile
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from wpo_optuna.errors import InvalidArgument, first_line
from wpo_optuna.loss.base import DrawingEngine
from wpo_optuna.loss.parallel import one_thread

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem


class ReferenceEngine(DrawingEngine):
    """Evaluates strategies on aihwkit's inference tile.

    Args:
        problem: the problem whose strategies are evaluated.
        seed: seed of torch's noise (programming, drift, read noise of the devices); the tile's own
            noise in the forward pass cannot be seeded.

    Raises:
        InvalidArgument: aihwkit's tile cannot simulate the problem's hardware.
    """

    name = "aihwkit"

    def __init__(self, problem: WeightProgrammingProblem, seed: int | None = None) -> None:
        super().__init__(problem)
        self.seed = problem.seed if seed is None else seed
        widths_of_tiles(problem)

    def tnmse(self, x: ArrayLike, seed: int | None = None) -> NDArray[np.float64]:
        """See :meth:`LossEngine.tnmse`."""
        points = self.problem.hypercube.check_points(x)
        strategies = self.problem.hypercube.decode(points)
        assert isinstance(strategies, list)
        seed = self.seed if seed is None else seed
        draws = [self._errors(self._draw(s.to_converter(), seed)) for s in strategies]
        return np.concatenate([np.empty(0), *draws])

    def conductance(self, x: ArrayLike, seed: int | None = None) -> NDArray[np.float64]:
        """See :meth:`LossEngine.conductance`."""
        strategies = self.problem.hypercube.decode(self.problem.hypercube.check_points(x))
        assert isinstance(strategies, list)
        seed = self.seed if seed is None else seed
        drawn = [self._conductances(s.to_converter(), [seed]) for s in strategies]
        return np.concatenate([np.empty(0), *drawn])

    def conductance_of(
        self, converter: BaseConductanceConverter, repeats: int = 100, seed: int = 0
    ) -> NDArray[np.float64]:
        """See :meth:`LossEngine.conductance_of`."""
        seeds = np.random.SeedSequence(seed).generate_state(repeats, np.uint64)
        return self._conductances(converter, seeds.tolist())

    def _conductances(
        self, converter: BaseConductanceConverter, seeds: Sequence[int]
    ) -> NDArray[np.float64]:
        """Mean conductances, as aihwkit programs and drifts weights; its tile itself has none."""
        model = deepcopy(self.problem.noise_model)
        model.g_converter = converter
        tiles = self.problem.test_weights.T.split(widths_of_tiles(self.problem))
        drawn = []
        for seed in seeds:
            total = 0.0
            with _seeded(seed):
                for tile, t in product(tiles, self.problem.t_steps):
                    programmed, nu = model.apply_programming_noise(tile.clone())
                    devices, _ = converter.convert_to_conductances(programmed)
                    for g, of_device in zip(devices, nu, strict=True):
                        drifted = model.apply_drift_noise_to_conductance(g, of_device, t)
                        total += float(drifted.double().sum())
            drawn.append(total / self.problem.test_weights.numel() / len(self.problem.t_steps))
        return np.nan_to_num(drawn, nan=np.inf)

    def _acting_weights(
        self, converter: BaseConductanceConverter, draws: int, seed: int
    ) -> Iterable[Tensor]:
        # Neighbouring seeds of a caller must not share draws.
        seeds = np.random.SeedSequence(seed).generate_state(draws, np.uint64)
        return (self._draw(converter, int(s)) for s in seeds)

    def _draw(self, converter: BaseConductanceConverter, seed: int) -> Tensor:
        """Acting weights (1, T, out, in)."""
        with _seeded(seed):
            # A new layer each time: its tiles draw their own systematic variations.
            layer = _layer(self.problem, converter)
            weights = []
            for t in self.problem.t_steps:
                layer.program_analog_weights()
                layer.drift_analog_weights(t)
                tiles = [(tile.alpha * tile.get_weights()[0].T).T for tile in layer.analog_tiles()]
                weights.append(torch.cat(tiles))
            return torch.stack(weights)[None]


def widths_of_tiles(problem: WeightProgrammingProblem) -> list[int]:
    """Outputs of each of the tiles side by side that aihwkit distributes the test matrix over.

    Raises:
        InvalidArgument: aihwkit's tile cannot simulate the problem's hardware.
    """
    with _seeded(0):
        try:
            layer = _layer(problem, problem.g_converter_baseline)
            tiles = list(layer.analog_tiles())
            for tile in tiles:
                inputs = torch.eye(problem.test_in_features)[:1]
                tile.tile.forward(inputs, False, False, False, True, False)
        # The compiled tile checks its parameters itself, by RuntimeError and the like.
        except Exception as error:
            raise InvalidArgument(
                f"rpu_config cannot be simulated by aihwkit's tile: {first_line(error)}"
                f"{_way_out(problem.rpu_config)}."
            ) from error
        return [tile.tile.get_d_size() for tile in tiles]


def _way_out(rpu_config: InferenceRPUConfig) -> str:
    """What to do about weight noise and IR drop, of which the compiled tile alone knows."""
    forward, settings = rpu_config.forward, []
    if not isinstance(rpu_config, TorchInferenceRPUConfig):
        return ""
    if forward.w_noise > 0 or forward.w_noise_type != WeightNoiseType.NONE:
        settings += ["forward.w_noise = 0", "forward.w_noise_type = WeightNoiseType.NONE"]
    if forward.ir_drop > 0 and rpu_config.simulator_tile_class is TorchSimulatorTile:
        settings.append("forward.ir_drop = 0")
    return f": use InferenceRPUConfig, or set {' and '.join(settings)}" if settings else ""


def _layer(problem: WeightProgrammingProblem, converter: BaseConductanceConverter) -> AnalogLinear:
    """A new layer with the target weights."""
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
