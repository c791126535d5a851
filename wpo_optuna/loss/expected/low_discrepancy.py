"""Noise that is spread evenly instead of drawn: expectations of a noise model without chance.

A noise model calls ``torch.randn_like`` and its kin. Inside :class:`LowDiscrepancyNoise` these
return the points of a scrambled Sobol sequence (mapped to the normal or uniform distribution)
along the first axis, one coordinate of the sequence per call. An average over that axis is then a
quasi-Monte Carlo integral: with 2048 points, means and variances of aihwkit's noise models come
out to a few parts in 10^4, where 2048 independent draws would give the variance to 3 %.

All other axes receive the same noise, so that what is sampled on a grid of conductances varies
smoothly along the grid, and whether a value depends on its neighbours can be told exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from scipy.stats import norm, qmc
from torch import Tensor
from torch.overrides import TorchFunctionMode

# No noise model of aihwkit draws more than three times for one device; a call beyond the last
# coordinate is served by torch's own generator.
_COORDINATES = 16


class LowDiscrepancyNoise(TorchFunctionMode):
    """Serves torch's random functions from a Sobol sequence while the context is entered.

    Tensors that are to receive noise have the samples along their first axis. What is drawn in
    any other way (another length of the first axis, another function, numpy) comes from torch's
    and numpy's generators, seeded inside the context and restored after it.

    Args:
        log2_samples: the sequence has ``2**log2_samples`` points.
        seed: seed of the scrambling.
        stretch: factor on all normal noise; above 1 it reaches further into the tails than the
            sequence does, to find out what is possible at all.
    """

    def __init__(self, log2_samples: int, seed: int = 0, stretch: float = 1.0) -> None:
        super().__init__()
        self.n_samples = 2**log2_samples
        self._seed = seed
        points = qmc.Sobol(_COORDINATES, rng=seed).random_base2(log2_samples)
        points = np.clip(points, 0.5 / self.n_samples, 1 - 0.5 / self.n_samples)
        normal = norm.ppf(points)
        normal = (normal - normal.mean(axis=0)) / normal.std(axis=0)
        self._uniform = torch.from_numpy(points)
        self._normal = torch.from_numpy(normal * stretch)
        self._next_coordinate = 0
        self._restore = ExitStack()

    def __enter__(self) -> LowDiscrepancyNoise:
        self._next_coordinate = 0
        self._restore.enter_context(torch.random.fork_rng(devices=[]))
        self._restore.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
        torch.manual_seed(self._seed)
        np.random.seed(self._seed)  # noqa: NPY002 - noise models may draw from numpy's global one
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._restore.close()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Answers the random functions; everything else runs unchanged."""
        kwargs = kwargs or {}
        if func in (torch.randn_like, torch.rand_like, torch.randn, torch.rand):
            own = func(*args, **kwargs)
            return self._serve(own, normal=func in (torch.randn_like, torch.randn))
        return func(*args, **kwargs)

    def _serve(self, own: Tensor, normal: bool) -> Tensor:
        """Evenly spread noise like ``own``, or ``own`` itself where its shape does not fit."""
        fits = own.ndim > 0 and own.shape[0] == self.n_samples
        if not fits or self._next_coordinate >= _COORDINATES:
            return own
        table = self._normal if normal else self._uniform
        column = table[:, self._next_coordinate].to(own.dtype)
        self._next_coordinate += 1
        return own.copy_(column.reshape(-1, *(1,) * (own.ndim - 1)))
