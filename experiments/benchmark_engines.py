"""The loss engines on the reference problem: speed, error, memory.

    python -m experiments.benchmark_engines

Every engine runs in a process of its own on one core, and beside it, in the same process, the
reference's ``loss_fxn``, so that each ratio comes from one run. The error is that against the mean
of many Monte Carlo draws, for strategies from the best to ten times the baseline.
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from aihwkit.inference.converter.wpo import WeightProgrammingOptimizer, loss_fxn
from numpy.typing import NDArray
from scipy.stats import qmc

from experiments.reference_problem import reference_problem
from wpo_optuna.loss import ENGINE_NAMES, LossEngine, make_engine
from wpo_optuna.loss.expected import ExpectedEngine
from wpo_optuna.loss.gradient_search import multi_start
from wpo_optuna.problem import WeightProgrammingProblem
from wpo_optuna.progress import Progress

BATCHES = (1, 64, 1024)

# Candidates evaluated one at a time; their cost does not depend on the batch.
_FEW = 16


@dataclass(frozen=True)
class Measurement:
    """What was measured of one engine.

    Attributes:
        engine: its name.
        preparation_time: seconds until it could evaluate (tables, compilation from the cache).
        per_second: candidates per second of processor time, by batch size.
        reference_per_second: those of the reference's ``loss_fxn`` in the same process.
        errors: relative deviation from the Monte Carlo mean for each strategy.
        peak_mib: largest memory of the process in MiB.
    """

    engine: str
    preparation_time: float
    per_second: dict[int, float]
    reference_per_second: float
    errors: list[float]
    peak_mib: float


@dataclass(frozen=True)
class Truth:
    """Strategies and their mean TNMSE over many draws.

    Attributes:
        points: strategies ``(n, d)``.
        tnmse: their means ``(n,)``.
        standard_errors: relative standard errors of the means ``(n,)``.
    """

    points: NDArray[np.float64]
    tnmse: NDArray[np.float64]
    standard_errors: NDArray[np.float64]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures all engines and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=400, help="for the Monte Carlo means (400)")
    parser.add_argument("--output", type=Path, default=Path("benchmark_engines.json"))
    options = parser.parse_args(arguments)
    truth = monte_carlo_truth(options.draws)
    measured = []
    for name in ENGINE_NAMES:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            measured.append(pool.submit(measure, name, truth).result())
        print(f"measured {name}", file=sys.stderr)
    print(table(measured, truth))
    options.output.write_text(json.dumps([asdict(m) for m in measured], indent=1))
    return 0


def monte_carlo_truth(draws: int) -> Truth:
    """Strategies from the best to ten times the baseline, with their Monte Carlo means."""
    problem = reference_problem()
    baseline = ExpectedEngine(problem).tnmse_of(problem.g_converter_baseline, 1)[0]
    points = _strategies(problem, baseline)
    engine = make_engine("montecarlo", problem)
    strategies = problem.hypercube.decode(points)
    assert isinstance(strategies, list)
    means, errors = [], []
    with Progress().bar("Monte Carlo means", len(strategies), "strategy") as bar:
        for strategy in strategies:
            drawn = engine.tnmse_of(strategy.to_converter(), repeats=draws, seed=1)
            means.append(drawn.mean())
            errors.append(drawn.std(ddof=1) / np.sqrt(draws) / drawn.mean())
            bar.update()
    return Truth(points, np.array(means), np.array(errors))


def _strategies(problem: WeightProgrammingProblem, baseline: float) -> NDArray[np.float64]:
    """Two strategies of each band of quality, met on the way down from random starts."""
    starts = qmc.LatinHypercube(problem.hypercube.dimension, rng=0).random(16)
    history = list(multi_start(ExpectedEngine(problem), starts, 60))
    points = np.concatenate([x for x, _ in history])
    values = np.concatenate([v for _, v in history])
    edges = [0, 0.8, 0.9, 1, 2, 4, 10]
    chosen = []
    for low, high in pairwise(edges):
        band = np.flatnonzero((values > low * baseline) & (values <= high * baseline))
        chosen += list(np.random.default_rng(0).choice(band, 2, replace=False))
    return points[chosen]


def measure(name: str, truth: Truth) -> Measurement:
    """Measures one engine, on one core."""
    torch.set_num_threads(1)
    problem = reference_problem()
    started = time.perf_counter()
    engine = make_engine(name, problem)
    engine.tnmse(truth.points[:1])
    preparation_time = time.perf_counter() - started
    points = np.random.default_rng(1).random((max(BATCHES), problem.hypercube.dimension))
    reference = _reference(problem)
    reference(points[:2])
    per_second = {
        batch: _rate(engine.tnmse, points[: _FEW if name == "aihwkit" else batch])
        for batch in BATCHES
    }
    return Measurement(
        name,
        preparation_time,
        per_second,
        _rate(reference, points[:_FEW]),
        _errors(engine, truth),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def _reference(problem: WeightProgrammingProblem) -> Callable[[NDArray[np.float64]], object]:
    optimizer = WeightProgrammingOptimizer(
        problem.weights,
        list(problem.f_lst),
        problem.rpu_config,
        list(problem.t_steps),
        problem.g_converter_baseline,
        disp=False,
    )
    optimizer.loss_baseline = 0.15
    pickled = pickle.dumps(optimizer.__dict__)
    return lambda points: [loss_fxn(x, pickled) for x in points]


def _rate(evaluate: Callable[[NDArray[np.float64]], object], points: NDArray[np.float64]) -> float:
    """Candidates per second of processor time: the best of three, of at least 0.2 s each."""
    best = 0.0
    for _ in range(3):
        n, started = 0, time.process_time()
        while (elapsed := time.process_time() - started) < 0.2:
            evaluate(points)
            n += len(points)
        best = max(best, n / elapsed)
    return best


def _errors(engine: LossEngine, truth: Truth) -> list[float]:
    if engine.name == "expected":
        values = engine.tnmse(truth.points)
    else:
        strategies = engine.problem.hypercube.decode(truth.points)
        assert isinstance(strategies, list)
        values = np.array(
            [engine.tnmse_of(s.to_converter(), 50, seed=2).mean() for s in strategies]
        )
    return (values / truth.tnmse - 1).tolist()


def table(measured: Sequence[Measurement], truth: Truth) -> str:
    """One line per engine."""
    header = (
        f"{'engine':11}"
        + "".join(f"{f'batch {batch}':>22}" for batch in BATCHES)
        + f"{'ready in':>10}{'worst error':>13}{'peak memory':>13}"
    )
    lines = [header, "-" * len(header)]
    for m in measured:
        rates = "".join(
            f"{rate:11.0f}/s {rate / m.reference_per_second:7.1f}x"
            for rate in m.per_second.values()
        )
        worst = max(map(abs, m.errors))
        lines.append(
            f"{m.engine:11}{rates}{m.preparation_time:8.1f} s{worst:12.2%}{m.peak_mib:9.0f} MiB"
        )
    reference = ", ".join(f"{m.reference_per_second:.1f}" for m in measured)
    lines += [
        f"ratios to the reference's loss_fxn: {reference} candidates/s in the three processes",
        f"errors against {len(truth.tnmse)} Monte Carlo means at TNMSE {truth.tnmse.min():.4f} to "
        f"{truth.tnmse.max():.2f}, with standard errors up to {truth.standard_errors.max():.2%}; "
        "those of aihwkit and montecarlo are from 50 draws",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
