"""Which tensors of a network lie on analogue devices, and why others do not.

Where the network is a module, its layers say so (:mod:`wpo_optuna.network.layers`); where it is a
file, names and shapes do. User's patterns prevail over both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from wpo_optuna.errors import InvalidArgument, did_you_mean
from wpo_optuna.network import layers
from wpo_optuna.network.account import (
    ANALOGUE,
    DIGITAL,
    Account,
    AccountedTensor,
)
from wpo_optuna.network.quantised import dequantised, is_packed
from wpo_optuna.network.tensors import Known, StoredTensor

_REAL_TYPES = (
    "float64", "float32", "float16", "bfloat16",
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
)  # fmt: skip

# The last part of a parameter's name, as torch's layers name their weights.
_WEIGHT_NAME = re.compile(r".*weight|weight_(ih|hh)_l\d+(_reverse)?")
_RECURRENT_NAME = re.compile(r"weight_(ih|hh|hr)_l\d+(_reverse)?")
# The name of the layer that holds a parameter, in lower case, in the model families in use:
# embed_tokens, word_embeddings, tok_embeddings, wte and wpe (GPT-2), shared and
# relative_attention_bias (T5). GPT-NeoX's embed_out is a linear layer.
_EMBEDDING_NAME = re.compile(
    r"(?!.*(unembed|embed_out)).*embed.*|w[tp]e|(.*_)?emb|shared|.*attention_bias"
)
_NORMALISATION_NAME = re.compile(r".*norm.*|ln(_.*|\d*)|bn\d*")
# The layers of GPT-2 and its kin, whose weights are stored as (inputs, outputs).
_GPT2_NAME = re.compile(r"c_attn|c_proj|c_fc|q_attn")
_GPT2_MODELS = ("gpt2", "openai-gpt", "gptsan-japanese", "decision_transformer", "imagegpt")


@dataclass(frozen=True)
class Choice:
    """Which tensors the user wants on analogue devices, and how they are stored.

    Attributes:
        include: glob patterns (``*`` also matches dots); if there are any, names that match one
            are taken instead of those that the account would choose.
        exclude: glob patterns; names that match one are not taken.
        transposed: glob patterns of matrices that are stored as (inputs, outputs); None finds that
            out, and no pattern says that there are none.
        model_type: the network's architecture, where its directory says so.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    transposed: tuple[str, ...] | None = None
    model_type: str = ""


def account_for(
    tensors: Sequence[StoredTensor], choice: Choice, source: str
) -> tuple[Account, list[StoredTensor]]:
    """Decides which tensors are weights on analogue devices.

    Args:
        tensors: all tensors of the network.
        choice: the user's wishes.
        source: the network, for messages.

    Returns:
        the account, and the tensors to be taken, as (outputs, inputs, ...).

    Raises:
        InvalidArgument: a pattern matches no name, no tensor is left, or weights are packed in a
            way that cannot be read.
    """
    names = [tensor.name for tensor in tensors]
    if any(".analog_module." in name for name in names):
        raise InvalidArgument(
            f"weights {source!r} is the state of a network that aihwkit converted: give "
            "path/file.py:function, a function that loads it into the network and returns that."
        )
    for argument in ("include", "exclude", "transposed"):
        for pattern in getattr(choice, argument) or ():
            _check_pattern(pattern, argument, names, source)
    tensors, scales = dequantised(tensors)
    ties = _ties(tensors)
    turned = _transposed(tensors, choice)
    entries, decided = [], []
    for tensor in tensors:
        known = tensor.known or _known_by_name(tensor, tensors)
        is_doubtful = tensor.known is None and _is_doubtful(tensor)
        tensor = replace(tensor.transposed() if tensor.name in turned else tensor, known=known)
        decided.append(tensor)
        reason = _reason_to_skip(tensor, known, choice, is_alone=len(tensors) == 1)
        if tensor.name in scales:
            reason = f"it scales {scales[tensor.name]}"
        elif not reason and not choice.include and ties.get(tensor.name):
            reason = _tied_embedding(ties[tensor.name], tensor)
        remark = turned.get(tensor.name, "")
        if is_doubtful and not remark:
            remark = "square: taken as outputs × inputs unless --transposed names it"
        entry = AccountedTensor(
            tensor.name, known.kind, tensor.shape, known.blocks,
            DIGITAL if reason else ANALOGUE, reason or remark,
            counts=tensor.type_name in _REAL_TYPES, is_named=tensor.is_named,
        )  # fmt: skip
        entries.append(entry)
    account = Account(source, tuple(_count_tied_once(entries, ties)))
    taken = {entry.name for entry in account.analogue if entry.counts}
    if not taken:
        has = _some([f"{entry.name} ({entry.because})" for entry in account.tensors])
        raise InvalidArgument(
            f"weights {source!r} has no tensor that counts as a weight: it has {has}; include "
            "patterns such as '*' choose by name."
        )
    return account, [tensor for tensor in decided if tensor.name in taken]


def _reason_to_skip(tensor: StoredTensor, known: Known, choice: Choice, *, is_alone: bool) -> str:
    """Why a tensor is not taken; empty if it is."""
    if any(fnmatchcase(tensor.name, pattern) for pattern in choice.exclude):
        return "it is excluded"
    if choice.include and not any(fnmatchcase(tensor.name, p) for p in choice.include):
        return "no pattern includes it"
    if tensor.type_name not in _REAL_TYPES:
        if is_packed(tensor):
            raise InvalidArgument(
                f"weights {tensor.name!r} of {tensor.place} are packed as {tensor.type_name}, in a "
                "way that cannot be read: give the checkpoint as it was before quantisation, or "
                "exclude these."
            )
        return f"its type is {tensor.type_name}"
    if tensor.count == 0 or not tensor.shape:
        return "it is 0-d" if tensor.count else "it is empty"
    if choice.include or (is_alone and not tensor.is_named):
        return ""
    if not 2 <= len(tensor.shape) <= 5:
        return f"it is {len(tensor.shape)}-d"
    return known.digital_because


