"""What proposing a trial costs with each sampler, after few and after many trials.

Measured is the processor time of ``Study.ask`` in a study in memory, in batches as a study's loop
asks them; besides the sampler this is Optuna's own part of a trial, which is what random search
costs. The study holds points that differential evolution found. The first batch, in which a
sampler reads them, is not counted.

    python -m experiments.benchmark_samplers
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from wpo_optuna.samplers import SAMPLER_NAMES, DESampler, make_sampler

_SEED = 1
_BATCH = 12


def evolved_trials(n_trials: int, space: dict[str, BaseDistribution]) -> list[FrozenTrial]:
    """Finished trials of differential evolution on a sphere function."""
    study = optuna.create_study(sampler=DESampler(seed=_SEED, search_space=space))
    for _ in range(n_trials):
        trial = study.ask(space)
        study.tell(trial, _sphere(trial.params))
    return study.trials


def ms_per_ask(
    name: str, history: Sequence[FrozenTrial], n_trials: int, space: dict[str, BaseDistribution]
) -> float:
    """Milliseconds of processor time for asking one trial.

    Args:
        name: the sampler's.
        history: what the study holds already.
        n_trials: how many trials to measure.
        space: the parameters.
    """
    study = optuna.create_study(
        sampler=make_sampler(name, seed=_SEED, search_space=space if name == "de" else None)
    )
    study.add_trials(history)
    elapsed, n_asked = 0.0, -_BATCH
    while n_asked < n_trials:
        began = time.process_time()
        trials = [study.ask(space) for _ in range(_BATCH)]
        if n_asked >= 0:
            elapsed += time.process_time() - began
        n_asked += _BATCH
        for trial in trials:
            study.tell(trial, _sphere(trial.params))
    return 1e3 * elapsed / n_asked


def _sphere(params: dict[str, float]) -> float:
    return float(np.sum((np.array(list(params.values())) - 0.3) ** 2))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--histories", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--dimension", type=int, default=20)
    parser.add_argument("--trials", type=int, default=60, help="measured trials of each")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    space: dict[str, BaseDistribution] = {
        f"x{index}": FloatDistribution(0.0, 1.0) for index in range(options.dimension)
    }
    trials = evolved_trials(max(options.histories), space)
    print(f"processor time of asking for a trial in {options.dimension} dimensions, ms")
    print("sampler   " + "".join(f"{f'after {n}':>14}" for n in options.histories))
    for name in SAMPLER_NAMES:
        costs = [ms_per_ask(name, trials[:n], options.trials, space) for n in options.histories]
        print(f"{name:<10}" + "".join(f"{cost:>14.2f}" for cost in costs), flush=True)


if __name__ == "__main__":
    main()
