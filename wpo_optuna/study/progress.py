"""Progress bars for people: on a terminal, unless they asked for quiet."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm


class Progress:
    """Makes progress bars, or silent ones.

    Args:
        shown: whether the caller wants bars; there are none where stderr is no terminal.
    """

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown and sys.stderr.isatty()

    def say(self, what: str) -> None:
        """Tells what takes a while without a measure of it."""
        if self.shown:
            print(what, file=sys.stderr)

    @contextmanager
    def bar(self, description: str, total: int, unit: str, initial: int = 0) -> Iterator[tqdm]:
        """A bar that counts to a total."""
        from tqdm import tqdm

        with tqdm(
            total=total,
            initial=initial,
            desc=description,
            unit=unit,
            disable=not self.shown,
            dynamic_ncols=True,
            mininterval=0.2,
        ) as bar:
            yield bar
