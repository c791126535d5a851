"""Which tensors of a network are weights that an analog array would hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.network.stored_tensor import StoredTensor

# The last part of a parameter's name, as torch's layers name their weights.
_WEIGHT = re.compile(r".*weight|weight_(ih|hh|hr)_l\d+(_reverse)?")
# The name of the layer that holds a parameter, in lower case, in the model families in use:
# embed_tokens, word_embeddings, tok_embeddings, wte and wpe (GPT-2), shared and
# relative_attention_bias (T5). GPT-NeoX's embed_out is a linear layer.
_EMBEDDING = re.compile(
    r"(?!.*(unembed|embed_out)).*embed.*|w[tp]e|(.*_)?emb|shared|.*attention_bias"
)
_NORMALISATION = re.compile(r".*norm.*|ln(_.*|\d*)|bn\d*")


@dataclass(frozen=True)
class SkippedTensor:
    """A tensor that was not taken.

    Attributes:
        name: Its name.
        shape: Its shape.
        reason: Why not.
    """

    name: str
    shape: tuple[int, ...]
    reason: str


def select_weights(
    tensors: Sequence[StoredTensor],
    include: Sequence[str],
    exclude: Sequence[str],
    source: str,
) -> tuple[list[StoredTensor], list[SkippedTensor]]:
    """Choose the tensors that are weights.

    Without ``include`` these are the matrices and convolution kernels: tensors of two to five
    dimensions named ``weight``, that are neither embeddings nor normalisations, as their layer's
    type tells or else its name. ``include`` patterns replace this rule.

    Args:
        tensors: All tensors of the network.
        include: Glob patterns (``*`` also matches dots); only names that match one are taken.
        exclude: Glob patterns; names that match one are not taken.
        source: The network, for messages.

    Returns:
        The tensors taken, and those skipped with reasons, both in the order given.

    Raises:
        InvalidArgument: If a pattern matches no name, or no tensor is left.
    """
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            _check_pattern(pattern, argument, tensors, source)
    taken, skipped = [], []
    names = {tensor.name for tensor in tensors}
    for tensor in tensors:
        reason = _reason_to_skip(tensor, include, exclude, names)
        if reason:
            skipped.append(SkippedTensor(tensor.name, tensor.shape, reason))
        else:
            taken.append(tensor)
    if not taken:
        raise InvalidArgument(
            f"weights {source!r} has no tensor that counts as a weight: it has {_some(skipped)}; "
            "include patterns such as '*' choose by name."
        )
    return taken, skipped


def _reason_to_skip(
    tensor: StoredTensor, include: Sequence[str], exclude: Sequence[str], names: set[str]
) -> str:
    if any(fnmatchcase(tensor.name, pattern) for pattern in exclude):
        return "excluded"
    if include and not any(fnmatchcase(tensor.name, pattern) for pattern in include):
        return "not included"
    if not tensor.is_real:
        return f"of type {tensor.type_name}"
    if tensor.type_name.startswith("float8") and any(
        name.startswith(f"{tensor.name}_scale") for name in names
    ):
        return f"{tensor.type_name} with scales stored separately: convert to bfloat16 first"
    if tensor.count == 0:
        return "empty"
    if include or tensor.is_whole_network:
        return ""
    return _reason_not_a_weight(tensor)


def _reason_not_a_weight(tensor: StoredTensor) -> str:
    *_, owner, name = ["", *tensor.name.split(".")]
    dimensions = len(tensor.shape)
    if tensor.kind in ("embedding", "normalisation"):
        return tensor.kind
    if not 2 <= dimensions <= 5:
        return f"{dimensions}-d"
    if tensor.kind == "array":
        return ""
    if not _WEIGHT.fullmatch(name):
        return "not named weight"
    if tensor.kind == "" and _NORMALISATION.fullmatch(owner.lower()):
        return "normalisation"
    if tensor.kind == "" and dimensions == 2 and _EMBEDDING.fullmatch(owner.lower()):
        return "embedding"
    return ""


def _check_pattern(
    pattern: str, argument: str, tensors: Sequence[StoredTensor], source: str
) -> None:
    names = [tensor.name for tensor in tensors]
    if any(fnmatchcase(name, pattern) for name in names):
        return
    inside = [name for name in names if fnmatchcase(name, f"*{pattern}*")]
    close = get_close_matches(pattern, names, n=1, cutoff=0.6)
    meant = ""
    if inside:
        meant = f" (did you mean '*{pattern}*'?)"
    elif close:
        meant = f" (did you mean {close[0]!r}?)"
    some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    raise InvalidArgument(
        f"{argument} {pattern!r} matches none of the tensors of {source!r}{meant}: it has {some}."
    )


def _some(skipped: Sequence[SkippedTensor]) -> str:
    shown = [f"{tensor.name} ({tensor.reason})" for tensor in skipped[:5]]
    more = [f"{len(skipped) - 5} more"] if len(skipped) > 5 else []
    return ", ".join(shown + more) or "no tensors"
