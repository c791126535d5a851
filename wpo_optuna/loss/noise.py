"""Noise that a batch of candidates shares, and aihwkit's noise models fed with it.

Each use of noise (programming at a time, a read-out, ...) has a key, and the standard random
numbers depend on the seed, the draw and the key alone: not on how many candidates are evaluated
together, nor on what was drawn before. Candidates that share them differ by what they are, not by
luck (common random numbers), and generating them costs once per batch instead of once per
candidate.

Noise models act element by element, so their own methods serve a batch as they are: candidates and
times stand in leading dimensions, and ``torch.randn_like`` returns the shared numbers. A user's
model may do anything, so that each is tried on a few devices first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wpo_optuna.errors import first_line
from wpo_optuna.loss.base import not_batched

Key = tuple[int, ...]
Shape = tuple[int, ...]


class Use(IntEnum):
    """What noise is drawn for; part of its key."""

    PROGRAMMING = 0
    DRIFT_COEFFICIENT = 1
    REFERENCE_READOUT = 2
    DRIFT = 3
    DRIFTED_READOUT = 4


class RandomNumbers(Protocol):
    """What a computation draws its random numbers from, by key."""

    def normal(self, key: Key, shape: Shape, device: torch.device) -> Tensor:
        """Standard normal numbers ``(R, *shape)`` in float32; not to be changed."""


class CommonNoise:
    """The random numbers of R draws, for one candidate that meets them side by side.

    Those of a single draw are kept once drawn, as a batch of candidates shares them. They come
    from generators of their own on the CPU, so that torch's and numpy's global states stay as they
    are, and a GPU sees the same numbers.

    Args:
        seed: whole number of at least 0.
        draws: numbers of the draws; different draws are independent.
    """

    def __init__(self, seed: int, draws: range = range(1)) -> None:
        self.seed = seed
        self.draws = draws
        self._kept: dict[Key, Tensor] = {}

    def normal(self, key: Key, shape: Shape, device: torch.device) -> Tensor:
        """See :meth:`RandomNumbers.normal`."""
        if key in self._kept:
            return self._kept[key]
        sequence = np.random.SeedSequence(self.seed, spawn_key=key)
        seeds = sequence.generate_state(self.draws.stop, np.uint64)[self.draws.start :]
        numbers = torch.empty((len(self.draws), *shape), dtype=torch.float32)
        for of_draw, seed in zip(numbers, seeds, strict=True):
            of_draw.normal_(generator=torch.Generator().manual_seed(int(seed)))
        numbers = numbers.to(device)
        if len(self.draws) == 1:
            self._kept[key] = numbers
        return numbers

    def feeding(self, key: Key, shape: Shape, device: torch.device) -> NoiseModelMode:
        """A block in which a noise model draws numbers ``(R, *shape)``, fit for one key."""
        # Cloned, as a model may change what it drew.
        numbers = (self.normal((*key, k), shape, device).clone() for k in count())
        return NoiseModelMode(lambda _: next(numbers))


class NoiseModelMode(TorchFunctionMode):
    """A block in which torch.randn_like returns what is drawn otherwise.

    That holds for this thread alone. Powers with a fraction as exponent become exponentials of
    logarithms, as torch's own take four times as long.

    Args:
        draw: returns the numbers for a tensor that they are to be like.
    """

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._draw = draw

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Answers these functions; everything else runs unchanged."""
        if func is torch.randn_like and not kwargs:
            return self._draw(*args)
        if func in _POWERS and len(args) == 2 and not kwargs:
            base, exponent = args if func is not torch.Tensor.__rpow__ else args[::-1]
            if isinstance(base, Tensor) and isinstance(exponent, float) and exponent % 1:
                return base.log().mul_(exponent).exp_()
            if isinstance(base, float) and base > 0 and isinstance(exponent, Tensor):
                return (exponent * math.log(base)).exp_()
        return func(*args, **(kwargs or {}))


_POWERS = (torch.pow, torch.Tensor.pow, torch.Tensor.__pow__, torch.Tensor.__rpow__)


def step_on_weights(model: BaseNoiseModel) -> str | None:
    """The method by which a noise model treats weights as a whole, and not each device; or none."""
    for name in ("apply_programming_noise", "apply_drift_noise"):
        if getattr(type(model), name) is not getattr(BaseNoiseModel, name):
            return name
    return None


@torch.no_grad()
def check_noise_model(
    model: BaseNoiseModel,
    t_steps: Sequence[float],
    g_range: tuple[float, float],
    device: torch.device,
) -> None:
    """Compares one device of a batch of a few with the same device alone.

    Args:
        model: the model; not changed.
        t_steps: times after programming in s.
        g_range: lowest and highest conductance in µS.
        device: where the model is to compute.

    Raises:
        InvalidArgument: the model does not act on each device alone, draws random numbers in
            another way than by ``torch.randn_like``, or fails.
    """
    name = f"rpu_config.noise_model = {type(model).__name__}"
    if (method := step_on_weights(model)) is not None:
        raise not_batched(f"{name} overrides {method}")
    # Conductances over the whole range in no order; the second axis is for times, as in the noise.
    g = torch.linspace(*g_range, 16)[torch.arange(16) * 7 % 16].reshape(2, 1, 2, 2, 2).to(device)
    noise = CommonNoise(0, range(2)).normal((), (2, 2, 2, 2), device)
    last = np.s_[-1:, -1:, -1:, -1:, -1:]
    # As the engine calls it: several candidates in one draw, one candidate in several draws.
    for some_g, some_noise in ((g, noise[-1:]), (g[-1:], noise)):
        # Models fail as they like.
        try:
            with torch.random.fork_rng(devices=[]):
                batch = _conductances(model, t_steps, some_g, some_noise)
                alone = _conductances(model, t_steps, g[last], noise[last])
            agree = [
                torch.allclose(a[last], b, rtol=1e-4, atol=1e-5, equal_nan=True)
                for a, b in zip(batch, alone, strict=True)
            ]
        except Exception as error:
            raise not_batched(f"{name} failed ({first_line(error)})") from error
        if not all(agree):
            raise not_batched(
                f"{name} does not treat each device alone, or does not draw its random numbers by "
                "torch.randn_like"
            )


def _conductances(
    model: BaseNoiseModel, t_steps: Sequence[float], g_target: Tensor, noise: Tensor
) -> list[Tensor]:
    """Conductances once programmed and at each time, with this noise again and again."""
    signs = count()
    with NoiseModelMode(lambda _: noise * (-1) ** next(signs)):
        g_target = g_target.clone()
        g = model.apply_programming_noise_to_conductance(g_target)
        nu = model.generate_drift_coefficients(g_target)
        drift = model.apply_drift_noise_to_conductance
        return [g, *(drift(g.clone(), nu, t) for t in t_steps)]
