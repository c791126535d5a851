"""What sampling costs per trial, after few and after many trials.

The time of Optuna's own part of a trial is left out: measured are the calls that Optuna makes to
the sampler, in a study whose history was written beforehand. Short and long history take turns,
so that the ratio of their times does not depend on what else the machine does.

    python -m experiments.benchmark_de_sampler
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from wpo_optuna.samplers import DESampler
from wpo_optuna.samplers.candidate_claims import CLAIM_KEY
from wpo_optuna.sqlite import SQLiteStorage

_SEED = 1
_STUDY = "benchmark"


def search_space(dimension: int) -> dict[str, BaseDistribution]:
    """As many parameters between 0 and 1."""
    return {f"x{index}": FloatDistribution(0.0, 1.0) for index in range(dimension)}


def value(params: dict[str, float]) -> float:
    """Sphere, with its minimum inside of the bounds."""
    return float(np.sum((np.array(list(params.values())) - 0.3) ** 2))


def evolved_trials(n_trials: int, space: dict[str, BaseDistribution]) -> Iterator[FrozenTrial]:
    """The finished trials of a study, as the sampler itself would have left them."""
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, sampler=DESampler(seed=_SEED, search_space=space))
    for _ in range(n_trials):
        trial = storage.get_trial(storage.create_new_trial(study._study_id))
        params = study.sampler.sample_relative(study, trial, space)
        claim = storage.get_trial(trial._trial_id).system_attrs[CLAIM_KEY]
        storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [value(params)])
        study.sampler.after_trial(
            study, storage.get_trial(trial._trial_id), TrialState.COMPLETE, None
        )
        yield create_trial(
            value=value(params),
            params=params,
            distributions=space,
            system_attrs={CLAIM_KEY: claim},
        )


def study_with_history(storage: BaseStorage, trials: list[FrozenTrial]) -> optuna.Study:
    """A study that holds finished trials already."""
    study = optuna.create_study(storage=storage, study_name=_STUDY)
    batch = storage.batch if isinstance(storage, SQLiteStorage) else lambda study_id: nullcontext()
    for start in range(0, len(trials), 500):
        with batch(study._study_id):
            for trial in trials[start : start + 500]:
                storage.create_new_trial(study._study_id, template_trial=trial)
    return study


def seconds_of_one_trial(study: optuna.Study, space: dict[str, BaseDistribution]) -> float:
    """Time in the sampler, for one trial from asking to telling."""
    storage, sampler = study._storage, study.sampler
    trial = storage.get_trial(storage.create_new_trial(study._study_id))
    began = time.perf_counter()
    sampler.before_trial(study, trial)
    asked = sampler.infer_relative_search_space(study, trial)
    params = sampler.sample_relative(study, trial, asked)
    elapsed = time.perf_counter() - began
    trial = storage.get_trial(trial._trial_id)
    began = time.perf_counter()
    sampler.after_trial(study, trial, TrialState.COMPLETE, [value(params)])
    elapsed += time.perf_counter() - began
    storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [value(params)])
    return elapsed


def compare(
    open_storage: Callable[[str], BaseStorage],
    histories: list[list[FrozenTrial]],
    space: dict[str, BaseDistribution],
    n_measured: int,
) -> list[list[float]]:
    """Seconds of the first trial, which replays the history, and of each of the next ones."""
    studies = [
        study_with_history(open_storage(str(len(history))), history) for history in histories
    ]
    for study in studies:
        study.sampler = DESampler(seed=_SEED, search_space=space)
    return [
        list(times)
        for times in zip(
            *(
                [seconds_of_one_trial(study, space) for study in studies]
                for _ in range(n_measured + 1)
            ),
            strict=True,
        )
    ]


def main() -> None:
    """Prints the cost of sampling for each storage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", type=int, default=500, help="trials of the short history")
    parser.add_argument("--long", type=int, default=50_000, help="trials of the long history")
    parser.add_argument("--dimension", type=int, default=20)
    parser.add_argument("--trials", type=int, default=600, help="measured trials of each")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = search_space(options.dimension)
    trials = list(evolved_trials(options.long, space))
    histories = [trials[: options.short], trials]
    with tempfile.TemporaryDirectory() as directory:
        kinds: dict[str, Callable[[str], BaseStorage]] = {
            "memory": lambda name: InMemoryStorage(),
            "SQLite": lambda name: SQLiteStorage(Path(directory) / f"{name}.db"),
        }
        for kind, open_storage in kinds.items():
            times = compare(open_storage, histories, space, options.trials)
            medians = [statistics.median(of_study[1:]) for of_study in times]
            means = [statistics.mean(of_study[1:]) for of_study in times]
            for history, of_study, median, mean in zip(
                histories, times, medians, means, strict=True
            ):
                print(
                    f"{kind}, after {len(history):6d} trials: median {1e3 * median:.3f} ms, "
                    f"mean {1e3 * mean:.3f} ms a trial; replaying took {of_study[0]:.2f} s"
                )
            print(
                f"{kind}, ratio long : short: median {medians[1] / medians[0]:.2f}, "
                f"mean {means[1] / means[0]:.2f}"
            )


if __name__ == "__main__":
    main()
