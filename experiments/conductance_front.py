"""Error against conductance on the reference problem: the front by gradients, and NSGA-II's.

python -m experiments.conductance_front

The hypervolume is what a front covers below twice the baseline's TNMSE and its conductance, as a
fraction of that rectangle.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import optuna
from numpy.typing import NDArray

from experiments.reference_problem import reference_problem
from wpo_optuna import make_engine, run_study
from wpo_optuna.study.attributes import PHASE
from wpo_optuna.study.scoring import StudyResult


def hypervolume(tnmse: NDArray[np.float64], cost: NDArray[np.float64]) -> float:
    """Area that points relative to a corner at (1, 1) cover, in the unit square."""
    area, height = 0.0, 1.0
    for y, x in sorted(zip(cost.tolist(), tnmse.tolist(), strict=True)):
        if y < 1 and x < height:
            area += (height - x) * (1 - y)
            height = x
    return area


def main(arguments: list[str] | None = None) -> None:
    """Prints both, and how long they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-trials", type=int, default=5000, help="of NSGA-II")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    problem = reference_problem()
    engine = make_engine("expected", problem)
    corner = 2 * np.array(
        [engine.tnmse_of(problem.g_converter_baseline, 1)[0],
         engine.conductance_of(problem.g_converter_baseline, 1)[0]]
    )  # fmt: skip
    print(f"baseline: TNMSE {corner[0] / 2:.4f} at {corner[1] / 2:.1f} µS per weight")
    # Both kinds of code are compiled before anything is timed.
    x = np.full((1, problem.hypercube.dimension), 0.5)
    engine.value_and_grad(x), engine.conductance_and_grad(x), engine.conductance(x)

    for name, n_trials, polish in (
        ("random search and gradients", 320, True),
        ("NSGA-II", options.n_trials, False),
    ):
        started = time.perf_counter()
        result = run_study(
            problem, "nsga2" if not polish else "random", n_trials, f"front-{name}", "memory",
            objective="tnmse,conductance", tracking_uri=False, report=False, self_check=False,
            finalists=1, polish=polish, engine="expected",
        )  # fmt: skip
        seconds = time.perf_counter() - started
        print(f"\n{name}, {n_trials} trials: search {result.search_time:.1f} s of {seconds:.1f} s")
        _tell(result, corner)


def _tell(result: StudyResult, corner: NDArray[np.float64]) -> None:
    points = np.array([(point.tnmse, point.second) for point in result.front])
    n_polished = sum(PHASE in trial.user_attrs for trial in result.study.trials)
    covered = hypervolume(*(points / corner).T)
    print(f"hypervolume {covered:.3f}, {len(points)} points, {n_polished} trials by gradients")
    shown = points[np.linspace(0, len(points) - 1, min(8, len(points))).round().astype(int)]
    for tnmse, conductance in shown:
        print(f"  {conductance:5.1f} µS  TNMSE {tnmse:.4f}")


if __name__ == "__main__":
    main()
