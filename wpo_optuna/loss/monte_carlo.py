"""The loss by Monte Carlo, batched over candidates: aihwkit's physics on tensors.

For each time t and with fresh draws (``loss_weights`` of ``aihwkit.inference.converter.wpo`` and
the inference tiles of aihwkit): the target weights W are programmed; the drift reference r₀ is read
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

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from wpo_optuna.errors import InvalidArgument, first_line
from wpo_optuna.loss.base import DrawingEngine
from wpo_optuna.loss.conversion import Conversion, CurveConversion, conversion_of
from wpo_optuna.loss.noise import CommonNoise, Use, check_noise_model
from wpo_optuna.loss.parallel import in_threads
from wpo_optuna.loss.readout import AnalogReadout, DriftCompensation
from wpo_optuna.loss.reference import widths_of_tiles

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

Result = TypeVar("Result")

# Conductances in a chunk on the CPU: few enough that intermediate results stay in its cache, many
# enough that calling torch costs little against computing.
_CPU_CHUNK = 2**18
# On a GPU, those of all times together, so that they take about a GiB.
_GPU_CHUNK = 2**26


class MonteCarloEngine(DrawingEngine):
    """Evaluates strategies by Monte Carlo, in batches.

    Args:
        problem: the problem whose strategies are evaluated.
        seed: seed of the noise; None takes the problem's. It stays the same from call to call, so
            that candidates of a whole study meet the same noise (common random numbers).
        device: torch device, such as ``"cpu"`` or ``"cuda"``.

    Raises:
        InvalidArgument: the device is missing, or the hardware has a property that cannot be
            evaluated for a batch of candidates.
    """

    name = "montecarlo"

    def __init__(
        self,
        problem: WeightProgrammingProblem,
        *,
        seed: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(problem)
        self.seed = problem.seed if seed is None else seed
        self.device = checked_device(device)
        rpu_config = problem.evaluation_rpu_config()
        readout = AnalogReadout.of_tile(rpu_config)
        compensation = getattr(rpu_config, "drift_compensation", None)
        self._compensation = compensation and DriftCompensation(compensation, readout)
        self._model = rpu_config.noise_model
        g_range = problem.g_min, problem.g_max
        check_noise_model(self._model, problem.t_steps, g_range, self.device)
        blocks = problem.test_weights.T.split(widths_of_tiles(problem))
        self._tiles = [block.to(self.device).contiguous()[None] for block in blocks]
        self._noise = CommonNoise(self.seed)
        if self.device.type == "cpu":
            # Having freed a block of nearly 32 MiB, glibc keeps up to 64 MiB for the next chunk.
            # Else it returns them to the system, and getting them again takes a fifth of the time.
            torch.empty(2**25 - 2**16, dtype=torch.uint8)

    def tnmse(self, x: ArrayLike, seed: int | None = None) -> NDArray[np.float64]:
        """See :meth:`LossEngine.tnmse`."""
        return self.tnmse_and_conductance(x, seed)[0]

    def conductance(self, x: ArrayLike, seed: int | None = None) -> NDArray[np.float64]:
        """See :meth:`LossEngine.conductance`."""
        return self.tnmse_and_conductance(x, seed)[1]

    def tnmse_and_conductance(
        self, x: ArrayLike, seed: int | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See :meth:`LossEngine.tnmse_and_conductance`."""

        def evaluated(strategies: Conversion, noise: CommonNoise) -> NDArray[np.float64]:
            weights, conductance = self._program_and_drift(strategies, noise)
            return np.stack([self._errors(weights), conductance])

        tnmse, conductance = self._for_strategies(evaluated, x, seed)
        return tnmse, conductance

    def conductance_of(
        self, converter: BaseConductanceConverter, repeats: int = 100, seed: int = 0
    ) -> NDArray[np.float64]:
        """See :meth:`LossEngine.conductance_of`."""
        drawn = self._for_draws(self._program_and_drift, converter, repeats, seed)
        return np.concatenate([conductance for _, conductance in drawn])

    def _acting_weights(
        self, converter: BaseConductanceConverter, draws: int, seed: int
    ) -> Iterable[Tensor]:
        drawn = self._for_draws(self._program_and_drift, converter, draws, seed)
        return (weights for weights, _ in drawn)

    def _for_strategies(
        self,
        function: Callable[[Conversion, CommonNoise], NDArray[np.float64]],
        x: ArrayLike,
        seed: int | None,
    ) -> NDArray[np.float64]:
        """A function (2, n) of the strategies at points (n, d), all in the same draw."""
        decoded = self.problem.hypercube.decode_arrays(x)
        f = torch.as_tensor(decoded.f, dtype=torch.float32, device=self.device)
        curves = torch.as_tensor(decoded.g, dtype=torch.float32, device=self.device)
        seed = self.seed if seed is None else seed
        # The numbers used last are kept for the next call.
        if self._noise.seed != seed:
            self._noise = CommonNoise(seed)
        noise = self._noise

        def of_chunk(chunk: slice) -> NDArray[np.float64]:
            return function(CurveConversion(f[chunk], curves[chunk]), noise)

        return np.concatenate([np.empty((2, 0)), *self._for_chunks(of_chunk, len(f))], axis=1)

    def _for_draws(
        self,
        function: Callable[[Conversion, CommonNoise], Result],
        converter: BaseConductanceConverter,
        draws: int,
        seed: int,
    ) -> list[Result]:
        """A function of a strategy, for some of the draws at a time.

        The first draw is that of :meth:`_for_strategies` for the same seed.
        """
        strategy = conversion_of(converter, self.device)

        def of_draws(chunk: slice) -> Result:
            return function(strategy, CommonNoise(seed, range(chunk.start, chunk.stop)))

        return self._for_chunks(of_draws, draws)

    def _for_chunks(self, function: Callable[[slice], Result], n: int) -> list[Result]:
        """Results for slices of n candidates or draws, as many as memory suits, in order."""
        is_on_cpu = self.device.type == "cpu"
        largest = _CPU_CHUNK if is_on_cpu else _GPU_CHUNK // (len(self.problem.t_steps) + 2)
        n_devices = 2 * len(self.problem.f_lst) * max(tile.numel() for tile in self._tiles)
        step = max(1, largest // n_devices)
        chunks = [slice(start, min(start + step, n)) for start in range(0, n, step)]
        return in_threads(function, chunks) if is_on_cpu else [function(c) for c in chunks]

    @torch.no_grad()
    def _program_and_drift(
        self, strategies: Conversion, noise: CommonNoise
    ) -> tuple[Tensor, NDArray[np.float64]]:
        """Acting weights and mean conductances of n strategies in one draw, or of one in n draws.

        Returns:
            weights ``(n, T, out, in)``, and conductances ``(n,)`` in µS per weight.
        """
        tiles = [self._on_tile(strategies, noise, *tile) for tile in enumerate(self._tiles)]
        weights, conductances = zip(*tiles, strict=True)
        n = self.problem.test_weights.numel() * len(self.problem.t_steps)
        mean = torch.stack(conductances).sum(dim=0) / n
        return torch.cat(weights, dim=2), mean.nan_to_num(nan=torch.inf).cpu().numpy()

    def _on_tile(
        self, strategies: Conversion, noise: CommonNoise, tile: int, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weights (n, T, out, in) of the tile with target weights (1, out, in); sums (n,) of g."""
        acting, total = [], torch.zeros((), dtype=torch.float64, device=self.device)
        drifted = self._drifted(strategies, noise, tile, target)
        for i, (programmed, conductances, scale) in enumerate(drifted):
            # In two steps, since torch adds up to a single number in another order than to several.
            total = total + conductances.sum(dim=-1).double().flatten(1).sum(dim=1)
            weights = strategies.to_weights(conductances, scale)
            if self._compensation is not None:
                weights *= self._compensation.factor(target, programmed, weights, noise, (tile, i))
            acting.append(weights)
        return torch.stack(acting, dim=1), total

    def _drifted(
        self, strategies: Conversion, noise: CommonNoise, tile: int, target: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Any]]:
        """At each time programmed weights, drifted conductances (n, D, out, in), their scale."""
        targets, scale = strategies.to_conductances(target)
        model, device, t_steps = self._model, self.device, self.problem.t_steps
        # Programming starts anew from the same targets at every time: for all times together, what
        # depends on the targets alone is computed once.
        shape = (len(t_steps), *targets.shape[1:])
        # One tensor for both calls, as in aihwkit: a model may clip it in the first.
        g_target = targets[:, None]
        with noise.feeding((tile, Use.PROGRAMMING), shape, device):
            programmed_g = model.apply_programming_noise_to_conductance(g_target)
        with noise.feeding((tile, Use.DRIFT_COEFFICIENT), shape, device):
            nu = model.generate_drift_coefficients(g_target)
        n = max(len(targets), len(noise.draws))
        for i, t in enumerate(t_steps):
            programmed = strategies.to_weights(programmed_g.expand(n, *shape)[:, i], scale)
            g_again, scale_again = strategies.to_conductances(programmed)
            of_time = None if nu is None else nu.expand(n, *shape)[:, i]
            with noise.feeding((tile, Use.DRIFT, i), shape[1:], device):
                g_drifted = model.apply_drift_noise_to_conductance(g_again, of_time, t)
            yield programmed, g_drifted, scale_again


def checked_device(device: str | torch.device) -> torch.device:
    """The torch device of this name.

    Raises:
        InvalidArgument: there is none here, or the engine was not made for it.
    """
    try:
        checked = torch.device(device)
        torch.empty(0, device=checked)
        if checked.type not in ("cpu", "cuda"):
            raise RuntimeError("the engine was not made for it")
    except (RuntimeError, AssertionError) as error:
        raise InvalidArgument(
            f"device = {str(device)!r} cannot be used ({first_line(error)}): give cpu, or cuda "
            "where torch finds a GPU."
        ) from error
    return checked
