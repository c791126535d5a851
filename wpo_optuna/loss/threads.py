"""Threads: torch computes in one of them, and batches are spread over several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch compute in this thread alone.

    The tensors of tables and tiles are so small that more threads gain a tenth, and cost ten times
    as much where they wait for a core that another program has.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The function's result for each item, computed in a thread per core; torch lets them run."""
    n_threads = min(len(items), len(os.sched_getaffinity(0)))
    with one_thread():
        if n_threads < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(n_threads) as pool:
            return list(pool.map(function, items))
