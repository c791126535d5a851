"""Threads and processes that share out a batch."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from wpo_optuna.loss.base import LossEngine
from wpo_optuna.network.references import import_files, imported_files

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

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


class ParallelEngine(LossEngine):
    """Evaluates each batch on several processes; the values are those of the engine itself.

    Worth it for aihwkit's tile, which takes a good part of a second per ten strategies; the other
    engines are faster than the way to another process.

    Args:
        engine: the engine; each process gets a copy.
        workers: number of processes; -1 takes one per core.

    Attributes:
        workers: number of processes.
    """

    def __init__(self, engine: LossEngine, workers: int) -> None:
        self.problem = engine.problem
        self.name = engine.name
        self._engine = engine
        self.workers = workers if workers > 0 else os.cpu_count() or 1
        # A forked copy of torch's thread pools can hang.
        self._pool = ProcessPoolExecutor(
            self.workers,
            mp_context=get_context("spawn"),
            initializer=_adopt,
            # Pickled here, as the files that define the user's hardware must be imported first.
            initargs=(imported_files(), pickle.dumps(engine)),
        )

    def tnmse(self, x: ArrayLike, seed: int | None = None) -> NDArray[np.float64]:
        """See :meth:`LossEngine.tnmse`."""
        return self.tnmse_and_conductance(x, seed)[0]

    def tnmse_and_conductance(
        self, x: ArrayLike, seed: int | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """See :meth:`LossEngine.tnmse_and_conductance`."""
        points = self.problem.hypercube.check_points(x)
        shares = [share for share in np.array_split(points, self.workers) if len(share)]
        evaluated = list(self._pool.map(_evaluated, shares, [seed] * len(shares)))
        known = [conductance for _, conductance in evaluated if conductance is not None]
        tnmse = np.concatenate([values for values, _ in evaluated])
        return tnmse, np.concatenate(known) if known else None

    def tnmse_of(
        self, converter: BaseConductanceConverter, repeats: int = 100, seed: int = 0
    ) -> NDArray[np.float64]:
        """See :meth:`LossEngine.tnmse_of`; not shared out."""
        return self._engine.tnmse_of(converter, repeats, seed)

    def conductance(self, x: ArrayLike, seed: int | None = None) -> NDArray[np.float64]:
        """See :meth:`LossEngine.conductance`; not shared out."""
        return self._engine.conductance(x, seed)

    def conductance_of(
        self, converter: BaseConductanceConverter, repeats: int = 100, seed: int = 0
    ) -> NDArray[np.float64]:
        """See :meth:`LossEngine.conductance_of`; not shared out."""
        return self._engine.conductance_of(converter, repeats, seed)

    def close(self) -> None:
        """Ends the processes."""
        self._pool.shutdown(cancel_futures=True)


_adopted: LossEngine | None = None


def _adopt(files: Mapping[str, Path], pickled_engine: bytes) -> None:
    """Keeps a process's copy of the engine; the processes share the cores among themselves."""
    global _adopted
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    torch.set_num_threads(1)
    import_files(files)
    _adopted = pickle.loads(pickled_engine)


def _evaluated(
    points: NDArray[np.float64], seed: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    assert _adopted is not None
    return _adopted.tnmse_and_conductance(points, seed)
