"""How long ``python -m wpo_optuna.study`` takes, stage by stage, the first time and later.

    python -m experiments.benchmark_command

Runs the whole command, 1000 trials with report and MLflow, in new processes and directories: once
with an empty cache of compiled code, as on a new machine, then with that cache.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# Functions of which each call is timed, in the order of the command, and what they are for.
STAGES = (
    ("wpo_optuna.study.environment:check_aihwkit", "importing aihwkit and torch"),
    ("wpo_optuna.study.problem_setup:set_up_problem", "reading weights and hardware"),
    ("wpo_optuna.study.run:open_study", "engine, self-check and baseline"),
    ("wpo_optuna.study.run:sample", "sampling"),
    ("wpo_optuna.study.run:polish_best", "polishing"),
    ("wpo_optuna.study.run:score_finalists", "scoring"),
    ("wpo_optuna.report.measurements:measure", "measuring for the report"),
    ("wpo_optuna.report.page:write_report", "drawing the report"),
    ("wpo_optuna.track.follower:Follower.finish", "waiting for MLflow"),
)
ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-trials", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3, help="of the command with compiled code")
    parser.add_argument("--stages-to", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.stages_to is not None:
        return run_timed(options.n_trials, options.stages_to)
    with TemporaryDirectory(prefix="wpo_benchmark_") as directory:
        cold = measure(options.n_trials, Path(directory, "cold"), Path(directory, "cache"))
        warm = [
            measure(options.n_trials, Path(directory, f"warm{i}"), Path(directory, "cache"))
            for i in range(options.repeats)
        ]
    print(table(cold, min(warm, key=lambda stages: stages["whole command"])))
    return 0


def measure(n_trials: int, directory: Path, cache: Path) -> dict[str, float]:
    """Seconds of each stage of one command in a directory of its own."""
    directory.mkdir()
    stages = directory / "stages.json"
    environment = {n: v for n, v in os.environ.items() if not n.startswith("MLFLOW")}
    environment |= {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    words = ["--n-trials", str(n_trials), "--stages-to", str(stages)]
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "experiments.benchmark_command", *words],
        cwd=directory, env=environment, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    whole = time.perf_counter() - started
    measured: dict[str, float] = json.loads(stages.read_text())
    return {**measured, "the rest": whole - sum(measured.values()), "whole command": whole}


def run_timed(n_trials: int, output: Path) -> int:
    """The command in this process, with its stages timed."""
    seconds: dict[str, float] = defaultdict(float)
    for place, name in STAGES:
        module_name, _, path = place.partition(":")
        owner: Any = importlib.import_module(module_name)
        *parents, attribute = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, attribute, _timed(getattr(owner, attribute), name, seconds))
    from wpo_optuna.study.__main__ import main as study

    status = study(["--n-trials", str(n_trials)])
    output.write_text(json.dumps({name: seconds[name] for _, name in STAGES}))
    return status


def _timed(
    function: Callable[..., Any], name: str, seconds: dict[str, float]
) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds[name] += time.perf_counter() - started

    return timed


def table(cold: dict[str, float], warm: dict[str, float]) -> str:
    """Seconds of each stage, the first time and later."""
    lines = [f"{'':34} {'first time':>11} {'compiled':>11}"]
    lines += [f"{name:34} {cold[name]:9.1f} s {warm[name]:9.1f} s" for name in cold]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
