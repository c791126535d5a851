"""Noise that is spread evenly instead of drawn: expectations of a noise model without chance.

Inside :class:`LowDiscrepancyNoise`, ``torch.randn_like`` and its kin return the points of a
scrambled Sobol sequence along the first axis, one coordinate per call. An average over that axis is
then a quasi-Monte Carlo integral: with 2048 points, means and variances of aihwkit's noise models
come out to a few parts in 10^4, where as many independent draws would give the variance to 3 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from scipy.stats import norm, qmc
from torch.overrides import TorchFunctionMode

# No noise model of aihwkit draws more than three times for one device; a call beyond the last
# coordinate is served by torch's own generator.
_COORDINATES = 16


class LowDiscrepancyNoise(TorchFunctionMode):
    """Serves torch's random functions from a Sobol sequence while the context is entered.

    Tensors that are to receive noise have the samples along their first axis; all other axes
    receive the same noise. What is drawn in any other way comes from torch's and numpy's
    generators, seeded inside the context and restored after it.

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
        result = func(*args, **(kwargs or {}))
        if func not in (torch.randn_like, torch.rand_like, torch.randn, torch.rand):
            return result
        fits = result.ndim > 0 and result.shape[0] == self.n_samples
        if not fits or self._next_coordinate >= _COORDINATES:
            return result
        is_normal = func in (torch.randn_like, torch.randn)
        points = (self._normal if is_normal else self._uniform)[:, self._next_coordinate]
        self._next_coordinate += 1
        return result.copy_(points.reshape(-1, *(1,) * (result.ndim - 1)))
