"""How much faster several workers search than one, with aihwkit's own loss.

Workers are processes of one thread each on one study of the reference problem, in PostgreSQL or an
SQLite file. They begin together, once all have imported and prepared what they need; measured is
the time from then until the last one ends, and the processor time of all. One worker and several
take turns, and the best of each counts, because other programs only ever make a search slower. On a
busy machine several workers get more of it than one does: there the processor time tells how much
faster they are on cores of their own, as many as there are, or workers.

    python -m experiments.benchmark_workers
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from numpy.typing import ArrayLike

from experiments.reference_problem import reference_problem
from tests.postgresql_server import PostgresqlServer
from wpo_optuna.loss import make_engine
from wpo_optuna.samplers import make_sampler
from wpo_optuna.storage import load_study, open_storage
from wpo_optuna.study.mirror import Mirror, default_batch_size, sample
from wpo_optuna.study.objective import Evaluation, HypercubeObjective
from wpo_optuna.study.settings import DE_OPTIONS

_CONTEXT = multiprocessing.get_context("forkserver")
_BASELINE = 0.0738  # measuring it is no part of the search


def work(
    url: str, name: str, sampler: str, n_trials: int, number: int, barrier: Barrier, ended: Any
) -> None:
    """Searches as ``run_study`` does; sends begin and end, processor time and evaluations."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    n_evaluated = 0
    engine = make_engine("aihwkit", reference_problem())
    objective = HypercubeObjective(reference_problem(), engine, _BASELINE)
    evaluate = objective.evaluate

    def counted(x: ArrayLike) -> list[Evaluation]:
        nonlocal n_evaluated
        n_evaluated += len(np.asarray(x))
        return evaluate(x)

    objective.evaluate = counted  # type: ignore[method-assign, assignment]
    storage = open_storage(url)
    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    made = make_sampler(
        sampler, seed=1, search_space=objective.distributions, n_earlier_sessions=number,
        **(DE_OPTIONS if sampler == "de" else {}),
    )  # fmt: skip
    mirror = Mirror(study, storage, objective, made)
    evaluate(np.full((1, objective.problem.hypercube.dimension), 0.5))  # prepares the tile
    barrier.wait()
    started, processor = time.time(), time.process_time()
    sample(mirror, total=n_trials, batch_size=default_batch_size(mirror))
    ended.put((started, time.time(), time.process_time() - processor, n_evaluated))


@dataclass(frozen=True)
class Search:
    """What a search of all workers took: seconds, seconds of processor, and evaluations."""

    wall: float
    processor: float
    n_evaluated: int


def search(url: str, name: str, sampler: str, n_trials: int, n_workers: int) -> Search:
    """Searches with so many workers."""
    barrier, ended = _CONTEXT.Barrier(n_workers), _CONTEXT.SimpleQueue()
    workers = [
        _CONTEXT.Process(
            target=work, args=(url, name, sampler, n_trials, number, barrier, ended), daemon=True
        )
        for number in range(n_workers)
    ]
    for worker in workers:
        worker.start()
    told = [ended.get() for _ in workers]
    if len(load_study(url, name).trials) != n_trials:
        raise AssertionError("other than so many trials")
    started, ends, processor, n_evaluated = zip(*told, strict=True)
    return Search(max(ends) - min(started), sum(processor), sum(n_evaluated))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-trials", type=int, default=600)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samplers", nargs="+", default=["random", "de"])
    parser.add_argument("--storages", nargs="+", default=["sqlite", "postgresql"])
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    _CONTEXT.set_forkserver_preload(["experiments.reference_problem", "wpo_optuna.study.mirror"])
    several = options.workers
    n_cores = min(several, len(os.sched_getaffinity(0)))
    print(
        f"| sampler | storage | 1 worker | {several} workers | as fast | processor time "
        f"| evaluated | as fast on {n_cores} free cores |\n|{8 * '---|'}"
    )
    for storage in options.storages:
        server = PostgresqlServer() if storage == "postgresql" else None
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{Path(folder)}/wpo.db" if server is None else server.url
            for sampler in options.samplers:
                taken: dict[int, list[Search]] = {1: [], several: []}
                for repeat in range(options.repeats):
                    for n_workers, found in taken.items():
                        name = f"{sampler}-{n_workers}-{repeat}"
                        found.append(search(url, name, sampler, options.n_trials, n_workers))
                wall = [min(s.wall for s in found) for found in taken.values()]
                processor = [min(s.processor for s in found) for found in taken.values()]
                evaluated = [min(s.n_evaluated for s in found) for found in taken.values()]
                print(
                    f"| {sampler} | {storage} | {wall[0]:.1f} s | {wall[1]:.1f} s "
                    f"| {wall[0] / wall[1]:.2f} times | {processor[0]:.1f} s, {processor[1]:.1f} s "
                    f"| {evaluated[0]}, {evaluated[1]} "
                    f"| {n_cores * processor[0] / processor[1]:.2f} times |", flush=True,
                )  # fmt: skip
        if server is not None:
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
