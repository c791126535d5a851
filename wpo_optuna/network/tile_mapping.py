"""Weights as they lie on the tiles, scaled by the RPU configuration's mapping.

aihwkit splits a layer's matrix over tiles and scales what each tile holds, a whole tile or each of
its output columns by itself, so that its largest weight becomes ``weight_scaling_omega``. The
devices see these scaled weights; the scales are undone digitally behind the tile. Weights of
layers with different ranges then have the same range, so that their common distribution is
another than that of the checkpoint's numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise

import torch
from aihwkit.simulator.parameters import MappingParameter
from torch import Tensor

from wpo_optuna.network.stored_tensor import BLOCK, StoredTensor


def blocks_on_tiles(tensor: StoredTensor, mapping: MappingParameter) -> Iterator[Tensor]:
    """A layer's weights as scaled on its tiles, a few rows of a tile at a time, in float32.

    Args:
        tensor: The layer's weights (out, in) or (out, in, *kernel), as torch's linear and
            convolutional layers hold them. A bare vector belongs to no tile and stays as it is.
        mapping: Tile sizes and kind of scaling, as in ``InferenceRPUConfig.mapping``.

    Source: ``TileModuleArray`` and ``TileWithPeriphery.apply_weight_scaling`` of aihwkit.
    """
    if mapping.weight_scaling_omega <= 0 or len(tensor.shape) < 2:
        yield from tensor.blocks()
        return
    omega = mapping.weight_scaling_omega
    outputs, inputs = tensor.shape[0], tensor.count // tensor.shape[0]
    widths = split_sizes(inputs, mapping.max_input_size)
    edges = accumulate(split_sizes(outputs, mapping.max_output_size), initial=0)
    for first, last in pairwise(edges):
        if mapping.weight_scaling_columnwise:
            for rows in _row_blocks(tensor, first, last):
                for part in rows.split(widths, dim=1):
                    yield part * (omega / _without_zeros(part.abs().amax(dim=1, keepdim=True)))
            continue
        largest = torch.zeros(len(widths))
        for rows in _row_blocks(tensor, first, last):
            of_tiles = [part.abs().max() for part in rows.split(widths, dim=1)]
            largest = torch.maximum(largest, torch.stack(of_tiles))
        scales = omega / _without_zeros(largest)
        for rows in _row_blocks(tensor, first, last):
            for part, scale in zip(rows.split(widths, dim=1), scales, strict=True):
                yield part * scale


def split_sizes(size: int, largest: int) -> list[int]:
    """Sizes of the tiles along one axis: as few as possible, as equal as possible.

    Source: ``TileModuleArray.get_split_sizes`` of aihwkit; ``largest`` 0 means no limit.
    """
    if largest <= 0:
        return [size]
    number = -(-size // largest)
    base, extra = divmod(size, number)
    return [base + (i < extra) for i in range(number)]


def _row_blocks(tensor: StoredTensor, first: int, last: int) -> Iterator[Tensor]:
    """Rows ``first`` to ``last`` of the matrix (out, in), some whole rows at a time."""
    inputs = tensor.count // tensor.shape[0]
    at_once = max(BLOCK // inputs, 1)
    for start in range(first, last, at_once):
        rows = tensor.read((slice(start, min(start + at_once, last)),))
        yield rows.detach().cpu().to(torch.float32).reshape(-1, inputs)


def _without_zeros(largest: Tensor) -> Tensor:
    # A row or tile of zeros stays one, as in aihwkit.
    return torch.where(largest == 0, torch.ones(()), largest)
