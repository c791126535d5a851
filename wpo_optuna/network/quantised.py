"""Quantised weights: as the numbers they stand for, where a checkpoint's convention is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from wpo_optuna.network.tensors import Index, StoredTensor

_QUANTISED = ("int8", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
# Side of the square blocks that share a scale, unless they divide the matrix evenly otherwise
# (DeepSeek-V3's checkpoints).
_BLOCK = 128


def dequantised(tensors: Sequence[StoredTensor]) -> tuple[list[StoredTensor], dict[str, str]]:
    """Quantised matrices as what they stand for, and what belongs to them.

    Known are a scale for a matrix, for each output, or for each block of a matrix, by which its
    8-bit numbers are multiplied (``weight_scale``, ``weight_scale_inv``), less a ``zero_point``
    where there is one, and the outputs' largest values of bitsandbytes (``SCB``).

    Args:
        tensors: all tensors of a network.

    Returns:
        the tensors, and by name those that are scales, with the matrix they belong to.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    belongs: dict[str, str] = {}
    found = []
    for tensor in tensors:
        if tensor.type_name in _QUANTISED and len(tensor.shape) == 2:
            scale = _scale_of(tensor, by_name)
            block = None if scale is None else _block_shape(tensor.shape, scale.shape)
            if scale is not None and block is not None:
                zero = by_name.get(f"{tensor.name}_zero_point")
                belongs |= {part.name: tensor.name for part in (scale, zero) if part is not None}
                tensor = _multiplied(tensor, block, scale, zero)
        found.append(tensor)
    return found, belongs


def is_packed(tensor: StoredTensor) -> bool:
    """Whether a tensor seems to hold weights in integers, of whose meaning nothing is known.

    GPTQ, AWQ, bitsandbytes and the FP4 formats pack several of four bits each into one.
    """
    is_weight = tensor.name.endswith(("weight", "weight_packed", "_blocks", "_proj"))
    return is_weight and len(tensor.shape) >= 2 and "int" in tensor.type_name


def _scale_of(tensor: StoredTensor, by_name: Mapping[str, StoredTensor]) -> StoredTensor | None:
    layer = tensor.name.rpartition(".")[0]
    names = (f"{tensor.name}_scale", f"{tensor.name}_scale_inv", f"{layer}.SCB")
    return next((by_name[name] for name in names if name in by_name), None)


def _block_shape(shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, int] | None:
    """Outputs and inputs that share a scale; None if the scales have an unknown layout."""
    n_outputs, n_inputs = shape
    rows, columns = (*scales, 1, 1)[:2]
    if len(scales) > 2 or not rows or not columns:
        return None
    if (-(-n_outputs // _BLOCK), -(-n_inputs // _BLOCK)) == (rows, columns):
        return _BLOCK, _BLOCK
    if n_outputs % rows or n_inputs % columns:
        return None
    return n_outputs // rows, n_inputs // columns


def _multiplied(
    tensor: StoredTensor, block: tuple[int, int], scale: StoredTensor, zero: StoredTensor | None
) -> StoredTensor:
    unit = 1 / 127 if scale.name.endswith(".SCB") else 1.0

    def of_blocks(part: StoredTensor, index: Index) -> Tensor:
        values = part.read(...).to(torch.float32).reshape((*part.shape, 1, 1)[:2])
        row = torch.arange(tensor.shape[0])[index] // block[0]
        column = torch.arange(tensor.shape[1]) // block[1]
        return values[row][:, column]

    def read(index: Index) -> Tensor:
        numbers = tensor.read(index).to(torch.float32)
        if zero is not None:
            numbers = numbers - of_blocks(zero, index)
        return numbers * of_blocks(scale, index) * unit

    return replace(tensor, type_name="float32", read=read)
