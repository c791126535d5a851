"""What becomes of each layer of a network: the one decision on what lies on analogue tiles.

A layer is known by its class; one of a class that is not known counts as linear if it acts as
one, which is tried out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from aihwkit.nn.modules.base import AnalogLayerBase
from torch import Tensor, nn

from wpo_optuna.network.restated import (
    Convolution,
    Recurrence,
    SeparateAttention,
    UnfoldedConvolution,
    linear,
)

LINEAR, CONVOLUTION, RECURRENT, ATTENTION = "linear", "convolution", "recurrent", "attention"
EMBEDDING, NORMALISATION, OTHER = "embedding", "normalisation", "other"

IS_EMBEDDING, IS_NORMALISATION = "it is an embedding", "it is a normalisation"
WITH_PROJECTIONS = "aihwkit has no LSTM with projections"
DEPTHWISE = "a depthwise convolution has too few inputs for a tile of each channel"

_DIGITAL: Mapping[type[nn.Module], tuple[str, str]] = {
    nn.Embedding: (EMBEDDING, IS_EMBEDDING),
    nn.EmbeddingBag: (EMBEDDING, IS_EMBEDDING),
    nn.LayerNorm: (NORMALISATION, IS_NORMALISATION),
    nn.RMSNorm: (NORMALISATION, IS_NORMALISATION),
    nn.Bilinear: (OTHER, "a bilinear layer multiplies two inputs"),
    nn.RNNCellBase: (RECURRENT, "aihwkit has no cell that is called step by step"),
}
# Outputs of a layer and of what replaces it may differ by this, relative to the largest.
_TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Layer:
    """What becomes of a layer of a digital network.

    Attributes:
        name: its path in the network; empty for the network itself.
        module: the layer.
        kind: what kind of layer it is.
        matrices: for each of its parameters that lies on tiles, by name, the paths within the
            layer of those that hold an equal part of its outputs each; ``""`` is the layer itself.
        digital_because: why no parameter lies on tiles; empty if some do.
        replacement: makes what aihwkit converts in its stead, with equal outputs; None for itself.
        is_transposed: whether its weight is stored as (inputs, outputs).
    """

    name: str
    module: nn.Module
    kind: str
    matrices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    digital_because: str = ""
    replacement: Callable[[], nn.Module] | None = None
    is_transposed: bool = False


def layers_of(network: nn.Module) -> Iterator[Layer]:
    """The layers of a network that hold parameters, each as a whole, in the network's order."""
    inside: tuple[str, ...] = ()
    for name, module in network.named_modules(remove_duplicate=False):
        if name.startswith(inside):
            continue
        layer = _layer(name, module)
        if layer is None:
            continue
        if layer.kind != OTHER:
            inside += (f"{name}." if name else "",)
        yield layer


def _layer(name: str, module: nn.Module) -> Layer | None:
    """What becomes of a module; None if it has no parameters of its own and is no known layer."""
    for known, (kind, reason) in _DIGITAL.items():
        if isinstance(module, known):
            return Layer(name, module, kind, digital_because=reason)
    if isinstance(module, AnalogLayerBase) and not module.IS_CONTAINER:
        kind = LINEAR if isinstance(module, nn.Linear) else CONVOLUTION
        return Layer(name, module, kind, {"weight": ("",)})
    for known, (kind, restate) in _RESTATED.items():
        if isinstance(module, known):
            if type(module).forward is known.forward:
                return restate(name, module)
            reason = f"a {type(module).__name__} acts in a way of its own"
            return Layer(name, module, kind, digital_because=reason)
    own = dict(module.named_parameters(recurse=False))
    if type(module) is nn.Linear and "weight" in own:
        return Layer(name, module, LINEAR, {"weight": ("",)})
    if not own:
        return None
    weight = own.get("weight")
    if isinstance(module, nn.Linear) or (weight is not None and weight.dim() == 2):
        return _like_a_linear_layer(name, module, own)
    reason = f"it is a parameter of a {type(module).__name__}"
    return Layer(name, module, OTHER, digital_because=reason)


