"""Checkpoint files: what tensors they hold, and reading these without holding the file in memory.

Nothing is ever unpickled but tensors: PyTorch files are read with ``weights_only=True``, numpy
files with ``allow_pickle=False``.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.network.networks import state_dict_of, stored_tensor
from wpo_optuna.network.stored_tensor import Index, StoredTensor

ACCEPTED = (
    ".safetensors, .pt, .pth, .bin, .ckpt, .npy, .npz, a directory in Hugging Face format, "
    "package.module:function or path/file.py:function"
)

# Pages of a mapped file count as this process's memory once they were read, until the file is
# closed. It is therefore opened anew after so many bytes.
_BYTES_BEFORE_REOPENING = 64 * 2**20

_HUGGING_FACE_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class OpenFile:
    """The one file of a checkpoint that is open at a time."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._contents: Any = None
        self._bytes_read = 0

    def read(
        self,
        path: Path,
        open_file: Callable[[Path], Any],
        select: Callable[[Any], Tensor],
        is_mapped: bool = True,
    ) -> Tensor:
        """Read a tensor from a file, opening the file if need be.

        Args:
            path: Which file.
            open_file: Opens it.
            select: Takes the tensor from what ``open_file`` returned.
            is_mapped: Whether the file is mapped into memory, not copied to it; then it is opened
                anew from time to time.
        """
        is_worn = is_mapped and self._bytes_read > _BYTES_BEFORE_REOPENING
        if path != self._path or is_worn:
            self._path, self._contents = None, None  # let go of one before the next is opened
            self._contents = open_file(path)
            self._path, self._bytes_read = path, 0
        tensor = select(self._contents)
        self._bytes_read += tensor.nbytes
        return tensor


def tensors_of_checkpoint(path: Path) -> tuple[StoredTensor, ...]:
    """The tensors of a checkpoint file or directory, not yet read.

    Raises:
        InvalidArgument: If there is no such file, it is of an unknown kind or damaged, or holds
            anything else than tensors.
    """
    if path.is_dir():
        return _tensors_of_directory(path)
    if not path.exists():
        beside = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
        close = get_close_matches(str(path), beside, n=1, cutoff=0.7)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        raise InvalidArgument(f"weights {str(path)!r}: there is no such file or directory{meant}.")
    return _tensors_of_file(path, OpenFile())


def _tensors_of_file(path: Path, open_file: OpenFile) -> tuple[StoredTensor, ...]:
    readers = {
        ".safetensors": _tensors_of_safetensors,
        ".pt": _tensors_of_torch_file,
        ".pth": _tensors_of_torch_file,
        ".bin": _tensors_of_torch_file,
        ".ckpt": _tensors_of_torch_file,
        ".npy": _tensors_of_npy,
        ".npz": _tensors_of_npz,
    }
    if path.name.endswith(".index.json"):
        return _tensors_of_shards(path, open_file)
    if path.suffix.lower() not in readers:
        raise InvalidArgument(
            f"weights {str(path)!r}: files ending in {path.suffix!r} cannot be read; "
            f"give {ACCEPTED}."
        )
    return readers[path.suffix.lower()](path, open_file)


def _tensors_of_directory(directory: Path) -> tuple[StoredTensor, ...]:
    open_file = OpenFile()
    for name in _HUGGING_FACE_FILES:
        if (directory / name).is_file():
            return _tensors_of_file(directory / name, open_file)
    # Diffusion models and adapters name their only file otherwise.
    others = sorted(directory.glob("*.safetensors"))
    if len(others) == 1:
        return _tensors_of_file(others[0], open_file)
    names = ", ".join(other.name for other in others[:5]) or "no .safetensors file"
    raise InvalidArgument(
        f"weights {str(directory)!r}: the directory has none of {', '.join(_HUGGING_FACE_FILES)} "
        f"(it has {names})."
    )


