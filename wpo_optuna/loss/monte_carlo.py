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
their random numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
import torch
from aihwkit.simulator.tiles.inference import InferenceTile
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from wpo_optuna.errors import InvalidArgument, first_line
from wpo_optuna.loss.base import DrawingEngine, Result
from wpo_optuna.loss.common_noise import CommonNoise
from wpo_optuna.loss.compensation import drift_compensation
from wpo_optuna.loss.conversion import Conversion, CurveConversion, conversion_of
from wpo_optuna.loss.device_noise import DeviceNoise
from wpo_optuna.loss.reference import widths_of_tiles
from wpo_optuna.loss.threads import in_threads

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

# Conductances in a chunk on the CPU: few enough that intermediate results stay in its cache, many
# enough that calling torch costs little against computing.
_CPU_CHUNK = 2**18
# On a GPU, the bytes of a chunk, of which it has plenty.
_GPU_CHUNK_BYTES = 2**30


class MonteCarloEngine(DrawingEngine):
    """Evaluates strategies by Monte Carlo, in batches.

    Args:
        problem: the problem whose strategies are evaluated.
        seed: seed of the noise; None takes the problem's. It stays the same from call to call, so
            that candidates of a whole study meet the same noise (common random numbers).
        device: torch device, such as ``"cpu"`` or ``"cuda"``.
        draws: number of independent draws that :meth:`tnmse` averages.

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
        draws: int = 1,
    ) -> None:
        super().__init__(problem)
        self.seed = problem.seed if seed is None else _checked_whole("seed", seed, 0)
        self.draws = _checked_whole("draws", draws, 1)
        self.device = checked_device(device)
        rpu_config = problem.evaluation_rpu_config()
        if rpu_config.tile_class is not InferenceTile:
            raise InvalidArgument(
                f"rpu_config has tile_class = {rpu_config.tile_class.__name__}, which the Monte "
                'Carlo engine does not know (it knows InferenceTile): use the engine "aihwkit".'
            )
        self._compensation = drift_compensation(rpu_config)
        self._devices = DeviceNoise(
            rpu_config.noise_model, problem.t_steps, (problem.g_min, problem.g_max), self.device
        )
        blocks = problem.test_weights.T.split(widths_of_tiles(problem))
        self._tiles = [block.to(self.device).contiguous()[None] for block in blocks]
        self._noise = CommonNoise(self.seed, range(1))
        if self.device.type == "cpu":
            _let_allocator_keep_memory()

    def tnmse(self, x: ArrayLike, seed: int | None = None) -> NDArray[np.float64]:
        """See :meth:`LossEngine.tnmse`; averages over :attr:`draws` draws."""
        decoded = self.problem.hypercube.decode_arrays(x)
        seed = self.seed if seed is None else _checked_whole("seed", seed, 0)
        f = torch.as_tensor(decoded.f, dtype=torch.float32, device=self.device)
        curves = torch.as_tensor(decoded.g, dtype=torch.float32, device=self.device)
        drawn = [self._in_draw(f, curves, seed, draw) for draw in range(self.draws)]
        return np.mean(drawn, axis=0)

    def _in_draw(self, f: Tensor, curves: Tensor, seed: int, draw: int) -> NDArray[np.float64]:
        """TNMSE (n,) of strategies with factors (n, P) and curves (n, 2P, K)."""
        # The numbers used last are kept for the next call.
        if (self._noise.seed, self._noise.draws.start) != (seed, draw):
            self._noise = CommonNoise(seed, range(draw, draw + 1))
        noise = self._noise

        def errors(chunk: slice) -> NDArray[np.float64]:
            strategies = CurveConversion(f[chunk], curves[chunk])
            return self._errors(self._acting_weights(strategies, noise))

        return np.concatenate([np.empty(0), *self._for_chunks(errors, len(f))])

    def _over_draws(
        self,
        function: Callable[[Tensor], Result],
        converter: BaseConductanceConverter,
        draws: int,
        seed: int,
    ) -> list[Result]:
        # The first draw is that of tnmse for the same seed.
        seed = _checked_whole("seed", seed, 0)
        strategy = conversion_of(converter, self.device)

        def of_chunk(chunk: slice) -> Result:
            noise = CommonNoise(seed, range(chunk.start, chunk.stop))
            return function(self._acting_weights(strategy, noise))

        return self._for_chunks(of_chunk, _checked_whole("repeats", draws, 1))

    def _for_chunks(self, function: Callable[[slice], Result], n: int) -> list[Result]:
        """Results for slices of n candidates or draws, as many as memory suits, in order."""
        step = self._chunk_size()
        chunks = [slice(start, min(start + step, n)) for start in range(0, n, step)]
        if self.device.type == "cpu":
            return in_threads(function, chunks)
        return [function(chunk) for chunk in chunks]

    def _chunk_size(self) -> int:
        """Candidates that fit the cache of a CPU, or a bounded part of a GPU's memory."""
        n_conductances = 2 * len(self.problem.f_lst) * max(tile.numel() for tile in self._tiles)
        if self.device.type == "cpu":
            return max(1, _CPU_CHUNK // n_conductances)
        # Programming holds a handful of arrays for every time.
        bytes_each = 4 * n_conductances * 5 * (len(self.problem.t_steps) + 2)
        return max(1, _GPU_CHUNK_BYTES // bytes_each)

    @torch.no_grad()
    def _acting_weights(self, strategies: Conversion, noise: CommonNoise) -> Tensor:
        """Weights (n, T, out, in) of n strategies in one draw, or of one strategy in n draws."""
        tiles = enumerate(self._tiles)
        return torch.cat([self._on_tile(strategies, noise, *tile) for tile in tiles], dim=2)

    def _on_tile(
        self, strategies: Conversion, noise: CommonNoise, tile: int, target: Tensor
    ) -> Tensor:
        """Weights (n, T, out, in) of the tile with target weights (1, out, in)."""
        targets, scale = strategies.to_conductances(target)
        programmed_g, nu = self._devices.program(targets, noise, tile)
        acting = []
        for i, g in enumerate(programmed_g.unbind(dim=1)):
            programmed = strategies.to_weights(g, scale)
            g_again, scale_again = strategies.to_conductances(programmed)
            g_drifted = self._devices.drift(g_again, nu, i, noise, tile)
            weights = strategies.to_weights(g_drifted, scale_again)
            if self._compensation is not None:
                weights *= self._compensation.factor(target, programmed, weights, noise, (tile, i))
            acting.append(weights)
        return torch.stack(acting, dim=1)


def _let_allocator_keep_memory() -> None:
    """Makes glibc keep freed memory for the next chunk instead of returning it to the system.

    By default it returns blocks of a chunk's size, and the page faults of getting them again take
    a fifth of the time. Having freed one block of nearly 32 MiB, it keeps up to 64 MiB.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


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
