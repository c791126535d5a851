"""What a trial costs with each sampler after few and after many trials, Optuna's own beside it.

Measured is the processor time of asking and telling batches of trials of a study in memory, as the
loop does it: besides the sampler this is Optuna's own part of a trial, which is what random search
costs. The history, points that differential evolution found, is written beforehand, and the first
batch, which reads it, is not counted.

    python -m experiments.benchmark_samplers
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, QMCSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial

from experiments.benchmark_de_sampler import (
    evolved_trials,
    search_space,
    study_with_history,
    value,
)
from wpo_optuna.samplers import SAMPLER_NAMES, make_sampler
from wpo_optuna.study.optimize import GenerationalSampler

_SEED = 1
# CMA-ES's batch is its population in 20 dimensions.
_BATCHES = {"de": 12, "cmaes": 12, "tpe": 8, "random": 12, "qmc": 12}
_OPTUNAS: dict[str, Callable[[], BaseSampler]] = {
    "cmaes": lambda: CmaEsSampler(seed=_SEED, warn_independent_sampling=False),
    "tpe": lambda: TPESampler(seed=_SEED, constant_liar=True, multivariate=True),
    "qmc": lambda: QMCSampler(seed=_SEED, scramble=True, warn_independent_sampling=False),
}


@dataclass(frozen=True)
class Cost:
    """What a trial costs.

    Attributes:
        sampler: its name.
        optunas: whether it is Optuna's own implementation.
        history: how many trials the study had before.
        batch: how many trials were asked before they were told.
        n_trials: how many were measured.
        ms_per_trial: processor time of one, in milliseconds.
    """

    sampler: str
    optunas: bool
    history: int
    batch: int
    n_trials: int
    ms_per_trial: float


def benchmark(
    histories: Sequence[int], n_trials: int, n_slow_trials: int, dimension: int
) -> list[Cost]:
    """Measures each sampler after each number of trials.

    Args:
        histories: numbers of trials.
        n_trials: how many trials to measure.
        n_slow_trials: how many of Optuna's TPE, which takes longer.
        dimension: number of parameters.
    """
    space = search_space(dimension)
    trials = list(evolved_trials(max(histories), space))
    costs = []
    for name in SAMPLER_NAMES:
        for history in histories:
            own = make_sampler(name, seed=_SEED, search_space=space if name == "de" else None)
            costs.append(_cost(name, False, own, trials[:history], n_trials, space))
            if name in _OPTUNAS:
                n = n_slow_trials if name == "tpe" else n_trials
                costs.append(_cost(name, True, _OPTUNAS[name](), trials[:history], n, space))
    return costs


def _cost(
    name: str,
    optunas: bool,
    sampler: BaseSampler,
    history: list[FrozenTrial],
    n_trials: int,
    space: dict[str, BaseDistribution],
) -> Cost:
    study = study_with_history(InMemoryStorage(), history)
    study.sampler = sampler
    batch = _BATCHES[name]
    _run_batch(study, batch, space)
    _advance_sequence(study, len(history))
    start, n_done = time.process_time(), 0
    while n_done < n_trials:
        n_done += _run_batch(study, batch, space)
    elapsed = time.process_time() - start
    return Cost(name, optunas, len(history), batch, n_done, 1e3 * elapsed / n_done)


def _advance_sequence(study: optuna.Study, n: int) -> None:
    """Lets a quasi-Monte Carlo search go on after its n-th point, as if it had made the history."""
    for key in study._storage.get_study_system_attrs(study._study_id):
        if key.startswith("qmc:"):
            study._storage.set_study_system_attr(study._study_id, key, n)


def _run_batch(study: optuna.Study, size: int, space: dict[str, BaseDistribution]) -> int:
    if isinstance(study.sampler, GenerationalSampler):
        size = min(size, study.sampler.candidates_left(study))
    trials = [study.ask(space) for _ in range(size)]
    for trial in trials:
        study.tell(trial, value(trial.params))
    return size


def _print_table(costs: Sequence[Cost], histories: Sequence[int]) -> None:
    print("CPU ms per trial, asked and told" + "this project".rjust(20) + "Optuna's own".rjust(24))
    columns = [f"after {history}" for history in histories]
    print(f"{'sampler':<10}{'batch':>6}" + "".join(f"{c:>14}" for c in (columns + columns)))
    for name in SAMPLER_NAMES:
        cells = []
        for optunas in (False, True):
            # Where this project uses Optuna's class, there is one number for both.
            source = optunas and (name in _OPTUNAS or name == "de")
            found = {
                c.history: f"{c.ms_per_trial:.2f}"
                for c in costs
                if c.sampler == name and c.optunas == source
            }
            cells += [found.get(history, "-") for history in histories]
        print(f"{name:<10}{_BATCHES[name]:>6}" + "".join(f"{cell:>14}" for cell in cells))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmark_samplers.json"))
    parser.add_argument("--histories", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--dimension", type=int, default=20)
    parser.add_argument("--trials", type=int, default=480, help="measured trials of each")
    parser.add_argument(
        "--slow-trials", type=int, default=32, help="measured trials of Optuna's own TPE"
    )
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    costs = benchmark(options.histories, options.trials, options.slow_trials, options.dimension)
    _print_table(costs, options.histories)
    options.output.write_text(json.dumps([asdict(cost) for cost in costs], indent=2) + "\n")


if __name__ == "__main__":
    main()