def _recurrent(name: str, network: nn.RNNBase) -> Layer:
    if network.proj_size:
        return Layer(name, network, RECURRENT, digital_because=WITH_PROJECTIONS)
    matrices, replacement = Recurrence.layers_of(network), partial(Recurrence, network)
    return Layer(name, network, RECURRENT, matrices, replacement=replacement)


def _attention(name: str, attention: nn.MultiheadAttention) -> Layer:
    if attention.bias_k is not None or attention.add_zero_attn:
        reason = "attention with bias_k or add_zero_attn has no form of linear layers"
        return Layer(name, attention, ATTENTION, digital_because=reason)
    names = dict(attention.named_parameters())
    matrices = {n: paths for n, paths in SeparateAttention.LAYERS.items() if n in names}
    replacement = partial(SeparateAttention, attention)
    return Layer(name, attention, ATTENTION, matrices, replacement=replacement)


def _convolution(name: str, convolution: Convolution) -> Layer:
    if convolution.groups > 1 and convolution.groups == convolution.in_channels:
        return Layer(name, convolution, CONVOLUTION, digital_because=DEPTHWISE)
    is_aihwkits = (
        type(convolution) is nn.Conv2d
        and convolution.groups == 1
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
    )
    if is_aihwkits:
        return Layer(name, convolution, CONVOLUTION, {"weight": ("",)})
    matrices = {"weight": tuple(f"groups.{group}" for group in range(convolution.groups))}
    replacement = partial(UnfoldedConvolution, convolution)
    return Layer(name, convolution, CONVOLUTION, matrices, replacement=replacement)


_RESTATED: Mapping[type[nn.Module], tuple[str, Callable[[str, Any], Layer]]] = {
    nn.LSTM: (RECURRENT, _recurrent),
    nn.GRU: (RECURRENT, _recurrent),
    nn.RNN: (RECURRENT, _recurrent),
    nn.MultiheadAttention: (ATTENTION, _attention),
    nn.Conv1d: (CONVOLUTION, _convolution),
    nn.Conv2d: (CONVOLUTION, _convolution),
    nn.Conv3d: (CONVOLUTION, _convolution),
}


def _like_a_linear_layer(name: str, module: nn.Module, own: Mapping[str, Tensor]) -> Layer:
    """A layer of a class that is not known, with one matrix: linear if it acts as that matrix."""
    # Some have no parameter of this name, but compute it from others (weight normalisation).
    weight, bias = own.get("weight", getattr(module, "weight", None)), own.get("bias")
    forms = {False: weight, True: weight.T} if isinstance(weight, Tensor) else {}
    for is_transposed, matrix in forms.items():
        if _acts_as(module, linear(matrix, bias)):
            return Layer(
                name, module, LINEAR, {"weight": ("",)}, replacement=partial(linear, matrix, bias),
                is_transposed=is_transposed,
            )  # fmt: skip
    reason = f"a {type(module).__name__} does not act as a linear layer with its weight"
    return Layer(name, module, OTHER, digital_because=reason)


@torch.no_grad()
def _acts_as(module: nn.Module, plain: nn.Linear) -> bool:
    """Whether a layer has a linear one's outputs in evaluation mode, but for rounding."""
    if plain.weight.is_meta:
        return False
    inputs = torch.randn(2, 3, plain.in_features, generator=torch.Generator().manual_seed(0))
    try:
        expected = plain.to("cpu", torch.float32)(inputs)
        outputs = copy.deepcopy(module).to("cpu", torch.float32).eval()(inputs)
    except Exception:  # a user's layer may want other inputs, and raises what it likes
        return False
    if not isinstance(outputs, Tensor) or outputs.shape != expected.shape:
        return False
    scale = float(expected.abs().max()) or 1.0
    return bool(torch.allclose(outputs, expected, rtol=0.0, atol=_TOLERANCE * scale))
