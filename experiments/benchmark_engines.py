"""The three loss engines side by side: speed, agreement, memory, preparation.

    python -m experiments.benchmark_engines

All on one core and the reference problem. Speeds are candidates per second of processor time, as
the machine may be shared; aihwkit's own loss function (``loss_fxn``) is timed in the same rounds,
and a ratio is the median over the rounds. Agreement is with the mean of many Monte Carlo draws, for
strategies from the best known to ten times the baseline's error: the bias of an engine, and how
much a single one of its evaluations scatters. Memory and compilation are measured in processes of
their own.

    python -m experiments.benchmark_engines --device cuda

measures the Monte Carlo and the expected engine alone, on that device and on the processor's cores,
by wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from aihwkit.inference.converter.wpo import WeightProgrammingOptimizer, loss_fxn
from numpy.typing import NDArray

from experiments.reference_problem import reference_problem
from wpo_optuna.loss import ENGINE_NAMES, LossEngine, make_engine
from wpo_optuna.loss.expected import ExpectedEngine
from wpo_optuna.loss.gradient_search import multi_start
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

FloatArray = NDArray[np.float64]

BATCHES = (1, 64, 1024)
# What is timed on other devices.
_ON_DEVICES = (("montecarlo", 1024), ("expected", 1024), ("expected", 65_536))

# The most candidates that are timed; the slow engines' cost does not depend on the batch.
_MOST_TIMED = {"aihwkit": 8, "montecarlo": 256, "expected": 1024}


@dataclass(frozen=True)
class Benchmark:
    """What was measured of one engine.

    Attributes:
        engine: its name.
        per_second: candidates per second of one core, for each batch size.
        ratio: the same over that of aihwkit's ``loss_fxn``.
        preparation: seconds to build the engine.
        compilation: seconds of its first evaluation ever, which compiles it; later ones find the
            result on disk.
        bias: mean relative deviation from the Monte Carlo mean.
        bias_error: its standard error.
        worst: largest relative deviation of a strategy, from the mean over this engine's draws.
        scatter: relative standard deviation of a single evaluation.
        peak_mb: peak memory of a process that evaluates the largest batch.
        imports_mb: how much of it the imports take.
    """

    engine: str
    per_second: dict[int, float]
    ratio: dict[int, float]
    preparation: float
    compilation: float
    bias: float
    bias_error: float
    worst: float
    scatter: float
    peak_mb: float
    imports_mb: float


def benchmark(rounds: int, draws: int) -> list[Benchmark]:
    """Measures all engines.

    Args:
        rounds: how often everything is timed.
        draws: Monte Carlo draws of each strategy that the others are compared with.
    """
    torch.set_num_threads(1)
    # A process that is moved from core to core finds their caches empty.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    problem = reference_problem()
    strategies = strategies_of_all_qualities(problem)
    engines, preparation = {}, {}
    for name in ENGINE_NAMES:
        start = time.process_time()
        engines[name] = make_engine(name, problem)
        preparation[name] = time.process_time() - start
    per_second, ratio = _speeds(problem, engines, rounds)
    truth = _draws_of(make_engine("montecarlo", problem), strategies, draws, first_seed=10_000)
    return [
        Benchmark(
            engine=name,
            per_second=per_second[name],
            ratio=ratio[name],
            preparation=preparation[name],
            compilation=_in_own_process(name, "compilation"),
            peak_mb=_in_own_process(name, "memory"),
            imports_mb=_in_own_process(name, "imports"),
            **_agreement(engine, strategies, truth),
        )
        for name, engine in engines.items()
    ]


def strategies_of_all_qualities(problem: WeightProgrammingProblem) -> FloatArray:
    """Points (12, d) on the way from ten times the baseline's error down to an optimum."""
    engine = ExpectedEngine(problem)
    baseline = engine.tnmse_of(problem.g_converter_baseline, 1)[0]
    starts = np.random.default_rng(0).random((24, problem.hypercube.dimension))
    way = list(multi_start(engine, starts, 100))
    x, tnmse = (np.concatenate([step[k] for step in way]) for k in (0, 1))
    wanted = np.geomspace(tnmse.min(), 10 * baseline, 12)
    return x[[np.abs(tnmse - value).argmin() for value in wanted]]


def _speeds(
    problem: WeightProgrammingProblem, engines: dict[str, LossEngine], rounds: int
) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]]:
    """Candidates per second by engine and batch size, and the ratios to the reference's."""
    x = np.random.default_rng(1).random((BATCHES[-1], problem.hypercube.dimension))
    reference = _reference_loss(problem)
    seconds: dict[tuple[str, int], list[float]] = {}
    ratios: dict[tuple[str, int], list[float]] = {}
    for engine in engines.values():
        engine.tnmse(x[:2])
    for _ in range(rounds):
        of_reference = _seconds_each(lambda: [reference(point) for point in x[:6]], 6)
        for name, engine in engines.items():
            for batch in BATCHES:
                timed = x[: min(batch, _MOST_TIMED[name])]
                each = _seconds_each(lambda e=engine, t=timed: e.tnmse(t), len(timed))
                seconds.setdefault((name, batch), []).append(each)
                ratios.setdefault((name, batch), []).append(of_reference / each)
    return (
        {n: {b: 1 / float(np.median(seconds[n, b])) for b in BATCHES} for n in engines},
        {n: {b: float(np.median(ratios[n, b])) for b in BATCHES} for n in engines},
    )


