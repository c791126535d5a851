"""Samplers side by side: the same problem, equal budgets, one MLflow experiment.

    python -m experiments.compare_samplers

Prints one table. Every sampler's best trials are scored on fresh noise through aihwkit's own tile,
so that luck with an engine decides nothing. Polishing is off: it would make them all alike.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from experiments.reference_problem import reference_problem
from wpo_optuna import run_study
from wpo_optuna.study.problem_setup import set_up_problem
from wpo_optuna.study.scoring import StudyResult
from wpo_optuna.study.settings import StudySettings

SAMPLERS = ("de", "cmaes", "tpe", "qmc", "random")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", choices=("digits", "reference"), default="digits")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=SAMPLERS)
    parser.add_argument("--n-trials", type=int, default=1000, help="budget of each (1000)")
    parser.add_argument("--finalists", type=int, default=3)
    parser.add_argument("--engine", default=None, help="loss engine (the fastest trusted)")
    parser.add_argument("--storage", default="sqlite:///wpo.db")
    parser.add_argument("--tracking-uri", default=None)
    parser.add_argument("--experiment", default="wpo-samplers")
    parser.add_argument("--seed", type=int, default=100)
    options = parser.parse_args(arguments)

    if options.problem == "digits":
        problem = set_up_problem(StudySettings(seed=options.seed)).problem
    else:
        problem = reference_problem(seed=options.seed)
    results = {}
    for sampler in options.samplers:
        results[sampler] = run_study(
            problem,
            sampler=sampler,
            n_trials=options.n_trials,
            study_name=f"compare-{options.problem}-{options.n_trials}-{sampler}",
            storage=options.storage,
            tracking_uri=options.tracking_uri,
            engine=options.engine,
            polish=False,
            finalists=options.finalists,
            experiment=options.experiment,
            show_progress_bar=True,
        )
    print(table(results))
    return 0


def table(results: dict[str, StudyResult]) -> str:
    """One line per sampler, best first."""
    header = f"{'sampler':8} {'best (engine)':>14} {'TNMSE on fresh noise, 95 %':>32} {'search':>9}"
    lines = [header, "-" * len(header)]
    for sampler, result in sorted(results.items(), key=lambda item: item[1].tnmse.mean):
        assert result.scores is not None
        best = min(finalist.tnmse_of_engine for finalist in result.scores.finalists)
        lines.append(f"{sampler:8} {best:14.5f} {result.tnmse!s:>32} {result.search_time:7.1f} s")
    baseline = next(iter(results.values())).baseline
    lines += ["-" * len(header), f"{'baseline':8} {'':14} {baseline!s:>32}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
