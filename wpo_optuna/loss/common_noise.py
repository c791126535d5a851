"""Standard random numbers for draws of a tile, the same for every candidate.

Each use of noise (programming at a time, a read-out, ...) has a key, and the numbers depend on the
seed, the draw and the key alone: not on how many candidates are evaluated together, nor on what
was drawn before. Candidates that share them differ by what they are, not by luck (common random
numbers), and generating them costs once per batch instead of once per candidate.
"""

from __future__ import annotations

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


class CommonNoise:
    """The random numbers of R draws, for one candidate that meets them side by side.

    Those of a single draw are kept once drawn, as a batch of candidates shares them. They come
    from generators of their own on the CPU, so that torch's and numpy's global states stay as they
    are, and a GPU sees the same numbers.

    Args:
        seed: whole number of at least 0.
        draws: numbers of the draws; different draws are independent.
    """

    def __init__(self, seed: int, draws: range) -> None:
        self.seed = seed
        self.draws = draws
        self._kept: dict[Key, Tensor] = {}

    def normal(self, key: Key, shape: Shape, device: torch.device) -> Tensor:
        """Standard normal numbers ``(R, *shape)`` in float32; not to be changed."""
        if key in self._kept:
            return self._kept[key]
        numbers = torch.empty((len(self.draws), *shape), dtype=torch.float32)
        for of_draw, seed in zip(numbers, self._seeds(key), strict=True):
            of_draw.normal_(generator=torch.Generator().manual_seed(seed))
        numbers = numbers.to(device)
        if len(self.draws) == 1:
            self._kept[key] = numbers
        return numbers

    def _seeds(self, key: Key) -> list[int]:
        sequence = np.random.SeedSequence(self.seed, spawn_key=key)
        seeds: list[int] = sequence.generate_state(self.draws.stop, np.uint64).tolist()
        return seeds[self.draws.start :]
