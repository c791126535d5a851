"""A tensor that lies somewhere, read in blocks of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

Index = tuple[slice | int, ...]

BLOCK = 2**21
"""Numbers read at once."""

REAL_TYPES = frozenset(
    {
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2fnuz,
    }
)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A named tensor of a network, not yet read.

    Attributes:
        name: Its name in the network, such as ``encoder.0.fc1.weight``.
        shape: Its shape.
        type_name: Its element type, such as ``float32``.
        is_real: Whether its elements are numbers that can be taken as weights.
        place: The file or function it comes from, for messages.
        read: Reads the part of it that an index selects.
        kind: What its place says it is: ``embedding``, ``normalisation`` or ``layer`` by the module
            that holds it, ``array`` if its name says nothing; empty if only the name can tell.
        is_whole_network: True for a bare tensor, which is all there is and has no name of its own.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    is_real: bool
    place: str
    read: Callable[[Index], Tensor]
    kind: str = ""
    is_whole_network: bool = False

    @property
    def count(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def blocks(self, limit: int = BLOCK) -> Iterator[Tensor]:
        """The tensor in parts of at most ``limit`` elements, in float32."""
        for index in block_indices(self.shape, limit):
            yield self.read(index).detach().cpu().to(torch.float32)


def block_indices(shape: tuple[int, ...], limit: int) -> Iterator[Index]:
    """Indices that split a tensor into parts of at most ``limit`` elements, along leading axes."""
    if prod(shape) <= limit:
        yield ()
        return
    row = prod(shape[1:])
    if row > limit:
        for i in range(shape[0]):
            for rest in block_indices(shape[1:], limit):
                yield (i, *rest)
        return
    rows_at_once = limit // max(row, 1)
    for start in range(0, shape[0], rows_at_once):
        yield (slice(start, min(start + rows_at_once, shape[0])),)
