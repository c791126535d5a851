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

from wpo_optuna.network.tensors import StoredTensor


def blocks_on_tiles(tensor: StoredTensor, mapping: MappingParameter) -> Iterator[Tensor]:
    """A layer's weights as scaled on its tiles, a few rows of a tile at a time, in float32.

    Args:
        tensor: the layer's weights (out, in) or (out, in, *kernel), as torch's linear and
            convolutional layers hold them. A bare vector belongs to no tile and stays as it is.
        mapping: tile sizes and kind of scaling, as in ``InferenceRPUConfig.mapping``.

    Source: ``TileModuleArray`` and ``TileWithPeriphery.apply_weight_scaling`` of aihwkit.
    """
    if mapping.weight_scaling_omega <= 0 or len(tensor.shape) < 2:
        yield from tensor.blocks()
        return
    omega = mapping.weight_scaling_omega
    outputs, inputs = tensor.shape[0], tensor.count // tensor.shape[0]
    widths = split_sizes(inputs, mapping.max_input_size)
    n_layers = tensor.known.blocks if tensor.known else 1
    heights = split_sizes(outputs // n_layers, mapping.max_output_size) * n_layers
    edges = accumulate(heights, initial=0)
    for first, last in pairwise(edges):
        largest = torch.zeros(len(widths))
        if not mapping.weight_scaling_columnwise:
            for rows in tensor.blocks(first, last):
                parts = rows.reshape(-1, inputs).split(widths, dim=1)
                largest = torch.maximum(largest, torch.stack([p.abs().max() for p in parts]))
        for rows in tensor.blocks(first, last):
            parts = rows.reshape(-1, inputs).split(widths, dim=1)
            for part, of_tile in zip(parts, largest, strict=True):
                if mapping.weight_scaling_columnwise:
                    of_tile = part.abs().amax(dim=1, keepdim=True)
                # A row or tile of zeros stays one, as in aihwkit.
                yield part * (omega / torch.where(of_tile == 0, torch.ones(()), of_tile))


def split_sizes(size: int, largest: int) -> list[int]:
    """Sizes of the tiles along one axis: as few as possible, as equal as possible.

    Source: ``TileModuleArray.get_split_sizes`` of aihwkit; ``largest`` 0 means no limit.
    """
    if largest <= 0:
        return [size]
    number = -(-size // largest)
    base, extra = divmod(size, number)
    return [base + (i < extra) for i in range(number)]
