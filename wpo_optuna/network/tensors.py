"""The tensors of a network, not yet read: those of a module, a state dict, or a bare array."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from types import EllipsisType

import numpy as np
import torch
from aihwkit.nn.modules.base import AnalogLayerBase
from torch import Tensor, nn

from wpo_optuna.errors import InvalidArgument, first_line
from wpo_optuna.network.layers import OTHER, Layer, layers_of

BLOCK = 2**21
"""Numbers read at once, if a row has no more."""

_LONGEST_NAME = 512

# Where training scripts and frameworks put the state dict among other things.
_STATE_DICT_KEYS = (
    "state_dict", "model_state_dict", "model", "module", "network", "net", "weights", "params",
)  # fmt: skip

Index = slice | EllipsisType


@dataclass(frozen=True)
class Known:
    """What is known of a tensor from the layer that holds it, where the network is a module.

    Attributes:
        kind: kind of the layer.
        blocks: number of layers that get an equal part of the tensor's outputs each.
        digital_because: why it lies on no tile; empty if it does.
        is_transposed: whether it is stored as (inputs, outputs).
    """

    kind: str
    blocks: int = 1
    digital_because: str = ""
    is_transposed: bool = False


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of a network that lies in a file or in memory.

    Attributes:
        name: its name in the network, such as ``encoder.0.fc1.weight``.
        shape: its shape.
        type_name: its element type as torch names it, such as ``float32``.
        place: the file or function it comes from, for messages.
        read: reads some of its rows, or (``...``) all.
        known: what the layer that holds it says, where there is one.
        is_named: whether the name is that of a parameter; arrays are named as people please.
        storage: what tensors that share their memory have in common; None if that is unknown.
        aliases: other names under which the network knows it.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    place: str
    read: Callable[[Index], Tensor]
    known: Known | None = None
    is_named: bool = True
    storage: object = None
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.isprintable() or len(self.name) > _LONGEST_NAME:
            raise InvalidArgument(
                f"{self.place} has a tensor {self.name[:40]!r}: names of at most {_LONGEST_NAME} "
                "printable characters are needed."
            )

    @classmethod
    def of(cls, name: str, tensor: Tensor, place: str, known: Known | None = None) -> StoredTensor:
        """A tensor in memory."""
        type_name = str(tensor.dtype).removeprefix("torch.")
        storage = None
        if tensor.is_meta or tensor.layout is not torch.strided:
            type_name += " on meta, without data" if tensor.is_meta else ", sparse"
        elif tensor.numel():
            # Another file may be mapped to the place of one that was closed.
            storage = (place, tensor.data_ptr(), tensor.shape, tensor.stride())
        return cls(
            name, tuple(tensor.shape), type_name, place, lambda index: tensor[index], known,
            storage=storage,
        )  # fmt: skip

    @property
    def count(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def transposed(self) -> StoredTensor:
        """The matrix as (outputs, inputs), where it is stored the other way round."""
        return replace(self, shape=self.shape[::-1], read=lambda index: self.read(...).T[index])

    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[Tensor]:
        """The rows from ``first`` to before ``last``, some at a time, in float32."""
        last = self.shape[0] if last is None else last
        at_once = max(BLOCK // prod(self.shape[1:]), 1)
        for start in range(first, last, at_once):
            rows = self.read(slice(start, min(start + at_once, last)))
            yield rows.detach().cpu().to(torch.float32)


def tensors_of_network(network: object, place: str) -> tuple[StoredTensor, ...]:
    """The tensors of a network, whatever form it has.

    Args:
        network: a tensor or array, a state dict (also inside a training checkpoint, under
            ``state_dict`` and the like), or a module, also one with aihwkit's analog layers.
        place: what the network came from, for messages.

    Raises:
        InvalidArgument: it is something else, or has no tensors.
    """
    if isinstance(network, np.ndarray):
        try:
            network = torch.from_numpy(network)
        except TypeError as error:
            raise InvalidArgument(f"{place} holds no numbers: {first_line(error)}.") from error
    if isinstance(network, Tensor):
        return (replace(StoredTensor.of("weights", network, place), is_named=False),)
    if isinstance(network, nn.Module):
        return tuple(tensors_of_module(network, place))
    return tuple(StoredTensor.of(*item, place) for item in state_dict_of(network, place).items())


def state_dict_of(network: object, place: str) -> dict[str, Tensor]:
    """The named tensors of a state dict, or of the training checkpoint around it.

    Raises:
        InvalidArgument: there is no state dict.
    """
    if not isinstance(network, Mapping):
        raise InvalidArgument(
            f"{place} holds an object of type {type(network).__name__}; "
            "a tensor, a state dict or a module is needed."
        )
    # Training checkpoints may hold tensors beside the state dict, such as a step or a loss.
    nested = (network[key] for key in _STATE_DICT_KEYS if isinstance(network.get(key), Mapping))
    for mapping in (*nested, network):
        tensors = {str(key): value for key, value in mapping.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    keys = ", ".join(repr(key) for key in list(network)[:5]) or "nothing"
    raise InvalidArgument(
        f"{place} holds a dictionary without named tensors (its keys: {keys}); "
        "a state dict is needed."
    )


def tensors_of_module(module: nn.Module, place: str) -> Iterator[StoredTensor]:
    """The parameters of a module, and what the layers that hold them say of them."""
    layers = list(layers_of(module))
    is_converted = any(isinstance(layer.module, AnalogLayerBase) for layer in layers)
    for layer in layers:
        prefix = f"{layer.name}." if layer.name else ""
        if isinstance(layer.module, AnalogLayerBase):
            weight, _ = layer.module.get_weights()
            yield StoredTensor.of(f"{prefix}weight", weight, place, Known(layer.kind))
            continue
        parameters = dict(layer.module.named_parameters(recurse=layer.kind != OTHER))
        for name in {**dict.fromkeys(layer.matrices), **dict.fromkeys(parameters)}:
            tensor = parameters.get(name)
            if tensor is None:  # computed from the layer's parameters
                tensor = getattr(layer.module, name)
            known = _known(layer, name)
            if is_converted and not known.digital_because:
                known = replace(known, digital_because="aihwkit did not convert it")
            yield StoredTensor.of(prefix + name, tensor, place, known)


def _known(layer: Layer, name: str) -> Known:
    if name in layer.matrices:
        n_layers = len(layer.matrices[name])
        return Known(layer.kind, n_layers, is_transposed=layer.is_transposed)
    reason = layer.digital_because or "it is no matrix of its layer"
    return Known(layer.kind, digital_because=reason)
