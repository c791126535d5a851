"""Trials per second from end to end, and where the time goes.

    python -m experiments.benchmark_throughput

Studies of 2 000 and 10 000 trials of the reference problem by differential evolution with the
expected engine, recorded in an SQLite file and in MLflow, and in the same run the plain script a
user would write: Optuna's ``RDBStorage``, one MLflow run per trial, aihwkit's own loss. The plain
script runs a few trials only and is extrapolated.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from aihwkit.inference.converter.wpo import WeightProgrammingOptimizer, loss_fxn
from optuna.trial import TrialState

from experiments.reference_problem import reference_problem
from wpo_optuna import DESampler, run_study
from wpo_optuna.loss.expected import ExpectedEngine
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem
from wpo_optuna.sqlite import SQLiteStorage
from wpo_optuna.track.tracker import MlflowTracker

SECTIONS = {
    "sampling": (
        DESampler,
        ("infer_relative_search_space", "sample_relative", "candidates_left", "after_trial"),
    ),
    "loss": (ExpectedEngine, ("tnmse",)),
    "storage": (
        SQLiteStorage,
        (
            "batch", "create_new_trial", "set_trial_param", "set_trial_user_attr",
            "set_trial_system_attr", "set_trial_state_values", "get_trial", "get_all_trials",
            "get_n_trials", "get_best_trial", "read_trials",
        ),
    ),
    "tracking": (MlflowTracker, ("__call__",)),
}  # fmt: skip


class Stopwatch:
    """Adds up the time spent in sections of the program; a section within another counts once.

    Only the main thread's time is counted, which the loop of the study runs in.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Time inside belongs to this section."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._switch()
        self._running.append(name)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @contextmanager
    def watching(self, section: str, owner: type, method: str) -> Iterator[None]:
        """Counts all calls of a method as a section."""
        original = getattr(owner, method)

        def watched(*arguments: Any, **options: Any) -> Any:
            with self.section(section):
                result = original(*arguments, **options)
            return self._watched_context(section, result) if method == "batch" else result

        setattr(owner, method, watched)
        try:
            yield
        finally:
            setattr(owner, method, original)

    @contextmanager
    def _watched_context(self, section: str, context: Any) -> Iterator[None]:
        """Counts entering and leaving (the commit), not what happens inside."""
        with ExitStack() as stack:
            with self.section(section):
                stack.enter_context(context)
            yield
            with self.section(section):
                stack.close()


@dataclass(frozen=True)
class Throughput:
    """What a number of trials took.

    Attributes:
        name: what ran.
        n_trials: number of trials.
        seconds: wall time of the search.
        sections: seconds of its parts, by name.
        delivery: further seconds until MLflow had everything.
        delivery_mib: the most memory that the delivering process held before the last of it.
    """

    name: str
    n_trials: int
    seconds: float
    sections: dict[str, float]
    delivery: float
    delivery_mib: float = 0.0

    @property
    def per_trial(self) -> float:
        """Seconds per trial, delivery included."""
        return (self.seconds + self.delivery) / self.n_trials


def children_peak_mib() -> float:
    """Peak memory in MiB of this process's largest child, since it started its own program.

    What ``getrusage`` says of children includes the memory of the parent they were forked from.
    """
    peaks = [0.0]
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:  # it has ended
            continue
        if lines["PPid"].strip() == str(os.getpid()) and "VmHWM" in lines:
            peaks.append(int(lines["VmHWM"].split()[0]) / 1024)
    return max(peaks)


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
    stopwatch = Stopwatch()
    with TemporaryDirectory() as directory, ExitStack() as stack:
        for section, (owner, methods) in SECTIONS.items():
            for method in methods:
                stack.enter_context(stopwatch.watching(section, owner, method))
        tracker = MlflowTracker(f"sqlite:///{directory}/mlflow.db", planned_trials=n_trials)
        result = run_study(
            problem,
            n_trials=n_trials,
            study_name=f"throughput-{n_trials}",
            storage=f"sqlite:///{directory}/wpo.db",
            tracking_uri=False,
            engine="expected",
            self_check=False,
            polish=False,
            n_finalists=1,
            callbacks=[tracker],
        )
        delivery_mib = children_peak_mib()
        closing = time.perf_counter()
        tracker.close()
        delivery = time.perf_counter() - closing
        n = len(result.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        assert n == n_trials
    return Throughput(
        "wpo_optuna", n_trials, result.search_time, dict(stopwatch.seconds), delivery, delivery_mib
    )


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
    decode = problem.hypercube.decode

    def objective(trial: optuna.Trial) -> float:
        import numpy as np

        x = np.array([trial.suggest_float(name, 0, 1) for name in names])
        with mlflow.start_run():
            loss = float(loss_fxn(x, pickled))
            strategy = decode(x)
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
        seconds = _time(lambda: study.optimize(objective, n_trials=n_trials))
    return Throughput("plain script", n_trials, seconds, {}, 0.0)


def _time(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def table(measured: Sequence[Throughput], plain: Throughput, peak_mib: float) -> str:
    """One line per study, then the plain script and the ratios."""
    names = list(SECTIONS)
    header = f"{'':24} {'trials':>7} {'search':>8} {'to MLflow':>10} {'trials/s':>9}  " + "".join(
        f"{name:>11}" for name in [*names, "rest"]
    )
    lines = [header, "-" * len(header)]
    for run in measured:
        parts = [run.sections.get(name, 0.0) for name in names]
        parts.append(run.seconds - sum(parts))
        shares = "".join(f"{1000 * part / run.n_trials:8.3f} ms" for part in parts)
        lines.append(
            f"{run.name:24} {run.n_trials:7} {run.seconds:6.1f} s {run.delivery:+8.1f} s "
            f"{1 / run.per_trial:9.0f}  {shares}"
        )
    lines.append(
        f"{plain.name:24} {plain.n_trials:7} {plain.seconds:6.1f} s {'':10} "
        f"{1 / plain.per_trial:9.1f}  (extrapolated: {plain.per_trial * 10_000 / 60:.0f} minutes "
        "for 10 000 trials)"
    )
    for run in measured:
        ratio = plain.per_trial / run.per_trial
        lines.append(f"{run.n_trials} trials: {ratio:.0f} times the plain script's trials per s")
    lines.append(
        f"peak memory {peak_mib:.0f} MiB, and {max(run.delivery_mib for run in measured):.0f} MiB "
        "of the process that delivers to MLflow"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