def _tensors_of_shards(index: Path, open_file: OpenFile) -> tuple[StoredTensor, ...]:
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({str(shard) for shard in shard_of.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidArgument(
            f"{index} is not an index of Hugging Face shards: it has no readable 'weight_map'."
        ) from error
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise InvalidArgument(
            f"{index} names {len(missing)} of {len(shards)} files that are not there: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}."
        )
    tensors = tuple(
        tensor for shard in shards for tensor in _tensors_of_file(index.parent / shard, open_file)
    )
    absent = sorted(set(shard_of) - {tensor.name for tensor in tensors})
    if absent:
        raise InvalidArgument(
            f"{index} names {len(absent)} tensors that are in none of its files, "
            f"such as {absent[0]!r}."
        )
    return tensors


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise InvalidArgument(
            f"{path} is not a complete safetensors file: {_in_one_line(error)}."
        ) from error


def _tensors_of_safetensors(path: Path, open_file: OpenFile) -> tuple[StoredTensor, ...]:
    opened = _open_safetensors(path)
    return tuple(
        _safetensor(name, opened.get_slice(name), path, open_file) for name in opened.offset_keys()
    )


def _safetensor(name: str, header: Any, path: Path, open_file: OpenFile) -> StoredTensor:
    def read(index: Index) -> Tensor:
        return open_file.read(path, _open_safetensors, lambda file: file.get_slice(name)[index])

    types = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    types |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
    dtype = types.get(header.get_dtype())
    return StoredTensor(
        name=name,
        shape=tuple(header.get_shape()),
        type_name=dtype or header.get_dtype(),
        is_real=dtype is not None,
        place=str(path),
        read=read,
    )


def _tensors_of_torch_file(path: Path, open_file: OpenFile) -> tuple[StoredTensor, ...]:
    network = _load_torch_file(path)
    is_bare = isinstance(network, Tensor)
    is_mapped = zipfile.is_zipfile(path)

    def stored(name: str, tensor: Tensor) -> StoredTensor:
        def read(index: Index) -> Tensor:
            return open_file.read(
                path, _load_named_tensors, lambda tensors: tensors[name][index], is_mapped
            )

        in_memory = stored_tensor(name, tensor, str(path), is_whole_network=is_bare)
        return replace(in_memory, read=read)

    return tuple(stored(name, tensor) for name, tensor in _named_tensors(network, path).items())


def _load_named_tensors(path: Path) -> dict[str, Tensor]:
    return _named_tensors(_load_torch_file(path), path)


def _named_tensors(network: object, path: Path) -> dict[str, Tensor]:
    return (
        {"weights": network} if isinstance(network, Tensor) else state_dict_of(network, str(path))
    )


def _load_torch_file(path: Path) -> object:
    try:
        with path.open("rb") as file:
            starts_as_archive = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {_in_one_line(error)}.") from error
    # Files of PyTorch before 1.6 are not zip archives and cannot be mapped, only read whole.
    is_archive = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns of, the error below says
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:  # whatever a damaged pickle makes the unpickler raise
        complaint = _torch_complaint(error, starts_as_archive)
        raise InvalidArgument(f"{path} {complaint}.") from error


def _torch_complaint(error: Exception, starts_as_archive: bool) -> str:
    forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
    if forbidden:
        return (
            f"holds Python objects ({forbidden[1]}), which are never unpickled: save a state dict "
            "(torch.save(model.state_dict(), ...)), or give path/file.py:function returning the "
            "model"
        )
    if "TorchScript" in str(error):
        return (
            "is a TorchScript archive, which holds code: save a state dict, or give "
            "path/file.py:function returning torch.jit.load(...)"
        )
    if starts_as_archive or isinstance(error, EOFError) or "unexpected EOF" in str(error):
        return "is damaged or incomplete: it breaks off before its end"
    return "is not a PyTorch checkpoint of tensors, or it is damaged"


def _open_npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InvalidArgument(_npy_complaint(str(path), error)) from error
    return array


def _tensors_of_npy(path: Path, open_file: OpenFile) -> tuple[StoredTensor, ...]:
    def read(index: Index) -> Tensor:
        return open_file.read(path, _open_npy, lambda array: _as_tensor(array[index]))

    array = _open_npy(path)
    return (_stored_array("weights", array.shape, array.dtype, str(path), read, whole=True),)


def _tensors_of_npz(path: Path, open_file: OpenFile) -> tuple[StoredTensor, ...]:
    headers = _npz_headers(path)

    def stored(name: str, shape: tuple[int, ...], dtype: np.dtype) -> StoredTensor:
        # A compressed array can only be read whole; it is kept for the blocks that follow.
        def load(_: Path) -> np.ndarray:
            try:
                with np.load(path, allow_pickle=False) as archive:
                    return archive[name]
            except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
                raise InvalidArgument(_npy_complaint(f"{path}: {name!r}", error)) from error

        def read(index: Index) -> Tensor:
            return open_file.read(
                path / name, load, lambda array: _as_tensor(array[index]), is_mapped=False
            )

        return _stored_array(name, shape, dtype, str(path), read, whole=len(headers) == 1)

    return tuple(stored(name, *header) for name, header in headers.items())


def _npz_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of each array of an archive, without reading the arrays."""
    headers = {}
    readers = {(1, 0): np.lib.format.read_array_header_1_0}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    read_header = readers.get(version, np.lib.format.read_array_header_2_0)
                    shape, _, dtype = read_header(file)
                headers[member.removesuffix(".npy")] = (shape, dtype)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InvalidArgument(_npy_complaint(str(path), error)) from error
    return headers


def _stored_array(
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    place: str,
    read: Callable[[Index], Tensor],
    whole: bool,
) -> StoredTensor:
    # Arrays are named as their author pleased, not as PyTorch names parameters.
    kind = "array"
    is_real = dtype.kind == "f" and dtype.itemsize <= 8
    return StoredTensor(name, shape, str(dtype), is_real, place, read, kind, whole)


def _as_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))


def _npy_complaint(place: str, error: Exception) -> str:
    text = _in_one_line(error)
    if "pickle" in text or "Python objects" in text:
        return f"{place} holds Python objects, which are never unpickled; save real numbers."
    return f"{place} is not a complete numpy file: {text}."


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
