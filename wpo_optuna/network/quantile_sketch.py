"""The distribution of billions of weights in a few megabytes.

What the loss needs of a network is the distribution of its weights. A sketch takes the weights
piece by piece: it keeps them all while they are few, and then counts them in bins of equal
*relative* width. The bins are the leading 21 bits of a float32 (sign, exponent, 12 bits of the
significand), so nothing about the range need be known beforehand, and the result does not depend
on the order or the grouping of the pieces: a checkpoint gives the same distribution, bit by bit,
in one file or in many. (Sketches such as KLL or the t-digest are smaller, but random or dependent
on the order, which would change a study's fingerprint from one reading to the next.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EXACT_UP_TO = 5_000_000

# A float32 has 32 bits; the lowest 11 of its significand's 23 do not tell bins apart.
_DROPPED_BITS = 11
_DROPPED_MASK = (1 << _DROPPED_BITS) - 1
_HALF_OF_BINS = 1 << (31 - _DROPPED_BITS)
_ALL_BUT_SIGN = 0x7FFFFFFF

RELATIVE_ERROR = 2.0**-13
"""Largest relative error of a weight that was counted in a bin: half the bin's width."""


@dataclass(frozen=True, eq=False)
class WeightDistribution:
    """How often each weight occurs.

    Attributes:
        values: The weights in ascending order, float32 (k,); the first and the last are exact.
        counts: How many weights each value stands for, int64 (k,).
        relative_error: 0 if every weight is kept exactly, otherwise the largest relative
            difference between a weight and the value that stands for it. Ranks are always exact.
    """

    values: NDArray[np.float32]
    counts: NDArray[np.int64]
    relative_error: float

    @property
    def count(self) -> int:
        """Number of weights."""
        return int(self.counts.sum())

    @property
    def max_abs(self) -> float:
        """Largest absolute weight, exactly."""
        return float(max(-self.values[0], self.values[-1]))

    def quantiles(self, n: int) -> Tensor:
        """The sorted weights, interpolated linearly at n evenly spaced ranks.

        The smallest and the largest weight are the first and the last; n may be larger than the
        number of weights.

        Source: the interpolation of ``downsample_weight_distribution`` in
        ``aihwkit.inference.converter.wpo``.

        Returns:
            Ascending weights, float32 (n,).
        """
        last_rank = self.count - 1
        ranks = np.linspace(0.0, last_rank, n)
        below = np.floor(ranks).astype(np.int64)
        above = np.minimum(below + 1, last_rank)
        count_up_to = np.cumsum(self.counts)
        low = self.values[np.searchsorted(count_up_to, below, side="right")].astype(np.float64)
        high = self.values[np.searchsorted(count_up_to, above, side="right")].astype(np.float64)
        return torch.from_numpy((low + (ranks - below) * (high - low)).astype(np.float32))


class QuantileSketch:
    """Takes weights piece by piece and yields their distribution.

    Up to ``exact_up_to`` weights are kept as they are. More are counted in bins, 16 MB in all,
    whatever their number. Weights of at most 12 significant bits (bfloat16, float16, float8, also
    when stored as float32) are exact even then; others are moved by at most ``RELATIVE_ERROR``.

    Args:
        exact_up_to: Number of weights beyond which they are counted in bins.
    """

    def __init__(self, exact_up_to: int = EXACT_UP_TO) -> None:
        self._exact_up_to = exact_up_to
        self._kept: list[NDArray[np.float32]] = []
        self._bins: NDArray[np.int64] | None = None
        self._bins_are_exact = True
        self._count = 0
        self._minimum = np.inf
        self._maximum = -np.inf

    @property
    def count(self) -> int:
        """Number of weights taken so far."""
        return self._count

    def update(self, weights: Tensor) -> None:
        """Take some more weights, a tensor of finite real numbers of any shape and type.

        Raises:
            ValueError: If a weight is NaN or infinite, or too large for float32.
        """
        if weights.numel() == 0:
            return
        piece = weights.detach().cpu().to(torch.float32).reshape(-1)
        minimum, maximum = (float(extreme) for extreme in torch.aminmax(piece))
        if not np.isfinite(minimum + maximum):
            raise ValueError("a weight is NaN or infinite")
        self._minimum = min(self._minimum, minimum)
        self._maximum = max(self._maximum, maximum)
        self._count += piece.numel()
        self._add(piece.numpy())

    def merge(self, other: QuantileSketch) -> None:
        """Take all weights of another sketch, as if they had been given to this one."""
        self._minimum = min(self._minimum, other._minimum)
        self._maximum = max(self._maximum, other._maximum)
        self._count += other._count
        for piece in other._kept:
            self._add(piece)
        if other._bins is not None:
            bins = self._counted_in_bins()
            bins += other._bins
            self._bins_are_exact &= other._bins_are_exact

    def distribution(self) -> WeightDistribution:
        """The distribution of all weights taken so far.

        Raises:
            ValueError: If there are none.
        """
        if self._count == 0:
            raise ValueError("no weights were given")
        if self._bins is None:
            values = np.sort(np.concatenate(self._kept))
            return WeightDistribution(values, np.ones(len(values), np.int64), relative_error=0.0)
        occupied = np.flatnonzero(self._bins)
        values = _representatives(occupied, exact=self._bins_are_exact)
        counts = self._bins[occupied]
        # One weight each is taken out of the outermost bins to stand for itself.
        counts[0] -= 1
        counts[-1] -= 1
        extremes = np.array([self._minimum, self._maximum], np.float32)
        return WeightDistribution(
            values=np.concatenate([extremes[:1], values.clip(*extremes), extremes[1:]]),
            counts=np.concatenate([[1], counts, [1]]),
            relative_error=0.0 if self._bins_are_exact else RELATIVE_ERROR,
        )

    def _add(self, piece: NDArray[np.float32]) -> None:
        if self._bins is None and self._count <= self._exact_up_to:
            self._kept.append(piece.copy())
        else:
            self._count_in_bins(piece)

    def _counted_in_bins(self) -> NDArray[np.int64]:
        """The bins, once the weights kept so far are in them."""
        if self._bins is None:
            self._bins = np.zeros(2 * _HALF_OF_BINS, np.int64)
            kept, self._kept = self._kept, []
            for piece in kept:
                self._count_in_bins(piece)
        return self._bins

    def _count_in_bins(self, piece: NDArray[np.float32]) -> None:
        bins = self._counted_in_bins()
        bits = np.ascontiguousarray(piece).view(np.int32)
        self._bins_are_exact &= not np.bitwise_or.reduce(bits) & _DROPPED_MASK
        # In place, since these arrays are most of the memory that reading a checkpoint takes.
        bin_of = bits >> 31
        bin_of &= _ALL_BUT_SIGN
        bin_of ^= bits
        bin_of >>= _DROPPED_BITS
        bin_of += _HALF_OF_BINS
        bins += np.bincount(bin_of, minlength=len(bins))


def _representatives(bins: NDArray[np.int64], exact: bool) -> NDArray[np.float32]:
    """The weight that stands for each bin: its middle, or the only weight it can hold if exact.

    Inverts the order-preserving map from floats to integers: a negative float's bits ascend as the
    number descends, so that all but its sign are flipped.
    """
    ordered = (bins.astype(np.int32) - _HALF_OF_BINS) << _DROPPED_BITS
    if exact:
        ordered |= np.where(ordered < 0, _DROPPED_MASK, 0).astype(np.int32)
    else:
        ordered |= (_DROPPED_MASK + 1) // 2
    return (ordered ^ ((ordered >> 31) & _ALL_BUT_SIGN)).view(np.float32)
