"""How long this project and aihwkit's optimiser take to reach the same quality.

    python -m experiments.time_to_quality

Both search the reference problem, on the same machine, one after the other: aihwkit's
``WeightProgrammingOptimizer`` with its own settings but a population of 200 (its 2000 would take
ten times as long) and no stop at the margin, on all cores; and this project's default study, with
everything it records. That the expected engine is compiled beforehand, which takes up to a minute
once on a machine, is not counted.

The levels are fractions of 0.1524, the baseline that aihwkit's optimiser reports for this problem.
That is the error of a single pair of conductances: aihwkit's optimiser evaluates the converter of
the noise model and not the baseline it is given, the error of which is half as large (0.074).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from aihwkit.inference.converter.wpo import WeightProgrammingOptimizer
from scipy.optimize import OptimizeResult

from experiments.reference_problem import reference_problem
from wpo_optuna import run_study
from wpo_optuna.loss.expected import ExpectedEngine
from wpo_optuna.loss.reference import ReferenceEngine
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem
from wpo_optuna.study.estimate import score

REPORTED_BASELINE = 0.1524
LEVELS = (0.125, 0.25, 0.5, 0.6)


@dataclass(frozen=True)
class Search:
    """How a search went.

    Attributes:
        name: what searched.
        times: seconds since the start of the search, ascending.
        best: best TNMSE found by then, as the search itself believes.
        preparation_time: seconds before the search (tables, baseline).
        search_time: seconds of the search.
        true_tnmse: TNMSE of the result on fresh noise.
    """

    name: str
    times: list[float]
    best: list[float]
    preparation_time: float
    search_time: float
    true_tnmse: float

    def time_to(self, tnmse: float) -> float | None:
        """Seconds until the best was that low; None if it never was."""
        for seconds, best in zip(self.times, self.best, strict=True):
            if best <= tnmse:
                return seconds
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs both and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference-popsize", type=int, default=10)
    parser.add_argument("--n-trials", type=int, default=1000, help="of this project's study")
    parser.add_argument("--output", type=Path, default=Path("benchmark_time_to_quality.json"))
    options = parser.parse_args(arguments)
    problem = reference_problem()
    ours = search_here(problem, options.n_trials)
    print(f"this project: {ours.search_time:.1f} s, true TNMSE {ours.true_tnmse:.4f}", flush=True)
    reference = search_with_aihwkit(problem, options.reference_popsize)
    print(table(reference, ours))
    options.output.write_text(json.dumps([asdict(reference), asdict(ours)], indent=1))
    return 0


def search_here(problem: WeightProgrammingProblem, n_trials: int) -> Search:
    """This project's default study, in an SQLite file and MLflow's store."""
    # Compiling, once per machine, is no part of the search.
    ExpectedEngine(problem).value_and_grad(np.full((1, problem.hypercube.dimension), 0.5))
    called = time.time()
    with TemporaryDirectory() as directory:
        result = run_study(
            problem,
            n_trials=n_trials,
            study_name="time-to-quality",
            storage=f"sqlite:///{directory}/wpo.db",
            tracking_uri=f"sqlite:///{directory}/mlflow.db",
        )
        trials = [t for t in result.study.get_trials(deepcopy=False) if t.datetime_complete]
    started = trials[0].datetime_start.timestamp()
    return Search(
        name="wpo_optuna, default study",
        times=[trial.datetime_complete.timestamp() - started for trial in trials],
        best=np.minimum.accumulate([trial.user_attrs["tnmse"] for trial in trials]).tolist(),
        preparation_time=started - called,
        search_time=result.search_time,
        true_tnmse=result.tnmse.mean,
    )


@dataclass
class SearchProgress:
    """Callback of scipy's optimiser that notes the best of each generation.

    aihwkit pickles its optimiser, callback included, for its worker processes.

    Attributes:
        started: when the search started.
        baseline: the baseline's TNMSE.
        loss_of_zero: TNMSE at which the hypercube loss is zero.
        times: seconds of each generation.
        best: its best TNMSE.
    """

    started: float = 0.0
    baseline: float = 0.0
    loss_of_zero: float = 0.0
    times: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)

    def __call__(self, intermediate_result: OptimizeResult) -> None:
        """Notes a generation."""
        self.times.append(time.perf_counter() - self.started)
        tnmse = intermediate_result.fun * self.baseline + self.loss_of_zero
        self.best.append(float(tnmse))
        print(f"aihwkit: {self.times[-1]:6.1f} s, TNMSE {self.best[-1]:.4f}", flush=True)


def search_with_aihwkit(problem: WeightProgrammingProblem, popsize: int) -> Search:
    """aihwkit's optimiser until its own convergence."""
    # It forks a process for each core; a forked copy of torch's thread pool would hang.
    torch.set_num_threads(1)
    progress = SearchProgress()
    optimizer = WeightProgrammingOptimizer(
        problem.weights,
        list(problem.f_lst),
        problem.rpu_config,
        list(problem.t_steps),
        problem.g_converter_baseline,
        symmetric=problem.symmetric,
        popsize=popsize,
        callback=progress,
        disp=False,
    )
    called = time.perf_counter()
    optimizer.loss_baseline = optimizer.get_loss_baseline()
    progress.loss_of_zero = (1 - optimizer.loss_margin) * optimizer.loss_baseline
    progress.baseline = optimizer.loss_baseline
    progress.started = started = time.perf_counter()
    converter, _ = optimizer.differential_weight_evolution()
    search_time = time.perf_counter() - started
    true = score(ReferenceEngine(problem), converter, seed=20240)
    return Search(
        f"aihwkit, population {popsize * problem.hypercube.dimension}",
        progress.times,
        progress.best,
        started - called,
        search_time,
        true.mean,
    )


def table(reference: Search, ours: Search) -> str:
    """Time to each level, and the ends."""
    lines = [
        f"{'better than 0.1524 by':24} {'aihwkit':>12} {'wpo_optuna':>12} {'ratio':>8}",
    ]
    for level in LEVELS:
        tnmse = REPORTED_BASELINE * (1 - level)
        theirs, mine = reference.time_to(tnmse), ours.time_to(tnmse)
        ratio = f"{theirs / mine:7.0f}x" if theirs and mine else "-"
        label = f"{level:.1%} (TNMSE {tnmse:.4f})"
        lines.append(f"{label:24} {_seconds(theirs):>12} {_seconds(mine):>12} {ratio:>8}")
    whole = f"{reference.search_time / ours.search_time:7.0f}x"
    lines += [
        f"{'whole search':24} {_seconds(reference.search_time):>12} "
        f"{_seconds(ours.search_time):>12} {whole:>8}",
        f"{'preparation':24} {_seconds(reference.preparation_time):>12} "
        f"{_seconds(ours.preparation_time):>12}",
        f"{'true TNMSE at the end':24} {reference.true_tnmse:12.4f} {ours.true_tnmse:12.4f}",
    ]
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f} s"


if __name__ == "__main__":
    sys.exit(main())
