"""Moments of a single device, tabulated once from the noise model.

A device is programmed to a target g and read at time t, when its conductance starts from g' (the
value re-derived from the weight that was actually programmed) and decays with a drift coefficient
that was drawn at the target. Needed are, for any g, g' in the range of the devices,

* mean and variance of the conductance right after programming, functions of g;
* mean of the conductance G_t at each t, and its second moment relative to the squared mean,
  functions of both:

      E[G_t | g', g] = sum_r present_1r(g', t) target_1r(g, t),
      E[G_t^2 | g', g] / E[G_t | g', g]^2 = sum_r present_2r(g', t) target_2r(g, t).

One term is exact where drift and read noise multiply (PCM-like models) or where only one of the two
matters (ReRAM), which is every noise model aihwkit has; more are taken for a model that needs them.
The relative second moment, unlike the second moment, varies slowly with g, so that interpolating it
does not add to the variance. The expectations are quasi-Monte Carlo averages over the noise model's
own methods, so any model will do whose methods act on each device by itself; that is checked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from numpy.typing import NDArray
from torch import Tensor

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.expected.low_discrepancy import LowDiscrepancyNoise

FloatArray = NDArray[np.float64]

_GRID_POINTS = 129
_COARSE_GRID_POINTS = 9
_LOG2_SAMPLES = 11
_MOST_TERMS = 4

# The devices of one evaluation reach about 4.5 standard deviations: values that are undefined out
# there (a logarithm of a negative conductance) make the loss infinite. A short sequence, stretched,
# reaches as far.
_LOG2_TAIL_SAMPLES = 7
_TAIL_STRETCH = 1.75

# A conductance of zero has no relative second moment; it is sampled at this fraction of the
# highest conductance instead.
_LOWEST_FRACTION = 1e-6

# A decomposition is exact enough once it misses the mean by less than this fraction of the
# standard deviation, and the variance by this fraction of itself.
_MEAN_TOLERANCE = 0.005
_VARIANCE_TOLERANCE = 0.01


@dataclass(frozen=True)
class DeviceMoments:
    """Tabulated moments of one device; linear interpolation in g between grid points.

    Attributes:
        g_us: grid of conductances in µS, ``(G,)``, denser towards the lowest (there drift and read
            noise of phase-change memory vary fastest): ``g_us[i] = low + (high - low)(i/(G-1))^2``.
        programmed_mean: mean conductance in µS after programming to each target, ``(G,)``.
        programmed_variance: its variance in µS², ``(G,)``.
        target: factors that depend on the target, ``(G, 2, R, T)``: mean or relative second
            moment, term, time.
        present: factors that depend on the present conductance, same shape; those of the mean in
            µS. NaN where the noise model's result is undefined.
    """

    g_us: FloatArray
    programmed_mean: FloatArray
    programmed_variance: FloatArray
    target: FloatArray
    present: FloatArray


def tabulate_device_moments(
    noise_model: BaseNoiseModel,
    t_steps: Sequence[float],
    g_low: float,
    g_high: float,
    seed: int = 0,
) -> DeviceMoments:
    """Samples the moments of one device for conductances from g_low to g_high.

    The global random states of torch and numpy stay as they are.

    Args:
        noise_model: any of aihwkit's inference noise models.
        t_steps: times after programming in s.
        g_low: lowest conductance in µS.
        g_high: highest conductance in µS.
        seed: seed of the low-discrepancy sequence.

    Raises:
        InvalidArgument: the noise model's methods do not act on each device by itself, or its
            moments at a time t are no short sum of products.
    """
    sampler = _Sampler(noise_model, seed)
    grid = g_low + (g_high - g_low) * torch.linspace(0, 1, _GRID_POINTS, dtype=torch.float64) ** 2
    _refuse_coupled_devices(sampler, t_steps, grid)
    programmed = sampler.programmed(grid)
    factors = [_moments_at(sampler, t, grid) for t in t_steps]
    n_terms = max(target.shape[2] for target, _ in factors)
    target, present = (
        np.stack(
            [np.pad(f, [(0, 0), (0, 0), (0, n_terms - f.shape[2])]) for f in of_times], axis=-1
        )
        for of_times in zip(*factors, strict=True)
    )
    return DeviceMoments(
        g_us=grid.numpy(),
        programmed_mean=programmed.mean(dim=0).numpy(),
        programmed_variance=programmed.var(dim=0, unbiased=False).numpy(),
        target=target,
        present=present,
    )


class _Sampler:
    """Calls a noise model's methods with evenly spread noise, samples along the first axis."""

    def __init__(self, noise_model: BaseNoiseModel, seed: int) -> None:
        self._model = noise_model
        self._noise = LowDiscrepancyNoise(_LOG2_SAMPLES, seed)
        self._tails = LowDiscrepancyNoise(_LOG2_TAIL_SAMPLES, seed, stretch=_TAIL_STRETCH)

    def programmed(self, g: Tensor) -> Tensor:
        """Conductances (S, G) right after programming to the targets g (G,)."""
        with self._noise as noise, np.errstate(all="ignore"):
            return self._model.apply_programming_noise_to_conductance(_repeated(g, noise))

    def at_time(
        self, t: float, present: Tensor, target: Tensor, noise: LowDiscrepancyNoise | None = None
    ) -> Tensor:
        """Conductances (S, G) at time t, for the present and target conductances (G,)."""
        # What comes out undefined is marked, and needs no warning.
        with noise or self._noise as noise, np.errstate(all="ignore"):
            nu = self._model.generate_drift_coefficients(_repeated(target, noise))
            return self._model.apply_drift_noise_to_conductance(_repeated(present, noise), nu, t)

    def moments(self, t: float, present: Tensor, target: Tensor) -> Tensor:
        """Mean and relative second moment (2, G); NaN where the noise model can return NaN."""
        sample = self.at_time(t, present, target)
        mean = sample.mean(dim=0)
        relative = torch.where(mean == 0, 1.0, (sample**2).mean(dim=0) / mean**2)
        undefined = self.at_time(t, present, target, self._tails).isnan().any(dim=0)
        return torch.stack([mean, relative]).masked_fill(undefined, torch.nan)


