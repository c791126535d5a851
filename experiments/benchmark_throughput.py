"""Trials per second of fully recorded studies, from end to end.

    python -m experiments.benchmark_throughput

Studies of 2 000 and 10 000 trials of the reference problem by differential evolution with the
expected engine, recorded in an SQLite file and in MLflow, and in the same run the plain script a
user would write: Optuna's ``RDBStorage``, one MLflow run per trial, aihwkit's own loss. The plain
script runs a few trials only and is extrapolated. What a trial costs in the sampler, the engine
and the storage alone is measured by the other benchmarks.
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import optuna
from aihwkit.inference.converter.wpo import WeightProgrammingOptimizer, loss_fxn

from experiments.reference_problem import reference_problem
from wpo_optuna import run_study
from wpo_optuna.problem import WeightProgrammingProblem


@dataclass(frozen=True)
class Throughput:
    """What a number of trials took.

    Attributes:
        name: what ran.
        n_trials: number of trials.
        search: seconds of the search.
        whole: seconds until everything was recorded, scoring of one finalist included.
    """

    name: str
    n_trials: int
    search: float
    whole: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-trials", type=int, nargs="+", default=[2_000, 10_000])
    parser.add_argument("--plain-trials", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path("benchmark_throughput.json"))
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    problem = reference_problem()
    measured = [measure_study(problem, n) for n in options.n_trials]
    # Before the plain script needs memory, too.
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    plain = measure_plain_script(problem, options.plain_trials)
    print(table(measured, plain, peak_mib))
    record = {
        "studies": [asdict(m) for m in measured], "plain": asdict(plain), "peak_mib": peak_mib
    }  # fmt: skip
    options.output.write_text(json.dumps(record, indent=1))
    return 0


def measure_study(problem: WeightProgrammingProblem, n_trials: int) -> Throughput:
    """This project, fully recorded."""
    with TemporaryDirectory() as directory:
        started = time.perf_counter()
        result = run_study(
            problem,
            n_trials=n_trials,
            study_name=f"throughput-{n_trials}",
            storage=f"sqlite:///{directory}/wpo.db",
            tracking_uri=f"sqlite:///{directory}/mlflow.db",
            engine="expected",
            self_check=False,
            polish=False,
            finalists=1,
            report=False,
        )
        whole = time.perf_counter() - started
        assert result.n_new_trials == n_trials
    return Throughput("wpo_optuna", n_trials, result.search_time, whole)


def measure_plain_script(problem: WeightProgrammingProblem, n_trials: int) -> Throughput:
    """Optuna's RDBStorage, one MLflow run per trial, aihwkit's loss; TPE is not to blame."""
    import mlflow

    optimizer = WeightProgrammingOptimizer(
        problem.weights, list(problem.f_lst), problem.rpu_config, list(problem.t_steps),
        problem.g_converter_baseline, disp=False,
    )  # fmt: skip
    optimizer.loss_baseline = 0.15
    pickled = pickle.dumps(optimizer.__dict__)
    names = problem.hypercube.names

    def objective(trial: optuna.Trial) -> float:
        x = np.array([trial.suggest_float(name, 0, 1) for name in names])
        with mlflow.start_run():
            loss = float(loss_fxn(x, pickled))
            strategy = problem.hypercube.decode(x)
            trial.set_user_attr("tnmse", loss)
            trial.set_user_attr("f_lst", list(strategy.f_lst))
            trial.set_user_attr("g_lst", [list(curve) for curve in strategy.g_lst])
            mlflow.log_params({"f_lst": strategy.f_lst, "g_lst": strategy.g_lst})
            mlflow.log_metrics({"loss": loss})
        return loss

    with TemporaryDirectory() as directory:
        mlflow.set_tracking_uri(f"sqlite:///{directory}/mlflow.db")
        mlflow.set_experiment("plain")
        study = optuna.create_study(
            storage=f"sqlite:///{directory}/plain.db",
            sampler=optuna.samplers.RandomSampler(seed=1),
        )
        study.optimize(objective, n_trials=2)  # opens the files
        started = time.perf_counter()
        study.optimize(objective, n_trials=n_trials)
        seconds = time.perf_counter() - started
    return Throughput("plain script", n_trials, seconds, seconds)


def table(measured: Sequence[Throughput], plain: Throughput, peak_mib: float) -> str:
    """One line per study, then the plain script and the ratios."""
    header = f"{'':14} {'trials':>7} {'search':>9} {'end to end':>11} {'trials/s':>9} {'ratio':>8}"
    lines = [header, "-" * len(header)]
    per_trial = plain.whole / plain.n_trials
    for run in measured:
        ratio = per_trial * run.n_trials / run.whole
        lines.append(
            f"{run.name:14} {run.n_trials:7} {run.search:7.1f} s {run.whole:9.1f} s "
            f"{run.n_trials / run.whole:9.0f} {ratio:7.0f}x"
        )
    lines.append(
        f"{plain.name:14} {plain.n_trials:7} {plain.search:7.1f} s {plain.whole:9.1f} s "
        f"{1 / per_trial:9.1f}  (extrapolated: {per_trial * 10_000 / 60:.0f} minutes for 10 000 "
        "trials)"
    )
    lines.append(f"peak memory of the study's process {peak_mib:.0f} MiB")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
