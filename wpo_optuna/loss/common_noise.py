"""Standard random numbers for draws of a tile, the same for every candidate.

Each use of noise (programming at a time, a read-out, ...) has a key, and the numbers depend on the
seed, the draw and the key alone: not on how many candidates are evaluated together, nor on what
was drawn before. Candidates that share them differ by what they are, not by luck (common random
numbers), and generating them costs once per batch instead of once per candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Key = tuple[int, ...]
Shape = tuple[int, ...]


class Use(IntEnum):
    """What noise is drawn for; part of its key."""

    PROGRAMMING = 0
    DRIFT_COEFFICIENT = 1
    REFERENCE_READOUT = 2
    DRIFT = 3
    DRIFTED_READOUT = 4
    OUTPUT_LINES = 5


class RandomNumbers(Protocol):
    """What a computation draws its random numbers from, by key."""

    def normal(self, key: Key, shape: Shape, device: torch.device) -> Tensor:
        """Standard normal numbers ``(R, *shape)`` in float32; not to be changed."""

    def uniform(self, key: Key, shape: Shape, device: torch.device) -> Tensor:
        """Numbers ``(R, *shape)`` in float32, uniform in [0, 1); not to be changed."""


class CommonNoise:
    """The random numbers of some draws, drawn when first asked for and kept.

    All have a leading axis of length R, the number of draws. With one draw, its numbers are shared
    by a batch of candidates; with several, one candidate meets them side by side.

    They come from generators of their own on the CPU, so that torch's and numpy's global states
    stay as they are, and a GPU sees the same numbers.

    Args:
        seed: whole number of at least 0.
        draws: indices of the draws; different draws are independent.
    """

    def __init__(self, seed: int, draws: Sequence[int]) -> None:
        self.seed = seed
        self.draws = tuple(draws)
        self._kept: dict[tuple[str, Key, torch.device], Tensor] = {}

    def normal(self, key: Key, shape: Shape, device: torch.device) -> Tensor:
        """Standard normal numbers ``(R, *shape)`` in float32; not to be changed."""
        return self._numbers("normal", torch.randn, key, shape, device)

    def uniform(self, key: Key, shape: Shape, device: torch.device) -> Tensor:
        """Numbers ``(R, *shape)`` in float32, uniform in [0, 1); not to be changed."""
        return self._numbers("uniform", torch.rand, key, shape, device)

    def integers(self, key: Key) -> list[int]:
        """R numbers of 64 bits, for seeding other generators."""
        return [
            int(
                np.random.SeedSequence(self.seed, spawn_key=(draw, *key)).generate_state(
                    1, np.uint64
                )[0]
            )
            for draw in self.draws
        ]

    def is_unchanged(self) -> bool:
        """Whether nobody has changed the numbers that were given out."""
        return all(kept._version == 0 for kept in self._kept.values())

    def _numbers(
        self,
        kind: str,
        sampler: Callable[..., Tensor],
        key: Key,
        shape: Shape,
        device: torch.device,
    ) -> Tensor:
        place = (kind, key, device)
        if place not in self._kept:
            generators = [torch.Generator().manual_seed(seed) for seed in self.integers(key)]
            drawn = [sampler(shape, generator=g, dtype=torch.float32) for g in generators]
            self._kept[place] = torch.stack(drawn).to(device)
        return self._kept[place]