def _reference_loss(problem: WeightProgrammingProblem) -> Callable[[FloatArray], float]:
    """aihwkit's own loss function of this problem."""
    optimizer = WeightProgrammingOptimizer(
        problem.weights, list(problem.f_lst), problem.rpu_config, list(problem.t_steps),
        problem.g_converter_baseline, symmetric=problem.symmetric, disp=False,
    )  # fmt: skip
    optimizer.loss_baseline = 1.0
    state = pickle.dumps(optimizer.__dict__)
    return lambda x: loss_fxn(x, state)


def _seconds_each(run: Callable[[], object], n: int) -> float:
    """Processor seconds of each of the n candidates that a call evaluates.

    Short calls are repeated: the processor clock is coarse.
    """
    start, calls = time.process_time(), 0
    while calls == 0 or time.process_time() - start < 0.05:
        run()
        calls += 1
    return (time.process_time() - start) / (calls * n)


def _draws_of(engine: LossEngine, x: FloatArray, draws: int, first_seed: int) -> FloatArray:
    """TNMSE (draws, n) on independent noise."""
    return np.array([engine.tnmse(x, seed=first_seed + draw) for draw in range(draws)])


def _agreement(engine: LossEngine, x: FloatArray, truth: FloatArray) -> dict[str, float]:
    draws = {"aihwkit": 12, "montecarlo": len(truth), "expected": 1}[engine.name]
    drawn = _draws_of(engine, x, draws, first_seed=0)
    mean = truth.mean(axis=0)
    relative = drawn.mean(axis=0) / mean - 1
    own = drawn.std(axis=0, ddof=1) if draws > 1 else np.zeros(len(x))
    errors = np.hypot(own / draws**0.5, truth.std(axis=0, ddof=1) / len(truth) ** 0.5) / mean
    return {
        "bias": float(relative.mean()),
        # Strategies share their noise, so that averaging over them does not lessen the error.
        "bias_error": float(errors.mean()),
        "worst": float(np.abs(relative).max()),
        "scatter": float((own / mean).mean()),
    }


def _in_own_process(engine: str, quantity: str) -> float:
    """Measures a quantity in a fresh process, with nothing compiled before."""
    with TemporaryDirectory() as cache:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if quantity == "compilation":
            environment["XDG_CACHE_HOME"] = cache
        command = [sys.executable, "-W", "ignore", "-m", "experiments.benchmark_engines"]
        finished = subprocess.run(
            [*command, "--measure", engine, quantity],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
    return float(finished.stdout.split()[-1])


def _measure(engine: str, quantity: str) -> float:
    """What :func:`_in_own_process` asks for."""
    torch.set_num_threads(1)
    if quantity != "imports":
        problem = reference_problem()
        made = make_engine(engine, problem)
        x = np.random.default_rng(0).random((BATCHES[-1], problem.hypercube.dimension))
        start = time.process_time()
        made.tnmse(x[:1])
        if quantity == "compilation":
            return time.process_time() - start
        made.tnmse(x[: _MOST_TIMED[engine]])
    return _peak_mb()


def _peak_mb() -> float:
    """Peak resident memory of this process.

    On Linux as the kernel has it since the process started its own program: what ``getrusage``
    says includes the parent's memory.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [row for row in status.read_text().splitlines() if row.startswith("VmHWM")]
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare_devices(engine: str, batch: int, device: str, rounds: int) -> str:
    """Candidates per second of an engine on a device, and of all processor cores.

    Args:
        engine: its name.
        batch: candidates at once.
        device: such as ``"cuda"``.
        rounds: how often both are timed, in turns.

    Returns:
        One line to print.
    """
    problem = reference_problem()
    x = np.random.default_rng(1).random((batch, problem.hypercube.dimension))
    engines = [make_engine(engine, problem, device=place) for place in ("cpu", device)]
    ratios, per_second = [], []
    for made in engines:
        made.tnmse(x)
    for _ in range(rounds):
        seconds = []
        for made in engines:
            start = time.perf_counter()
            # The result is on the processor: nothing is left running on the device.
            made.tnmse(x)
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
        per_second.append([batch / each for each in seconds])
    on_cpu, on_device = np.median(per_second, axis=0)
    return (
        f"{engine}, batch {batch}: {on_device:,.0f} candidates/s on {device}, {on_cpu:,.0f} on "
        f"{torch.get_num_threads()} cores, ratio {np.median(ratios):.1f}"
    )


def _print_table(results: Sequence[Benchmark]) -> None:
    columns = [
        *(f"/s at {batch}" for batch in BATCHES), *(f"ratio at {batch}" for batch in BATCHES),
        "tables", "compile", "bias", "worst", "scatter", "memory",
    ]  # fmt: skip
    print(f"{'engine':<11}" + "".join(f"{column:>15}" for column in columns))
    for r in results:
        cells = [
            *(f"{r.per_second[batch]:,.1f}" for batch in BATCHES),
            *(f"{r.ratio[batch]:,.1f}" for batch in BATCHES),
            f"{r.preparation:.2f} s",
            f"{r.compilation:.1f} s",
            f"{r.bias:+.2%} ± {r.bias_error:.2%}",
            f"{r.worst:.2%}",
            f"{r.scatter:.2%}",
            f"{r.peak_mb - r.imports_mb:.0f}+{r.imports_mb:.0f} MB",
        ]
        print(f"{r.engine:<11}" + "".join(f"{cell:>15}" for cell in cells))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmark_engines.json"))
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is timed")
    parser.add_argument("--draws", type=int, default=100, help="Monte Carlo draws to compare with")
    parser.add_argument("--device", help="compare this device with the processor instead")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(_measure(*options.measure))
        return
    if options.device:
        for engine, batch in _ON_DEVICES:
            print(compare_devices(engine, batch, options.device, options.rounds), flush=True)
        return
    results = benchmark(options.rounds, options.draws)
    _print_table(results)
    options.output.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