def _repeated(g: Tensor, noise: LowDiscrepancyNoise) -> Tensor:
    # A copy, not a view: noise models change their arguments in place.
    return g.expand(noise.n_samples, -1).clone()


def _refuse_coupled_devices(sampler: _Sampler, t_steps: Sequence[float], grid: Tensor) -> None:
    """Raises unless the noise of some devices is the same whether others are there or not."""
    few = grid[:: len(grid) // 4]
    mirrored = few.flip(0)
    alone = [sampler.programmed(few[1:2])]
    among_others = [sampler.programmed(few)[:, 1:2]]
    for t in t_steps:
        alone.append(sampler.at_time(t, few[1:2], mirrored[1:2]))
        among_others.append(sampler.at_time(t, few, mirrored)[:, 1:2])
    if not all(
        torch.allclose(a, b, rtol=1e-6, atol=1e-9, equal_nan=True)
        for a, b in zip(alone, among_others, strict=True)
    ):
        raise InvalidArgument(
            "rpu_config.noise_model does not act on each device by itself with noise from "
            "torch.randn_like or torch.rand_like, of which alone the expected engine knows the "
            'expectation: use the engine "montecarlo" or "aihwkit".'
        )


def _moments_at(sampler: _Sampler, t: float, grid: Tensor) -> tuple[FloatArray, FloatArray]:
    """Factors of the target and of the present conductance at time t, each (G, 2, R).

    Cross approximation with complete pivoting: the rows and columns of some entries of a coarse
    table make up the whole of it.
    """
    n, n_fine = _COARSE_GRID_POINTS, len(grid)
    fine = grid.clamp(min=_LOWEST_FRACTION * float(grid[-1]))
    coarse = fine[:: (n_fine - 1) // (n - 1)]
    present, target = torch.meshgrid(coarse, coarse, indexing="ij")
    sampled = sampler.moments(t, present.flatten(), target.flatten()).reshape(2, n, n)
    rest, rows, columns = sampled[0], list[int](), list[int]()
    for _ in range(_MOST_TERMS):
        # Undefined entries are no pivots.
        row, column = divmod(int(rest.abs().nan_to_num(0.0).argmax()), n)
        rows.append(row)
        columns.append(column)
        cores = torch.linalg.pinv(sampled[:, rows][:, :, columns])
        approximated = sampled[:, :, columns] @ cores @ sampled[:, rows]
        if _is_exact_enough(approximated, sampled):
            of_target = [sampler.moments(t, coarse[row].expand(n_fine), fine) for row in rows]
            of_present = [sampler.moments(t, fine, coarse[c].expand(n_fine)) for c in columns]
            factors = torch.stack(of_target, dim=2), torch.stack(of_present, dim=2) @ cores
            return factors[0].transpose(0, 1).numpy(), factors[1].transpose(0, 1).numpy()
        rest = sampled[0] - approximated[0]
    raise InvalidArgument(
        f"rpu_config.noise_model has moments at t = {t:g} s that are no sum of up to {_MOST_TERMS} "
        "products of a function of the target and one of the present conductance, which the "
        'expected engine needs: use the engine "montecarlo".'
    )


def _is_exact_enough(approximated: Tensor, sampled: Tensor) -> bool:
    """Whether mean and variance of all entries are met where they are defined."""
    mean, approximated_mean = sampled[0], approximated[0]
    variance, approximated_variance = (m[0] ** 2 * (m[1] - 1) for m in (sampled, approximated))
    error_of_mean = (approximated_mean - mean).abs().nan_to_num(0.0).max()
    error_of_variance = (approximated_variance - variance).abs().nan_to_num(0.0).max()
    largest_variance = variance.nan_to_num(0.0).max()
    rounding = 1e-9 * (mean**2).nan_to_num(0.0).max()
    return bool(
        error_of_mean <= _MEAN_TOLERANCE * largest_variance.sqrt() + rounding.sqrt()
        and error_of_variance <= _VARIANCE_TOLERANCE * largest_variance + rounding
    )
