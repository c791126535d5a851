"""Noise that is spread evenly instead of drawn: expectations of a noise model without chance.

An average over the points of a scrambled Sobol sequence is a quasi-Monte Carlo integral: with 2048
points, means and variances of aihwkit's noise models come out to a few parts in 10^4, where as many
independent draws would give the variance to 3 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.stats import norm, qmc
from torch import Tensor
from torch.overrides import TorchFunctionMode

# No noise model of aihwkit draws more than three times for one device.
_COORDINATES = 16

_SERVED: dict[Any, Callable[..., Tensor]] = {
    torch.rand: torch.empty,
    torch.rand_like: torch.empty_like,
    torch.randn: torch.empty,
    torch.randn_like: torch.empty_like,
}
_NORMAL = (torch.randn, torch.randn_like)


class LowDiscrepancyNoise(TorchFunctionMode):
    """Within its block, torch's random functions return one coordinate of the sequence per call.

    Tensors that are to receive noise have the samples along their first axis; all other axes
    receive the same noise. Everything else, and what exceeds the coordinates, is torch's own.

    Args:
        n_samples: number of points, a power of 2.
        stretch: factor on all normal noise; above 1 it reaches further into the tails than the
            sequence does, to find out what is possible at all.
    """

    def __init__(self, n_samples: int, stretch: float = 1.0) -> None:
        super().__init__()
        self._n_samples = n_samples
        self._stretch = stretch
        self._n_served = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Answers the random functions; everything else runs unchanged."""
        result = _SERVED.get(func, func)(*args, **(kwargs or {}))
        if func not in _SERVED:
            return result
        fits = result.ndim > 0 and len(result) == self._n_samples
        if not fits or self._n_served == _COORDINATES:
            return func(*args, **(kwargs or {}))
        uniform, normal = _spread_numbers(self._n_samples)
        numbers = self._stretch * normal if func in _NORMAL else uniform
        column = numbers[:, self._n_served].reshape(-1, *(1,) * (result.ndim - 1))
        self._n_served += 1
        return result.copy_(column)


@cache
def _spread_numbers(n_samples: int) -> tuple[Tensor, Tensor]:
    """Uniform numbers and standard normal ones, (n_samples, _COORDINATES) in float64."""
    points = qmc.Sobol(_COORDINATES, rng=0).random(n_samples)
    points = np.clip(points, 0.5 / n_samples, 1 - 0.5 / n_samples)
    normal = norm.ppf(points)
    normal = (normal - normal.mean(axis=0)) / normal.std(axis=0)
    return torch.from_numpy(points), torch.from_numpy(normal)
