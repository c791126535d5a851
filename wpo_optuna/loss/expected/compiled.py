"""Functions compiled by JAX, kept on disk as executables.

JAX has a cache on disk of its own, but it is set for the whole process, and the way to it, tracing
and lowering, takes a second. Here an executable is found by the hash of what it was made from.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jaxlib
from jax.experimental.serialize_executable import deserialize_and_load, serialize

# Each function runs in the thread that calls it: XLA's own threads cost more than they gain.
_OPTIONS: dict[str, str | bool] = {"xla_cpu_multi_thread_eigen": False}

_SOURCES = (
    "compiled.py", "decode.py", "evaluation.py", "gamma_excess.py", "loss.py", "tables.py"
)  # fmt: skip

_in_memory: dict[Any, Callable[..., Any]] = {}


@contextmanager
def on_cpu() -> Iterator[None]:
    """JAX on the processor and in double precision, in this thread and as long as it lasts."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        yield


def compiled(
    function: Callable[..., Any], statics: tuple[Any, ...], arguments: Sequence[Any]
) -> Callable[..., Any]:
    """A function as compiled for the shapes of its arguments, to be called inside :func:`on_cpu`.

    Args:
        function: of ``arguments`` and ``statics``, in this order.
        statics: NamedTuples of plain values that are compiled in.
        arguments: trees of arrays; shapes and types matter.
    """
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arguments))
    known = function, statics, shapes
    # Without a lock: one function may be compiled in a thread while another is in use.
    if known not in _in_memory:
        told = repr((_origin(), function.__name__, statics, shapes))
        key = hashlib.sha256(told.encode()).hexdigest()
        _in_memory[known] = _from_disk(key) or _compile(key, function, statics, arguments)
    return _in_memory[known]


def _compile(
    key: str, function: Callable[..., Any], statics: tuple[Any, ...], arguments: Sequence[Any]
) -> Callable[..., Any]:
    with on_cpu():
        jitted = jax.jit(lambda *arrays: function(*arrays, *statics))
        executable = jitted.lower(*arguments).compile(compiler_options=_OPTIONS)
    _to_disk(key, executable)
    return executable


def _from_disk(key: str) -> Callable[..., Any] | None:
    folder = cache_folder()
    if folder is None:
        return None
    try:
        code, in_tree, out_tree = pickle.loads((folder / key).read_bytes())
        devices = jax.devices("cpu")[:1]
        return deserialize_and_load(code, in_tree, out_tree, execution_devices=devices)
    # Whatever is wrong with a file, compiling helps.
    except Exception:
        return None


def _to_disk(key: str, executable: Any) -> None:
    folder = cache_folder()
    if folder is None:
        return
    try:
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            pickle.dump(serialize(executable), file)
        # In one step: another process finds all of it or nothing.
        os.replace(file.name, folder / key)
    # A full disk must not end a study.
    except (OSError, ValueError, NotImplementedError):
        return


def cache_folder() -> Path | None:
    """Where executables are kept: the user's folder for caches, else one among temporary files.

    Returns:
        A folder that belongs to this user and nobody else can write to, as what is in it is
        executed; None if there is none.
    """
    user = os.getuid()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for folder in (home / "wpo_optuna", Path(tempfile.gettempdir()) / f"wpo_optuna-{user}"):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            status = folder.lstat()
        except OSError:
            continue
        is_own = status.st_uid == user and not status.st_mode & 0o022
        if folder.is_dir() and is_own and os.access(folder, os.W_OK):
            return folder
    return None


@cache
def _origin() -> tuple[str, ...]:
    """What executables depend on beside the function itself."""
    sources = hashlib.sha256()
    for name in _SOURCES:
        sources.update((Path(__file__).parent / name).read_bytes())
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        processor = platform.processor()
    return (sources.hexdigest(), jax.__version__, jaxlib.__version__, platform.machine(), processor)
