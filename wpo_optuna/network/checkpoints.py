"""Checkpoint files: what tensors they hold, and reading these without holding the file in memory.

Nothing is ever unpickled but tensors: PyTorch files are read with ``weights_only=True``, numpy
files with ``allow_pickle=False``.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from wpo_optuna.errors import InvalidArgument, did_you_mean, first_line
from wpo_optuna.network.tensors import (
    Index,
    StoredTensor,
    state_dict_of,
    tensors_of_network,
)

_HUGGING_FACE_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# As safetensors and torch name them.
_TORCH_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "BOOL": "bool", "U8": "uint8",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
}  # fmt: skip

# What Git leaves in a file's place until Git LFS has fetched it.
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

# Pages of a mapped file count as this process's memory once they were read, until it is closed.
_BYTES_BEFORE_REOPENING = 64 * 2**20

# Maps the nth part of a PyTorch file into memory; the last one that was asked for stays open.
OpenPart = Callable[[Path, int], dict[str, Tensor]]


def tensors_of_checkpoint(path: Path) -> tuple[StoredTensor, ...]:
    """The tensors of a checkpoint file or directory, not yet read.

    Raises:
        InvalidArgument: there is no such file, it is of an unknown kind or damaged, or holds
            anything else than tensors.
    """
    if path.is_dir():
        path = _file_of_directory(path)
    if not path.exists():
        hint = did_you_mean(str(path), map(str, path.parent.glob("*")))
        raise InvalidArgument(f"there is no such file or directory{hint}.")
    open_part = lru_cache(maxsize=1)(lambda path, _: state_dict_of(_load_torch_file(path), ""))
    files = _shards(path) if path.name.endswith(".index.json") else [path]
    return tuple(tensor for file in files for tensor in _tensors_of_file(file, open_part))


def model_type(path: Path) -> str:
    """The architecture that a directory in Hugging Face format, or a file in it, says it has."""
    config = (path if path.is_dir() else path.parent) / "config.json"
    try:
        return str(json.loads(config.read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _tensors_of_file(path: Path, open_part: OpenPart) -> tuple[StoredTensor, ...]:
    if _is_lfs_pointer(path):
        raise InvalidArgument(
            f"{path} is a Git LFS pointer, which stands for a file that was not fetched: run "
            "`git lfs pull` in its repository."
        )
    match path.suffix.lower():
        case ".safetensors":
            return _tensors_of_safetensors(path)
        case ".pt" | ".pth" | ".bin" | ".ckpt":
            return _tensors_of_torch_file(path, open_part)
        case ".npy":
            return _tensors_of_npy(path)
        case ".npz":
            return _tensors_of_npz(path)
    raise InvalidArgument(
        f"files ending in {path.suffix!r} cannot be read; give .safetensors, .pt, .pth, .bin, "
        ".ckpt, .npy, .npz, a directory in Hugging Face format, package.module:function or "
        "path/file.py:function."
    )


def _is_lfs_pointer(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER
    return False


def _file_of_directory(directory: Path) -> Path:
    # Diffusion models and adapters name their only file, or their index, otherwise.
    kinds = ("*.safetensors.index.json", "*.bin.index.json", "*.safetensors", "*.bin")
    others = next((found for kind in kinds if (found := sorted(directory.glob(kind)))), [])
    known = [directory / name for name in _HUGGING_FACE_FILES if (directory / name).is_file()]
    if known or len(others) == 1:
        return (known or others)[0]
    names = ", ".join(other.name for other in others[:5]) or "no .safetensors file"
    parts = sorted({file.parent.name for file in directory.glob("*/*.safetensors")})
    if parts:
        raise InvalidArgument(
            f"the directory has its networks in folders of their own: give one of "
            f"{', '.join(str(directory / part) for part in parts)}."
        )
    raise InvalidArgument(
        f"the directory has none of {', '.join(_HUGGING_FACE_FILES)} (it has {names})."
    )


def _shards(index: Path) -> list[Path]:
    """The files that a Hugging Face index names."""
    with _reading(index, "index of shards with a 'weight_map'"):
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [index.parent / name for name in sorted(names)]


def _tensors_of_safetensors(path: Path) -> tuple[StoredTensor, ...]:
    def stored(name: str, header: Any, metadata: Mapping[str, str]) -> StoredTensor:
        def read(index: Index) -> Tensor:
            with safe_open(path, framework="pt") as opened:
                return opened.get_tensor(name) if index is ... else opened.get_slice(name)[index]

        type_name = _TORCH_TYPES.get(header.get_dtype(), header.get_dtype().lower())
        # safetensors.torch.save_model keeps one of several tied tensors, and says so here.
        aliases = tuple(alias for alias, kept in metadata.items() if kept == name)
        return StoredTensor(
            name, tuple(header.get_shape()), type_name, str(path), read, aliases=aliases
        )

    with _reading(path, "safetensors file"), safe_open(path, framework="pt") as opened:
        metadata = opened.metadata() or {}
        names = opened.offset_keys()
        found = [stored(name, opened.get_slice(name), metadata) for name in names]
    if any(".analog_module." in tensor.name for tensor in found):
        state = {tensor.name: tensor.read(...) for tensor in found}
        return tensors_of_network(state, str(path))
    return tuple(found)


def _tensors_of_torch_file(path: Path, open_part: OpenPart) -> tuple[StoredTensor, ...]:
    network = _load_torch_file(path)
    if isinstance(network, Tensor) or not zipfile.is_zipfile(path):
        return tensors_of_network(network, str(path))
    n_bytes = 0

    def stored(name: str, tensor: Tensor) -> StoredTensor:
        nonlocal n_bytes
        first, of_row = n_bytes, tensor.nbytes // max(len(tensor), 1) if tensor.dim() else 0
        n_bytes += tensor.nbytes

        def read(index: Index) -> Tensor:
            rows = index[0] if isinstance(index, tuple) else index
            start = rows.start or 0 if isinstance(rows, slice) else 0
            part = (first + start * of_row) // _BYTES_BEFORE_REOPENING
            return open_part(path, part)[name][index]

        # The tensor itself is let go of, and with it this mapping of the file.
        return replace(StoredTensor.of(name, tensor, str(path)), read=read)

    return tuple(stored(*item) for item in state_dict_of(network, str(path)).items())


def _load_torch_file(path: Path) -> object:
    try:
        # Files of PyTorch before 1.6 are not zip archives and cannot be mapped, only read whole.
        is_archive = zipfile.is_zipfile(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns of, the error below says
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:  # whatever a damaged pickle makes the unpickler raise
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        if forbidden and forbidden[1].startswith("aihwkit"):
            raise InvalidArgument(
                f"{path} is the state of a converted aihwkit network, which holds objects of "
                f"Python beside tensors ({forbidden[1]}), and nothing but tensors is ever "
                "unpickled: give path/file.py:function, a function that loads the file into the "
                "network (model.load_state_dict(torch.load(path, weights_only=False))) and "
                "returns it."
            ) from error
        reason = f"it holds {forbidden[1]}" if forbidden else "it may be damaged, or a TorchScript"
        raise InvalidArgument(
            f"{path} is not a complete PyTorch file of tensors alone ({reason}), and nothing else "
            "is ever unpickled: save a state dict (torch.save(model.state_dict(), ...)), or give "
            "path/file.py:function returning the model."
        ) from error


def _tensors_of_npy(path: Path) -> tuple[StoredTensor, ...]:
    def load() -> np.ndarray:
        with _reading(path, "numpy file of numbers"):
            return np.load(path, mmap_mode="r", allow_pickle=False)

    return (_stored_array("weights", load, path),)


def _tensors_of_npz(path: Path) -> tuple[StoredTensor, ...]:
    with _reading(path, "numpy archive of numbers"):
        archive = np.load(path, allow_pickle=False)
        names = list(archive)

    # A compressed array can only be read whole; the last is kept for the blocks that follow.
    @lru_cache(maxsize=1)
    def load(name: str) -> np.ndarray:
        with _reading(path, f"numpy archive of numbers at {name!r}"):
            return archive[name]

    return tuple(_stored_array(name, partial(load, name), path) for name in names)


def _stored_array(name: str, load: Callable[[], np.ndarray], path: Path) -> StoredTensor:
    def read(index: Index) -> Tensor:
        part = load()[index]
        return torch.from_numpy(np.array(part, dtype=part.dtype.newbyteorder("=")))

    array = load()
    return StoredTensor(name, array.shape, array.dtype.name, str(path), read, is_named=False)


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Says in one sentence what other libraries raise over a file."""
    try:
        yield
    except Exception as error:
        raise InvalidArgument(f"{path} is not a complete {kind}: {first_line(error)}.") from error
