"""Moments of a single device, tabulated once from the noise model.

A device is programmed to a target g and read at time t, when its conductance starts from g' (the
value re-derived from the weight that was actually programmed) and decays with a drift coefficient
that was drawn at the target. Its mean and its second moment relative to the squared mean, which
varies slowly with g, are short sums of products of a function of g and one of g'. The expectations
are quasi-Monte Carlo averages over the noise model's own methods, so any model will do whose
methods act on each device by itself; that is checked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
_SAMPLES = 2048
_MOST_TERMS = 4

# The devices of one evaluation reach about 4.5 standard deviations: values that are undefined out
# there (a logarithm of a negative conductance) make the loss infinite. A short sequence, stretched,
# reaches as far.
_TAIL_SAMPLES = 128
_TAIL_STRETCH = 1.75

# A conductance of zero has no relative second moment; it is sampled at this fraction of the
# highest conductance instead.
_LOWEST_FRACTION = 1e-6

# A decomposition is exact enough once it misses the mean by less than this fraction of the
# standard deviation, and the variance by this fraction of itself.
_MEAN_TOLERANCE = 0.005
_VARIANCE_TOLERANCE = 0.01

# Terms of the mean conductance that are smaller than this fraction of the largest are left out.
_NEGLIGIBLE = 1e-4


class DeviceMoments(NamedTuple):
    """Tabulated moments of one device; linear interpolation in g between G grid points.

    The grid is denser towards the lowest conductance (there drift and read noise of phase-change
    memory vary fastest): its i-th point is low + (high - low)(i/(G-1))^2.

    Attributes:
        g_low, g_high: ends of the grid in µS.
        programmed: mean in µS and variance in µS² after programming to each target ``(2, G)``.
        target: factors that depend on the target, ``(T, 2, R, G)``: time, mean or relative second
            moment, term.
        present: factors that depend on the present conductance, same shape; those of the mean in
            µS. NaN where the noise model's result is undefined.
        mean: the mean in µS averaged over the times: its factors of the target and of the present
            conductance, ``(2, R', G)``.
    """

    g_low: np.float64
    g_high: np.float64
    programmed: FloatArray
    target: FloatArray
    present: FloatArray
    mean: FloatArray


# What comes out undefined is marked, and needs no warning.
@np.errstate(all="ignore")
def tabulate_device_moments(
    noise_model: BaseNoiseModel, t_steps: Sequence[float], g_low: float, g_high: float
) -> DeviceMoments:
    """Samples the moments of one device for conductances from g_low to g_high.

    Args:
        noise_model: any of aihwkit's inference noise models.
        t_steps: times after programming in s.
        g_low: lowest conductance in µS.
        g_high: highest conductance in µS.

    Raises:
        InvalidArgument: the noise model's methods do not act on each device by itself, or its
            moments at a time t are no short sum of products.
    """
    grid = g_low + (g_high - g_low) * torch.linspace(0, 1, _GRID_POINTS, dtype=torch.float64) ** 2
    _refuse_coupled_devices(noise_model, t_steps, grid)
    programmed = _programmed(noise_model, grid)
    of_times = [_factors_at(noise_model, t, grid) for t in t_steps]
    n_terms = max(factors.shape[2] for factors in of_times)
    # Terms of zeros add nothing.
    filled = [
        np.pad(factors, [(0, 0), (0, 0), (0, n_terms - factors.shape[2]), (0, 0)])
        for factors in of_times
    ]
    target, present = np.stack(filled, axis=1)
    return DeviceMoments(
        g_low=np.float64(grid[0]),
        g_high=np.float64(grid[-1]),
        programmed=torch.stack([programmed.mean(0), programmed.var(0, unbiased=False)]).numpy(),
        target=target,
        present=present,
        mean=_mean_over_times(target[:, 0], present[:, 0]),
    )


def _mean_over_times(target: FloatArray, present: FloatArray) -> FloatArray:
    """Factors (2, R', G) of the average over times of a sum of products (T, R, G)."""
    is_undefined = np.isnan(present).any(axis=(0, 1))
    table = np.einsum("trg,trh->gh", target, np.where(is_undefined, 0, present)) / len(target)
    u, sizes, v = np.linalg.svd(table)
    # At least two, so that nearly all noise models share compiled code.
    n = max(2, int((sizes > _NEGLIGIBLE * sizes[0]).sum()))
    return np.stack([u.T[:n] * sizes[:n, None], np.where(is_undefined, np.nan, v[:n])])


def _programmed(noise_model: BaseNoiseModel, g: Tensor) -> Tensor:
    """Conductances (S, G) right after programming to the targets g (G,)."""
    with LowDiscrepancyNoise(_SAMPLES):
        return noise_model.apply_programming_noise_to_conductance(_repeated(g, _SAMPLES))


def _at_time(
    noise_model: BaseNoiseModel,
    t: float,
    present: Tensor,
    target: Tensor,
    n_samples: int = _SAMPLES,
    stretch: float = 1.0,
) -> Tensor:
    """Conductances (S, G) at time t, for the present and target conductances (G,)."""
    with LowDiscrepancyNoise(n_samples, stretch):
        nu = noise_model.generate_drift_coefficients(_repeated(target, n_samples))
        present = _repeated(present, n_samples)
        return noise_model.apply_drift_noise_to_conductance(present, nu, t)


def _moments(noise_model: BaseNoiseModel, t: float, present: Tensor, target: Tensor) -> Tensor:
    """Mean and relative second moment (2, G); NaN where the noise model can return NaN."""
    sample = _at_time(noise_model, t, present, target)
    mean = sample.mean(dim=0)
    relative = torch.where(mean == 0, 1.0, (sample**2).mean(dim=0) / mean**2)
    tails = _at_time(noise_model, t, present, target, _TAIL_SAMPLES, _TAIL_STRETCH)
    return torch.stack([mean, relative]).masked_fill(tails.isnan().any(dim=0), torch.nan)


def _repeated(g: Tensor, n_samples: int) -> Tensor:
    # A copy, not a view: noise models change their arguments in place.
    return g.expand(n_samples, -1).clone()


def _refuse_coupled_devices(
    noise_model: BaseNoiseModel, t_steps: Sequence[float], grid: Tensor
) -> None:
    """Raises unless the noise of some devices is the same whether others are there or not."""
    few = grid[:: len(grid) // 4]
    mirrored = few.flip(0)
    alone = [_programmed(noise_model, few[1:2])]
    among_others = [_programmed(noise_model, few)[:, 1:2]]
    for t in t_steps:
        alone.append(_at_time(noise_model, t, few[1:2], mirrored[1:2]))
        among_others.append(_at_time(noise_model, t, few, mirrored)[:, 1:2])
    if not torch.allclose(
        torch.stack(alone), torch.stack(among_others), rtol=1e-6, atol=1e-9, equal_nan=True
    ):
        raise InvalidArgument(
            "rpu_config.noise_model does not act on each device by itself with noise from "
            "torch.randn_like or torch.rand_like, of which alone the expected engine knows the "
            'expectation: use the engine "montecarlo" or "aihwkit".'
        )


def _factors_at(noise_model: BaseNoiseModel, t: float, grid: Tensor) -> FloatArray:
    """Factors (2, 2, R, G) at time t: of the target or present conductance; moment; term.

    Cross approximation with complete pivoting: the rows and columns of some entries of a coarse
    table make up the whole of it.
    """
    n, n_fine = _COARSE_GRID_POINTS, len(grid)
    fine = grid.clamp(min=_LOWEST_FRACTION * float(grid[-1]))
    coarse = fine[:: (n_fine - 1) // (n - 1)]
    present, target = torch.meshgrid(coarse, coarse, indexing="ij")
    sampled = _moments(noise_model, t, present.flatten(), target.flatten()).reshape(2, n, n)
    rest, rows, columns = sampled[0], list[int](), list[int]()
    for _ in range(_MOST_TERMS):
        # Undefined entries are no pivots.
        row, column = divmod(int(rest.abs().nan_to_num(0.0).argmax()), n)
        rows.append(row)
        columns.append(column)
        cores = torch.linalg.pinv(sampled[:, rows][:, :, columns])
        approximated = sampled[:, :, columns] @ cores @ sampled[:, rows]
        if _is_exact_enough(approximated, sampled):
            of_target = [_moments(noise_model, t, coarse[i].expand(n_fine), fine) for i in rows]
            of_present = [_moments(noise_model, t, fine, coarse[i].expand(n_fine)) for i in columns]
            present_factors = torch.stack(of_present, dim=2) @ cores
            return torch.stack([torch.stack(of_target, dim=1), present_factors.mT]).numpy()
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
