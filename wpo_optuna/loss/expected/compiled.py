"""Functions compiled by JAX, kept on disk as executables.

JAX has a cache on disk of its own, but it is set for the whole process, and the way to it, tracing
and lowering, takes a second. Here an executable is found by the hash of what it was made from.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile, gettempdir
from typing import Any

import jax
import jaxlib
from jax.experimental.serialize_executable import deserialize_and_load, serialize

from wpo_optuna.errors import InvalidArgument, first_line

# Each function runs in the thread that calls it: XLA's own threads cost more than they gain.
_OPTIONS: dict[str, dict[str, str | bool]] = {"cpu": {"xla_cpu_multi_thread_eigen": False}}


def jax_device(name: str) -> jax.Device:
    """JAX's device of a name as torch has them: ``cpu``, ``cuda``, ``cuda:1``.

    Raises:
        InvalidArgument: JAX finds none.
    """
    platform, _, index = name.partition(":")
    try:
        return jax.devices(platform)[int(index or 0)]
    except (RuntimeError, IndexError, ValueError) as error:
        raise InvalidArgument(
            f"device = {name!r} cannot be used by the expected engine ({first_line(error)}): give "
            'cpu, or pip install "wpo-optuna[cuda]", with which JAX finds a GPU.'
        ) from error


@contextmanager
def on(device: jax.Device) -> Iterator[None]:
    """JAX on a device and in double precision, in this thread and as long as it lasts."""
    with jax.enable_x64(True), jax.default_device(device):
        yield


def compiled(
    function: Callable[..., Any],
    statics: tuple[Any, ...],
    arguments: tuple[Any, ...],
    device: jax.Device,
) -> Callable[..., Any]:
    """A function as compiled for the shapes of its arguments, to be called inside :func:`on`.

    Args:
        function: of ``arguments`` and ``statics``, in this order.
        statics: NamedTuples of plain values that are compiled in.
        arguments: trees of arrays; shapes and types matter.
        device: where it is to run.
    """
    leaves, tree = jax.tree.flatten(arguments)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    return _executable(function, statics, tree, shapes, device)


@cache
def _executable(
    function: Callable[..., Any],
    statics: tuple[Any, ...],
    tree: Any,
    shapes: tuple[Any, ...],
    device: jax.Device,
) -> Callable[..., Any]:
    """The function as found on disk, or compiled and put there."""
    told = repr((_origin(), device.device_kind, function.__name__, statics, tree, shapes))
    name = hashlib.sha256(told.encode()).hexdigest()
    # Whatever is wrong with a file, compiling helps.
    with suppress(Exception):
        code, in_tree, out_tree = pickle.loads((_cache_folder() / name).read_bytes())
        return deserialize_and_load(code, in_tree, out_tree, execution_devices=[device])
    with on(device):
        arguments = tree.unflatten(jax.ShapeDtypeStruct(*shape) for shape in shapes)
        jitted = jax.jit(lambda *arrays: function(*arrays, *statics))
        executable = jitted.lower(*arguments).compile(
            compiler_options=_OPTIONS.get(device.platform)
        )
    # A full disk must not end a study.
    with suppress(OSError, ValueError):
        with NamedTemporaryFile(dir=_cache_folder(), delete=False) as file:
            pickle.dump(serialize(executable), file)
        # In one step: another process finds all of it or nothing.
        os.replace(file.name, _cache_folder() / name)
    return executable


def _cache_folder() -> Path:
    """The user's folder for caches, or one among temporary files where a home cannot be written.

    Raises:
        OSError: neither can be had, or others can write to it: what is in it is executed.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    for folder in (home / "wpo_optuna", Path(gettempdir()) / f"wpo_optuna-{os.getuid()}"):
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            status = folder.lstat()
            is_own = status.st_uid == os.getuid() and not status.st_mode & 0o022
            if folder.is_dir() and is_own and os.access(folder, os.W_OK):
                return folder
    raise PermissionError("There is no folder that only this user can write to.")


@cache
def _origin() -> tuple[str, ...]:
    """What executables depend on beside the function itself."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    flags = {line for line in lines if line.startswith(("flags", "Features"))} or set(lines)
    return hashlib.sha256(sources).hexdigest(), jax.__version__, jaxlib.__version__, *sorted(flags)
