"""Which tensors of a network lie on analogue devices, and why others do not.

This is decided here alone: by the class of the layer that holds a tensor where the network is a
module, and by the tensor's name and shape where it is a file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from wpo_optuna.errors import InvalidArgument, did_you_mean
from wpo_optuna.network.tensors import StoredTensor

_REAL_TYPES = (
    "float64", "float32", "float16", "bfloat16",
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
)  # fmt: skip

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_NORMALISATIONS = (nn.LayerNorm, nn.RMSNorm)  # those over batches and groups have vectors alone
_MATRICES = (nn.Linear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)

# The last part of a parameter's name, as torch's layers name their weights.
_WEIGHT_NAME = re.compile(r".*weight|weight_(ih|hh|hr)_l\d+(_reverse)?")
# The name of the layer that holds a parameter, in lower case, in the model families in use:
# embed_tokens, word_embeddings, tok_embeddings, wte and wpe (GPT-2), shared and
# relative_attention_bias (T5). GPT-NeoX's embed_out is a linear layer.
_EMBEDDING_NAME = re.compile(
    r"(?!.*(unembed|embed_out)).*embed.*|w[tp]e|(.*_)?emb|shared|.*attention_bias"
)
_NORMALISATION_NAME = re.compile(r".*norm.*|ln(_.*|\d*)|bn\d*")


@dataclass(frozen=True)
class SkippedTensor:
    """A tensor that is not taken, and the reason."""

    name: str
    reason: str


def select_analogue(
    tensors: Sequence[StoredTensor], include: Sequence[str], exclude: Sequence[str], source: str
) -> tuple[list[StoredTensor], list[SkippedTensor]]:
    """Chooses the tensors whose elements are weights on analogue devices.

    Without ``include`` these are the matrices and convolution kernels: tensors of two to five
    dimensions named ``weight``, that are neither embeddings nor normalisations. ``include``
    patterns replace this rule. A single array without a parameter's name is taken as it is.

    Args:
        tensors: all tensors of the network.
        include: glob patterns (``*`` also matches dots); only names that match one are taken.
        exclude: glob patterns; names that match one are not taken.
        source: the network, for messages.

    Returns:
        the tensors taken, and those skipped with reasons, both in the order given.

    Raises:
        InvalidArgument: a pattern matches no name, or no tensor is left.
    """
    names = [tensor.name for tensor in tensors]
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            _check_pattern(pattern, argument, names, source)
    taken, skipped = [], []
    for tensor in tensors:
        reason = _reason_to_skip(tensor, include, exclude, names)
        if reason:
            skipped.append(SkippedTensor(tensor.name, reason))
        else:
            taken.append(tensor)
    if not taken:
        has = _some([f"{tensor.name} ({tensor.reason})" for tensor in skipped])
        raise InvalidArgument(
            f"weights {source!r} has no tensor that counts as a weight: it has {has}; include "
            "patterns such as '*' choose by name."
        )
    return taken, skipped


def _reason_to_skip(
    tensor: StoredTensor, include: Sequence[str], exclude: Sequence[str], names: Sequence[str]
) -> str:
    """Why a tensor is not taken; empty if it is."""
    if any(fnmatchcase(tensor.name, pattern) for pattern in exclude):
        return "excluded"
    if include and not any(fnmatchcase(tensor.name, pattern) for pattern in include):
        return "not included"
    if tensor.type_name not in _REAL_TYPES:
        return f"of type {tensor.type_name}"
    scales = f"{tensor.name}_scale"
    if tensor.type_name.startswith("float8") and any(name.startswith(scales) for name in names):
        return f"{tensor.type_name} with scales stored separately: convert to bfloat16 first"
    if tensor.count == 0 or not tensor.shape:
        return "0-d" if tensor.count else "empty"
    if include or (len(names) == 1 and not tensor.is_named):
        return ""
    return _reason_not_a_weight(tensor)


def _reason_not_a_weight(tensor: StoredTensor) -> str:
    *_, layer, name = ["", *tensor.name.lower().split(".")]
    owner = tensor.owner or nn.Module
    if issubclass(owner, _EMBEDDINGS):
        return "embedding"
    if issubclass(owner, _NORMALISATIONS):
        return "normalisation"
    if not 2 <= len(tensor.shape) <= 5:
        return f"{len(tensor.shape)}-d"
    if not tensor.is_named:
        return ""
    if not _WEIGHT_NAME.fullmatch(name):
        return "not named weight"
    if issubclass(owner, _MATRICES):
        return ""
    if _NORMALISATION_NAME.fullmatch(layer):
        return "normalisation"
    is_matrix = len(tensor.shape) == 2
    return "embedding" if is_matrix and _EMBEDDING_NAME.fullmatch(layer) else ""


def _check_pattern(pattern: str, argument: str, names: Sequence[str], source: str) -> None:
    if any(fnmatchcase(name, pattern) for name in names):
        return
    is_part = any(fnmatchcase(name, f"*{pattern}*") for name in names)
    meant = f" (did you mean '*{pattern}*'?)" if is_part else did_you_mean(pattern, names)
    raise InvalidArgument(
        f"{argument} {pattern!r} matches none of the tensors of {source!r}{meant}: it has "
        f"{_some(names)}."
    )


def _some(texts: Sequence[str]) -> str:
    more = [f"{len(texts) - 5} more"] if len(texts) > 5 else []
    return ", ".join([*texts[:5], *more]) or "no tensors"
