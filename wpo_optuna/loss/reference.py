"""The loss through aihwkit's own tile, one candidate at a time: slow, and the measure of truth.

Source: ``loss_weights`` and ``loss_rpu_config`` of ``aihwkit.inference.converter.wpo``. The read
noise inside aihwkit's compiled tile comes from a generator that Python cannot seed: two
evaluations with equal seeds still differ, by about 1 % on a tile of 512 x 20.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from aihwkit.inference.converter.base import BaseConductanceConverter
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
from aihwkit.simulator.parameters.enums import WeightNoiseType
from aihwkit.simulator.tiles.torch_tile import TorchSimulatorTile
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from wpo_optuna.errors import InvalidArgument, first_line
from wpo_optuna.loss.base import DrawingEngine
from wpo_optuna.loss.noise import step_on_weights
from wpo_optuna.loss.parallel import one_thread

if TYPE_CHECKING:
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
        return self.tnmse_and_conductance(x, seed)[0]

    def conductance(self, x: ArrayLike, seed: int | None = None) -> NDArray[np.float64]:
        """See :meth:`LossEngine.conductance`.

        Raises:
            InvalidArgument: the noise model acts on weights as a whole.
        """
        conductance = self.tnmse_and_conductance(x, seed)[1]
        if conductance is None:
            model = type(self.problem.noise_model).__name__
            raise InvalidArgument(
                f"rpu_config.noise_model = {model} acts on weights as a whole: what single devices "
                "conduct is not known."
            )
        return conductance

    def tnmse_and_conductance(
        self, x: ArrayLike, seed: int | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """See :meth:`LossEngine.tnmse_and_conductance`."""
        strategies = self.problem.hypercube.decode(self.problem.hypercube.check_points(x))
        assert isinstance(strategies, list)
        seed = self.seed if seed is None else seed
        drawn = [self._draw(strategy.to_converter(), seed) for strategy in strategies]
        errors = [self._errors(weights) for weights, _ in drawn]
        is_known = step_on_weights(self.problem.noise_model) is None
        conductance = np.array([g for _, g in drawn]) if is_known else None
        return np.concatenate([np.empty(0), *errors]), conductance

    def conductance_of(
        self, converter: BaseConductanceConverter, repeats: int = 100, seed: int = 0
    ) -> NDArray[np.float64]:
        """See :meth:`LossEngine.conductance_of`."""
        return np.array([conductance for _, conductance in self._draws(converter, repeats, seed)])

    def _acting_weights(
        self, converter: BaseConductanceConverter, draws: int, seed: int
    ) -> Iterable[Tensor]:
        return (weights for weights, _ in self._draws(converter, draws, seed))

    def _draws(
        self, converter: BaseConductanceConverter, draws: int, seed: int
    ) -> Iterator[tuple[Tensor, float]]:
        # Neighbouring seeds of a caller must not share draws.
        seeds = np.random.SeedSequence(seed).generate_state(draws, np.uint64)
        return (self._draw(converter, int(s)) for s in seeds)

    def _draw(self, converter: BaseConductanceConverter, seed: int) -> tuple[Tensor, float]:
        """Acting weights (1, T, out, in), and the mean conductance in µS per weight."""
        problem, counting = self.problem, _CountingConverter(converter)
        weights, total = [], 0.0
        with _seeded(seed):
            # A new layer each time: its tiles draw their own systematic variations.
            layer = _layer(problem, counting)
            for t in problem.t_steps:
                layer.program_analog_weights()
                counting.total = 0.0
                layer.drift_analog_weights(t)
                total += counting.total
                tiles = [(tile.alpha * tile.get_weights()[0].T).T for tile in layer.analog_tiles()]
                weights.append(torch.cat(tiles))
        mean = total / problem.test_weights.numel() / len(problem.t_steps)
        return torch.stack(weights)[None], mean if np.isfinite(mean) else np.inf


class _CountingConverter(BaseConductanceConverter):
    """A converter that adds up the conductances that a noise model hands back to it."""

    def __init__(self, converter: BaseConductanceConverter) -> None:
        self.converter = converter
        self.total = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.converter, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> _CountingConverter:
        return self  # tiles copy their hardware

    def convert_to_conductances(self, weights: Tensor) -> tuple[list[Tensor], dict[str, Any]]:
        """As the converter does."""
        converted: tuple[list[Tensor], dict[str, Any]]
        converted = self.converter.convert_to_conductances(weights)
        return converted

    def convert_back_to_weights(self, conductances: list[Tensor], params: dict[str, Any]) -> Tensor:
        """As the converter does."""
        self.total += sum(float(g.double().sum()) for g in conductances)
        return self.converter.convert_back_to_weights(conductances, params)


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
