"""The loss by Monte Carlo, batched over candidates: aihwkit's physics on tensors.

For each time t and with fresh draws (``loss_weights`` of ``aihwkit.inference.converter.wpo`` and
``InferenceTile`` of aihwkit): the target weights W are programmed; the drift reference r₀ is read
from the programmed weights ŵ; ŵ is turned into conductances again, which drift and are read with
noise, giving w_t; r_t is read like r₀, and α = r₀ / r_t compensates. Then, with m = max |W|,

    TNMSE = 100 / (n T) Σ_t Σ_ij ((α w_t − W) / m)²,

C. Mackin et al., "Optimised weight programming for analogue memory-based deep neural networks",
Nature Communications 2022. Turning ŵ into conductances again re-spans the curves over the largest
|ŵ| of that draw: a property of aihwkit's converters that is kept.

All arithmetic is element by element in single precision, as in aihwkit, and all candidates share
their random numbers. So a candidate's value depends on its strategy and the seed alone: not, to
the last bit, on its neighbours, the size of the batch or that of the chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
import torch
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.tiles.inference import InferenceTile
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from wpo_optuna.errors import InvalidArgument, first_line
from wpo_optuna.loss.base import LossEngine
from wpo_optuna.loss.common_noise import CommonNoise
from wpo_optuna.loss.compensation import drift_compensation
from wpo_optuna.loss.conversion import Conversion, CurveConversion, conversion_of
from wpo_optuna.loss.device_noise import preserved_generators
from wpo_optuna.loss.noise_trial import batched_device_noise

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

# Conductances in a chunk on the CPU: few enough that intermediate results stay in its cache, many
# enough that calling torch costs little against computing.
_CPU_CHUNK = 2**17
# Bytes of random numbers that differ between the draws computed at once.
_NOISE_BYTES = 2**28
# On a GPU, the bytes of a chunk, of which it has plenty.
_GPU_CHUNK_BYTES = 2**30


@dataclass(frozen=True)
class _Tile:
    """Target weights of one tile, ``(1, out, in)``."""

    index: int
    target: Tensor


class MonteCarloEngine(LossEngine):
    """Evaluates strategies by Monte Carlo, in batches.

    Args:
        problem: the problem whose strategies are evaluated.
        seed: seed of the noise; None takes the problem's. It stays the same from call to call, so
            that candidates of a whole study meet the same noise (common random numbers).
        device: torch device, such as ``"cpu"`` or ``"cuda"``.
        chunk_size: number of candidates computed at once, which bounds the memory; None finds one
            that suits the device. It does not change the results.
        draws: number of independent draws that are averaged.

    Raises:
        InvalidArgument: an argument is out of range, the device is missing, or the hardware has a
            property that cannot be evaluated for a batch of candidates.
    """

    name = "montecarlo"

    def __init__(
        self,
        problem: WeightProgrammingProblem,
        *,
        seed: int | None = None,
        device: str | torch.device = "cpu",
        chunk_size: int | None = None,
        draws: int = 1,
    ) -> None:
        super().__init__(problem)
        self.seed = problem.seed if seed is None else _checked_whole("seed", seed, 0)
        self.draws = _checked_whole("draws", draws, 1)
        self.device = checked_device(device)
        rpu_config = problem.evaluation_rpu_config()
        self._compensation = drift_compensation(rpu_config)
        self._tiles = _target_tiles(problem, self.device)
        self._devices = batched_device_noise(
            rpu_config.noise_model, problem.t_steps, (problem.g_min, problem.g_max), self.device
        )
        if chunk_size is None:
            self.chunk_size = self._suitable_chunk_size()
        else:
            self.chunk_size = _checked_whole("chunk_size", chunk_size, 1)
        self._last_noise = CommonNoise(self.seed, [0])
        if self.device.type == "cpu":
            _let_allocator_keep_memory()

    def tnmse(self, x: ArrayLike, seed: int | None = None) -> NDArray[np.float64]:
        """See :meth:`LossEngine.tnmse`; averages over :attr:`draws` draws."""
        decoded = self.problem.hypercube.decode_arrays(x)
        seed = self.seed if seed is None else _checked_whole("seed", seed, 0)
        f = torch.as_tensor(decoded.f, dtype=torch.float32)
        curves = torch.as_tensor(decoded.g, dtype=torch.float32)
        total = np.zeros(len(f))
        for draw in range(self.draws):
            noise = self._noise(seed, draw)
            for start in range(0, len(f), self.chunk_size):
                chunk = slice(start, start + self.chunk_size)
                strategies = CurveConversion(
                    f[chunk].to(self.device), curves[chunk].to(self.device)
                )
                total[chunk] += self._evaluate(strategies, noise)
        return _nan_as_inf(total / self.draws)

    def tnmse_of(
        self, converter: BaseConductanceConverter, repeats: int = 100, seed: int = 0
    ) -> NDArray[np.float64]:
        """See :meth:`LossEngine.tnmse_of`; draw k is that of :meth:`tnmse` for the same seed."""
        repeats = _checked_whole("repeats", repeats, 1)
        seed = _checked_whole("seed", seed, 0)
        strategy = conversion_of(converter, self.device)
        n_at_once = min(self.chunk_size, self._suitable_draws())
        starts = range(0, repeats, n_at_once)
        chunks = [range(repeats)[start : start + n_at_once] for start in starts]
        values = [self._evaluate(strategy, CommonNoise(seed, draws)) for draws in chunks]
        return _nan_as_inf(np.concatenate(values))

    def _noise(self, seed: int, draw: int) -> CommonNoise:
        """The random numbers of a draw; those used last are kept for the next call."""
        if (self._last_noise.seed, self._last_noise.draws) != (seed, (draw,)):
            self._last_noise = CommonNoise(seed, [draw])
        return self._last_noise

    @torch.no_grad()
    def _evaluate(self, strategies: Conversion, noise: CommonNoise) -> NDArray[np.float64]:
        """TNMSE (n,) of n strategies in one draw, or of one strategy in n draws."""
        error = sum(self._squared_error(strategies, tile, noise) for tile in self._tiles)
        assert isinstance(error, Tensor)
        n_values = self.problem.test_weights.numel() * len(self.problem.t_steps)
        return 100 * error.cpu().numpy() / n_values

    def _squared_error(self, strategies: Conversion, tile: _Tile, noise: CommonNoise) -> Tensor:
        """Σ_t Σ_ij ((α w_t − W) / m)² of a tile, ``(n,)`` in float64."""
        targets, scale = strategies.to_conductances(tile.target)
        devices = self._devices.program(targets, noise, tile.index)
        errors = []
        for i in range(len(self.problem.t_steps)):
            g, nu = devices.at(i)
            programmed = strategies.to_weights(g.to(self.device), scale)
            g_again, scale_again = strategies.to_conductances(programmed)
            g_drifted = self._devices.drift(g_again, nu, i, noise, tile.index)
            weights = strategies.to_weights(g_drifted.to(self.device), scale_again)
            if self._compensation is not None:
                place = (tile.index, i)
                weights = weights * self._compensation.factor(
                    tile.target, programmed, weights, noise, place
                )
            deviation = (weights - tile.target).div_(self.problem.max_abs_weight)
            # In two steps, since torch adds up to a single number in another order than to several.
            errors.append(deviation.square_().sum(dim=2).double().sum(dim=1))
        return torch.stack(errors).sum(dim=0)

    def _suitable_chunk_size(self) -> int:
        """Candidates that fit the cache of a CPU, or a bounded part of a GPU's memory."""
        n_devices = 2 * len(self.problem.f_lst)
        n_conductances = n_devices * max(tile.target.numel() for tile in self._tiles)
        if self.device.type == "cpu":
            return max(1, _CPU_CHUNK // n_conductances)
        # Programming holds a handful of arrays for every time.
        bytes_each = 4 * n_conductances * 5 * (len(self.problem.t_steps) + 2)
        return max(1, _GPU_CHUNK_BYTES // bytes_each)

    def _suitable_draws(self) -> int:
        """Draws whose random numbers, which each has for itself, fit a bounded memory."""
        n_outputs, n_inputs = max(tile.target.shape[1:] for tile in self._tiles)
        n_numbers = 3 * 2 * len(self.problem.f_lst) * n_outputs * n_inputs
        if self._compensation is not None:
            n_numbers += 2 * self._compensation.readout.numbers_drawn(n_outputs, n_inputs)
        return max(1, _NOISE_BYTES // (4 * n_numbers * len(self.problem.t_steps)))


def _let_allocator_keep_memory() -> None:
    """Makes glibc keep freed memory for the next chunk instead of returning it to the system.

    By default it returns blocks of a chunk's size, and the page faults of getting them again take
    a fifth of the time. Having freed one block of nearly 32 MiB, it keeps up to 64 MiB.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def _nan_as_inf(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isnan(values), np.inf, values)


def _checked_whole(name: str, value: object, lowest: int) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < lowest:
        raise InvalidArgument(f"{name} = {value!r}: a whole number of at least {lowest} is needed.")
    return int(value)


def checked_device(device: str | torch.device) -> torch.device:
    """The torch device of this name.

    Raises:
        InvalidArgument: there is none here, or the engine was not made for it.
    """
    try:
        checked = torch.device(device)
        torch.empty(0, device=checked)
        reason = None if checked.type in ("cpu", "cuda") else "the engine was not made for it"
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
    if reason is not None:
        raise InvalidArgument(
            f"device = {str(device)!r} cannot be used ({reason}): give cpu, or cuda where torch "
            "finds a GPU."
        )
    return checked


def _target_tiles(problem: WeightProgrammingProblem, device: torch.device) -> list[_Tile]:
    """The test matrix as aihwkit distributes it over tiles side by side.

    Raises:
        InvalidArgument: aihwkit refuses the configuration, or it asks for another kind of tile.
    """
    rpu_config = problem.evaluation_rpu_config()
    if rpu_config.tile_class is not InferenceTile:
        raise InvalidArgument(
            f"rpu_config has tile_class = {rpu_config.tile_class.__name__}, which the Monte Carlo "
            'engine does not know (it knows InferenceTile): use the engine "aihwkit".'
        )
    rpu_config.mapping.max_input_size = problem.test_in_features
    with preserved_generators():
        try:
            layer = AnalogLinear(
                problem.test_in_features,
                problem.test_out_features,
                bias=False,
                rpu_config=rpu_config,
            ).eval()
            tiles = list(layer.analog_tiles())
            for tile in tiles:
                inputs = torch.eye(problem.test_in_features)[:1]
                tile.tile.forward(inputs, False, False, False, True, False)
        # The compiled tile checks its parameters itself, by RuntimeError and the like.
        except Exception as error:
            raise InvalidArgument(
                f"rpu_config cannot be simulated by aihwkit's tile: {first_line(error)}."
            ) from error
    widths = [tile.tile.get_d_size() for tile in tiles]
    blocks = problem.test_weights.T.split(widths)
    return [
        _Tile(index, block.to(device, torch.float32).contiguous()[None])
        for index, block in enumerate(blocks)
    ]