def _known_by_name(tensor: StoredTensor, tensors: Sequence[StoredTensor]) -> Known:
    """What the name and the shape of a file's tensor say of the layer that holds it."""
    *_, layer, name = ["", *tensor.name.lower().split(".")]
    is_matrix = len(tensor.shape) == 2
    if not tensor.is_named:
        return Known(layers.LINEAR if is_matrix else layers.CONVOLUTION)
    if _RECURRENT_NAME.fullmatch(name):
        prefix = tensor.name.rpartition(".")[0]
        has_projections = any(t.name.startswith(f"{prefix}.weight_hr_l") for t in tensors)
        reason = layers.WITH_PROJECTIONS if has_projections else ""
        return Known(layers.RECURRENT, digital_because=reason)
    if name == "in_proj_weight" and is_matrix and tensor.shape[0] == 3 * tensor.shape[1]:
        return Known(layers.ATTENTION, blocks=3)
    if not _WEIGHT_NAME.fullmatch(name):
        return Known(layers.OTHER, digital_because="its name is not that of a weight")
    if _NORMALISATION_NAME.fullmatch(layer):
        return Known(layers.NORMALISATION, digital_because=layers.IS_NORMALISATION)
    if is_matrix and _EMBEDDING_NAME.fullmatch(layer):
        return Known(layers.EMBEDDING, digital_because=layers.IS_EMBEDDING)
    if is_matrix:
        return Known(layers.LINEAR)
    # Kernels with one input for several outputs are depthwise, but for a network's first ones.
    is_first = next(t for t in tensors if len(t.shape) == len(tensor.shape)) is tensor
    is_depthwise = tensor.shape[1:2] == (1,) and tensor.shape[0] > 1 and not is_first
    return Known(layers.CONVOLUTION, digital_because=layers.DEPTHWISE if is_depthwise else "")


def _ties(tensors: Sequence[StoredTensor]) -> dict[str, list[str]]:
    """The names of tensors that share their memory, by each of these names."""
    of_storage: dict[object, list[str]] = {}
    for tensor in tensors:
        if tensor.storage is not None:
            of_storage.setdefault(tensor.storage, []).append(tensor.name)
    tied = [names for names in of_storage.values() if len(names) > 1]
    tied += [[tensor.name, *tensor.aliases] for tensor in tensors if tensor.aliases]
    return {name: names for names in tied for name in names}


def _tied_embedding(tied: Sequence[str], tensor: StoredTensor) -> str:
    """The reason that a matrix lies on no tile because it is an embedding, too; or none."""
    for name in tied:
        *_, layer, _ = ["", *name.lower().split(".")]
        if len(tensor.shape) == 2 and _EMBEDDING_NAME.fullmatch(layer):
            return f"it is tied to the embedding {name}"
    return ""


def _count_tied_once(
    entries: Sequence[AccountedTensor], ties: Mapping[str, Sequence[str]]
) -> Iterator[AccountedTensor]:
    """The same entries; of those that share their memory one counts, the first on tiles."""
    by_name = {entry.name: entry for entry in entries}
    for entry in entries:
        tied = [by_name[name] for name in ties.get(entry.name, ()) if name in by_name]
        on_tiles = [other for other in tied if other.becomes == ANALOGUE]
        counting = (on_tiles or tied or [entry])[0]
        if counting is entry or not entry.counts:
            yield entry
        elif entry.becomes == ANALOGUE:
            remark = f"tied to {counting.name}, and counted there"
            yield replace(entry, because=remark, counts=False)
        else:
            yield replace(entry, counts=False)


def _transposed(tensors: Sequence[StoredTensor], choice: Choice) -> dict[str, str]:
    """The matrices that are stored as (inputs, outputs), by name, and how that is known."""
    found = {
        tensor.name: "stored as inputs × outputs"
        for tensor in tensors
        if tensor.known is not None and tensor.known.is_transposed
    }
    of_files = [tensor for tensor in tensors if tensor.known is None]
    if choice.transposed is not None:
        return found | {
            tensor.name: "stored as inputs × outputs, as told"
            for tensor in of_files
            for pattern in choice.transposed
            if fnmatchcase(tensor.name, pattern) and len(tensor.shape) == 2
        }
    shapes = {tensor.name: tensor.shape for tensor in of_files}
    for tensor in of_files:
        path, _, name = tensor.name.rpartition(".")
        is_oblong = name == "weight" and len(tensor.shape) == len(set(tensor.shape)) == 2
        if is_oblong and shapes.get(f"{path}.bias") == tensor.shape[1:]:
            found[tensor.name] = "stored as inputs × outputs, as its bias shows"
    doubtful = [tensor.name for tensor in of_files if _is_doubtful(tensor)]
    is_gpt2 = bool(found) or choice.model_type in _GPT2_MODELS
    how = "square; stored as inputs × outputs like the layers beside it"
    return found | (dict.fromkeys(doubtful, how) if is_gpt2 else {})


def _is_doubtful(tensor: StoredTensor) -> bool:
    """Whether a matrix may be GPT-2's, and is square, so that its bias does not tell."""
    path, _, name = tensor.name.rpartition(".")
    is_square = name == "weight" and len(tensor.shape) == 2 and len(set(tensor.shape)) == 1
    return is_square and bool(_GPT2_NAME.fullmatch(path.rpartition(".")[2]))


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
