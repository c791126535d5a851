"""Compilation of the expected loss by numba, kept on disk for as long as its sources stay the same.

numba notices when the file of a cached function changes, but not when another file does whose
functions or constants were compiled into it. Here all files of the expected loss count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    # Sums may be reordered, so that they use vector registers; NaN and infinity keep their meaning,
    # since an undefined loss must come out as NaN.
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
    # Some functions are called thousands of times. And a call that stays one leads to the function
    # as compiled for itself in the process that compiles, and to its copy in the caller in those
    # that read the code from disk; the two reorder sums differently.
    "forceinline": True,
}


def compiled(function: _Function) -> _Function:
    """Compiles a function on first use, into those that call it."""
    try:
        dispatcher: Any = njit(**_OPTIONS, cache=True)(function)
    # numba finds no folder to write to: every process compiles for itself.
    except RuntimeError:
        return njit(**_OPTIONS)(function)
    # Without compilation (NUMBA_DISABLE_JIT) it stays the function it was.
    if hasattr(dispatcher, "_cache"):
        # What numba compares to tell whether a cached function is up to date.
        dispatcher._cache._cache_file._source_stamp = _STAMP
    return dispatcher


def hash_of_sources(folder: Path) -> str:
    """Hash of all files in a folder whose functions or constants are compiled together."""
    contents = hashlib.sha256()
    for pattern in ("compiled.py", "expected*.py", "gamma_excess.py"):
        for path in sorted(folder.glob(pattern)):
            contents.update(path.read_bytes())
    return contents.hexdigest()


_STAMP = hash_of_sources(Path(__file__).parent)
