"""A tensor that lies in a file or in memory, read in blocks of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

BLOCK = 2**21
"""Numbers read at once, if a row has no more."""


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of a network, not yet read.

    Attributes:
        name: its name in the network, such as ``encoder.0.fc1.weight``.
        shape: its shape.
        type_name: its element type as torch names it, such as ``float32``.
        place: the file or function it comes from, for messages.
        read: reads some of its rows.
        owner: class of the module that holds it, where there is one.
        is_named: whether the name is that of a parameter; arrays are named as people please.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    place: str
    read: Callable[[slice], Tensor]
    owner: type[nn.Module] | None = None
    is_named: bool = True

    @property
    def count(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[Tensor]:
        """The rows from ``first`` to before ``last``, some at a time, in float32."""
        last = self.shape[0] if last is None else last
        at_once = max(BLOCK // prod(self.shape[1:]), 1)
        for start in range(first, last, at_once):
            rows = self.read(slice(start, min(start + at_once, last)))
            yield rows.detach().cpu().to(torch.float32)
