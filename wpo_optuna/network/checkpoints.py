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
from contextlib import contextmanager
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

# What a directory in Hugging Face format has; diffusion models and adapters name their only file,
# or their index, otherwise.
_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "*.safetensors.index.json", "*.bin.index.json",
    "*.safetensors", "*.bin",
)  # fmt: skip

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
    path = _file_of_directory(path) if path.is_dir() else path
    files = _shards(path) if path.name.endswith(".index.json") else [path]
    open_part = lru_cache(maxsize=1)(lambda path, _: state_dict_of(_load_torch_file(path), ""))
    return tuple(tensor for file in files for tensor in _tensors_of_file(file, open_part))


def model_type(path: Path) -> str:
    """The architecture that a directory in Hugging Face format, or a file in it, says it has."""
    config = (path if path.is_dir() else path.parent) / "config.json"
    try:
        return str(json.loads(config.read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _tensors_of_file(path: Path, open_part: OpenPart) -> tuple[StoredTensor, ...]:
    if not path.is_file():
        hint = did_you_mean(str(path), map(str, path.parent.glob("*")))
        raise InvalidArgument(f"there is no such file as {path}{hint}.")
    with reading(path, "file"), path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise InvalidArgument(
            f"{path} is a Git LFS pointer, which stands for a file that was not fetched: run "
            "`git lfs pull` in its repository."
        )
    match path.suffix.lower():
        case ".safetensors":
            return _tensors_of_safetensors(path)
        case ".pt" | ".pth" | ".bin" | ".ckpt":
            return _tensors_of_torch_file(path, open_part)
        case ".npy" | ".npz":
            return _tensors_of_numpy_file(path)
    raise InvalidArgument(
        f"files ending in {path.suffix!r} cannot be read; give .safetensors, .pt, .pth, .bin, "
        ".ckpt, .npy, .npz, a directory in Hugging Face format, package.module:function or "
        "path/file.py:function."
    )


def _file_of_directory(directory: Path) -> Path:
    found = next(filter(None, (sorted(directory.glob(name)) for name in _FILES)), [])
    if len(found) == 1:
        return found[0]
    others = found or sorted(directory.glob("*/*.safetensors"))
    has = ", ".join(str(file.relative_to(directory)) for file in others[:5])
    raise InvalidArgument(
        f"the directory has none of {', '.join(_FILES[:4])}: give one of its files, or a folder in "
        f"it (it has {has or 'no weights'})."
    )


def _shards(index: Path) -> list[Path]:
    """The files that a Hugging Face index names."""
    with reading(index, "index of shards with a 'weight_map'"):
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

    with reading(path, "safetensors file"), safe_open(path, framework="pt") as opened:
        metadata = opened.metadata() or {}
        names = opened.offset_keys()
        return tuple(stored(name, opened.get_slice(name), metadata) for name in names)


def _tensors_of_torch_file(path: Path, open_part: OpenPart) -> tuple[StoredTensor, ...]:
    network = _load_torch_file(path)
    if isinstance(network, Tensor) or not zipfile.is_zipfile(path):
        return tensors_of_network(network, str(path))

    def stored(name: str, tensor: Tensor) -> StoredTensor:
        in_memory = StoredTensor.of(name, tensor, str(path))
        part = 0 if in_memory.storage is None else tensor.data_ptr() // _BYTES_BEFORE_REOPENING
        # The tensor itself is let go of, and with it this mapping of the file.
        return replace(in_memory, read=lambda index: open_part(path, part)[name][index])

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
        reason = f"it holds {forbidden[1]}" if forbidden else "it may be damaged, or a TorchScript"
        raise InvalidArgument(
            f"{path} is not a complete PyTorch file of tensors alone ({reason}), and nothing else "
            "is ever unpickled: save a state dict (torch.save(model.state_dict(), ...)), or give "
            "path/file.py:function returning the model."
        ) from error


def _tensors_of_numpy_file(path: Path) -> tuple[StoredTensor, ...]:
    def load(name: str) -> np.ndarray:
        with reading(path, "numpy file of numbers"):
            loaded = np.load(path, mmap_mode="r", allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else loaded[name]

    names = ["weights"]
    if path.suffix.lower() == ".npz":
        with reading(path, "numpy archive of numbers"):
            names = np.load(path, allow_pickle=False).files
        # A compressed array can only be read whole; the last is kept for the blocks that follow.
        load = lru_cache(maxsize=1)(load)
    return tuple(_stored_array(name, partial(load, name), path) for name in names)


def _stored_array(name: str, load: Callable[[], np.ndarray], path: Path) -> StoredTensor:
    def read(index: Index) -> Tensor:
        part = load()[index]
        return torch.from_numpy(np.array(part, dtype=part.dtype.newbyteorder("=")))

    array = load()
    return StoredTensor(name, array.shape, array.dtype.name, str(path), read, is_named=False)


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Says in one sentence what other libraries raise over a file."""
    try:
        yield
    except Exception as error:
        raise InvalidArgument(f"{path} is not a complete {kind}: {first_line(error)}.") from error
