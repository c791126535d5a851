"""The tensors of a network, not yet read: those of a module, a state dict, or a bare array."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from aihwkit.nn.modules.base import AnalogLayerBase
from torch import Tensor, nn

from wpo_optuna.errors import InvalidArgument, first_line

BLOCK = 2**21
"""Numbers read at once, if a row has no more."""

# Where training scripts and frameworks put the state dict among other things.
_STATE_DICT_KEYS = (
    "state_dict", "model_state_dict", "model", "module", "network", "net", "weights", "params",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of a network that lies in a file or in memory.

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

    @classmethod
    def of(
        cls, name: str, tensor: Tensor, place: str, owner: type[nn.Module] | None = None
    ) -> StoredTensor:
        """A tensor in memory."""
        type_name = str(tensor.dtype).removeprefix("torch.")
        if tensor.is_meta or tensor.layout is not torch.strided:
            type_name += " on meta, without data" if tensor.is_meta else ", sparse"
        return cls(name, tuple(tensor.shape), type_name, place, lambda rows: tensor[rows], owner)

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
        return tuple(_tensors_of_module(network, place))
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


def _tensors_of_module(module: nn.Module, place: str) -> Iterator[StoredTensor]:
    inside_analog_layers: tuple[str, ...] = ()
    for path, owner in module.named_modules(remove_duplicate=False):
        if path.startswith(inside_analog_layers):
            continue
        prefix = f"{path}." if path else ""
        if isinstance(owner, AnalogLayerBase) and not owner.IS_CONTAINER:
            inside_analog_layers += (prefix,)
            yield StoredTensor.of(f"{prefix}weight", owner.get_weights()[0], place, type(owner))
            continue
        for name, parameter in owner.named_parameters(recurse=False):
            yield StoredTensor.of(prefix + name, parameter, place, type(owner))
