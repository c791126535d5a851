"""The tensors of a network in memory: a module, a state dict, or a bare tensor."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from aihwkit.nn.modules.base import AnalogLayerBase
from torch import Tensor, nn

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.network.stored_tensor import REAL_TYPES, Index, StoredTensor

# Where training scripts and frameworks put the state dict among other things.
_STATE_DICT_KEYS = (
    "state_dict", "model_state_dict", "model", "module", "network", "net", "weights", "params",
)  # fmt: skip

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_NORMALISATIONS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def tensors_of_network(network: object, place: str) -> tuple[StoredTensor, ...]:
    """The tensors of a network, whatever form it has.

    Args:
        network: A tensor or array, a state dict (also inside a training checkpoint, under
            ``state_dict`` and the like), or a module, also one with aihwkit's analog layers.
        place: What the network came from, for messages.

    Raises:
        InvalidArgument: If it is something else, or has no tensors.
    """
    if isinstance(network, np.ndarray):
        network = _as_tensor(network, place)
    if isinstance(network, Tensor):
        return (stored_tensor("weights", network, place, is_whole_network=True),)
    if isinstance(network, nn.Module):
        return _tensors_of_module(network, place)
    return tuple(
        stored_tensor(name, tensor, place) for name, tensor in state_dict_of(network, place).items()
    )


def state_dict_of(network: object, place: str) -> dict[str, Tensor]:
    """The named tensors of a state dict, or of the training checkpoint around it.

    Raises:
        InvalidArgument: If there is no state dict.
    """
    if not isinstance(network, Mapping):
        raise InvalidArgument(
            f"{place} holds an object of type {type(network).__name__}; "
            "a tensor, a state dict or a module is needed."
        )
    # Training checkpoints may hold tensors beside the state dict, such as a step or a loss.
    nested = (network[key] for key in _STATE_DICT_KEYS if isinstance(network.get(key), Mapping))
    candidates = [_named_tensors(mapping) for mapping in (*nested, network)]
    tensors = next((found for found in candidates if found), {})
    if not tensors:
        keys = ", ".join(repr(key) for key in list(network)[:5]) or "nothing"
        raise InvalidArgument(
            f"{place} holds a dictionary without named tensors (its keys: {keys}); "
            "a state dict is needed."
        )
    return tensors


def stored_tensor(
    name: str, tensor: Tensor, place: str, kind: str = "", is_whole_network: bool = False
) -> StoredTensor:
    """A tensor in memory, to be read like one in a file."""

    def read(index: Index) -> Tensor:
        return tensor[index]

    obstacle = "meta, without data" if tensor.is_meta else ""
    if tensor.layout is not torch.strided:
        obstacle = "sparse"
    dtype = str(tensor.dtype).removeprefix("torch.")
    return StoredTensor(
        name=name,
        shape=tuple(tensor.shape),
        type_name=f"{dtype} ({obstacle})" if obstacle else dtype,
        is_real=tensor.dtype in REAL_TYPES and not obstacle,
        place=place,
        read=read,
        kind=kind,
        is_whole_network=is_whole_network,
    )


def _as_tensor(array: np.ndarray, place: str) -> Tensor:
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise InvalidArgument(
            f"{place} holds an array of type {array.dtype}; real numbers are needed."
        ) from error


def _named_tensors(mapping: Mapping[object, object]) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in mapping.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def _tensors_of_module(module: nn.Module, place: str) -> tuple[StoredTensor, ...]:
    tensors = []
    inside_analog_layers: tuple[str, ...] = ()
    for path, owner in module.named_modules(remove_duplicate=False):
        if path.startswith(inside_analog_layers):
            continue
        if isinstance(owner, AnalogLayerBase) and not owner.IS_CONTAINER:
            inside_analog_layers += (f"{path}." if path else "",)
            weight, _ = owner.get_weights()
            tensors.append(stored_tensor(_joined(path, "weight"), weight, place))
            continue
        for name, parameter in owner.named_parameters(recurse=False):
            tensors.append(
                stored_tensor(_joined(path, name), parameter, place, _kind_of_module(owner))
            )
    if not tensors:
        raise InvalidArgument(f"{place} holds a {type(module).__name__} without parameters.")
    return tuple(tensors)


def _kind_of_module(module: nn.Module) -> str:
    if isinstance(module, _EMBEDDINGS):
        return "embedding"
    if isinstance(module, _NORMALISATIONS):
        return "normalisation"
    # Of a class unknown here, the name must tell; TorchScript makes all classes unknown.
    return "layer" if isinstance(module, _LAYERS) else ""


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
