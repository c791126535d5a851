"""Progress bars, where somebody watches them: in terminals and in notebooks."""

from __future__ import annotations

import builtins
import sys
from typing import Any

from tqdm.auto import tqdm


def progress_bar(is_wanted: bool, **options: Any) -> tqdm:
    """A progress bar, which shows nothing if it is not wanted, or nobody would see it move.

    Args:
        is_wanted: whether to show it.
        **options: tqdm's.
    """
    is_watched = sys.stderr.isatty() or hasattr(builtins, "__IPYTHON__")
    return tqdm(disable=not (is_wanted and is_watched), **options)
