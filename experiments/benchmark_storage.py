"""What it costs to record a trial: the fast SQLite storage, Optuna's own storages, their ratio.

``python -m experiments.benchmark_storage`` grows studies to 1 000 and 10 000 trials (with
``--full`` also to 100 000) and measures, at each size, the next thousand trials in batches of 200:
20 parameters and the attributes of a weight-programming trial each, committed to the disk. The
study is grown through the storage alone; "ask, tell" goes through ``Study.ask`` (random sampler),
``set_user_attr`` and ``Study.tell``, whose own cost is what the same takes in Optuna's memory.
Medians over batches, because a busy machine only ever makes a batch slower; in brackets the
processor time, which leaves out the waiting for the disk and for other programs.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from wpo_optuna.sqlite import SQLiteStorage
from wpo_optuna.storage import transaction

SPACE: dict[str, BaseDistribution] = {
    name: FloatDistribution(0, 1) for name in ["f_1", "k_w", *(f"g_0_{knot}" for knot in range(18))]
}
BATCH_SIZE = 200
BATCHES_MEASURED = 5


@dataclass(frozen=True)
class Cost:
    """Milliseconds per trial."""

    wall: float
    processor: float

    def __str__(self) -> str:
        return f"{self.wall:.2f} ({self.processor:.2f})"


@dataclass(frozen=True)
class Costs:
    """What a trial costs at one size of the study.

    Attributes:
        n_trials: The size of the study.
        storage: Creating, setting 20 parameters and 5 attributes, and finishing a trial.
        ask_and_tell: The same through a study.
        in_memory: Through a study in Optuna's memory: the cost of Optuna's own Python.
    """

    n_trials: int
    storage: Cost
    ask_and_tell: Cost
    in_memory: Cost


def attributes(generator: np.random.Generator) -> dict[str, object]:
    """The user attributes of a trial with two pairs of devices and 11 knots."""
    return {
        "tnmse": generator.random(),
        "baseline": 0.1524,
        "f_lst": [1.0, generator.random()],
        "g_lst": generator.uniform(0, 25, (4, 11)).tolist(),
        "k_w": generator.random(),
    }


def record_batch(storage: BaseStorage, study_id: int, size: int) -> None:
    """Record finished trials with the storage's own methods, as a batch where it has batches."""
    generator = np.random.default_rng(size)
    points = generator.random((size, len(SPACE)))
    with _batch(storage, study_id):
        trial_ids = []
        for point in points:
            trial_id = storage.create_new_trial(study_id)
            for (name, distribution), value in zip(SPACE.items(), point, strict=True):
                storage.set_trial_param(trial_id, name, float(value), distribution)
            trial_ids.append(trial_id)
    with _batch(storage, study_id):
        for trial_id in trial_ids:
            for key, attribute in attributes(generator).items():
                storage.set_trial_user_attr(trial_id, key, attribute)
            storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [generator.random()])


def ask_and_tell_batch(study: optuna.Study, size: int) -> None:
    """Record finished trials as a study does."""
    generator = np.random.default_rng(size)
    with transaction(study):
        trials = [study.ask(SPACE) for _ in range(size)]
    with transaction(study):
        for trial in trials:
            for key, attribute in attributes(generator).items():
                trial.set_user_attr(key, attribute)
            study.tell(trial, generator.random())


@contextlib.contextmanager
def _batch(storage: BaseStorage, study_id: int) -> Iterator[None]:
    if isinstance(storage, SQLiteStorage):
        with storage.batch(study_id):
            yield
    else:
        yield


def median_cost(run: Callable[[], object], n_trials: int, repeats: int = BATCHES_MEASURED) -> Cost:
    """The median over ``repeats`` of the cost of ``run``, which records or reads ``n_trials``."""
    wall, processor = [], []
    for _ in range(repeats):
        started = time.perf_counter(), time.process_time()
        run()
        wall.append((time.perf_counter() - started[0]) / n_trials * 1e3)
        processor.append((time.process_time() - started[1]) / n_trials * 1e3)
    return Cost(statistics.median(wall), statistics.median(processor))


def measure(sizes: list[int], directory: Path) -> Iterator[Costs]:
    """The costs at each of the growing sizes."""
    storage = SQLiteStorage(directory / "fast.db")
    study_id = storage.create_new_study([StudyDirection.MINIMIZE], "storage")
    sampler = optuna.samplers.RandomSampler(seed=1)
    study = optuna.load_study(study_name="storage", storage=storage, sampler=sampler)
    in_memory = optuna.create_study(sampler=sampler)
    for size in sizes:
        while storage.get_n_trials(study_id) < size:
            record_batch(storage, study_id, BATCH_SIZE)
        while len(in_memory.get_trials(deepcopy=False)) < min(size, sizes[0]):
            ask_and_tell_batch(in_memory, BATCH_SIZE)
        yield Costs(
            size,
            median_cost(lambda: record_batch(storage, study_id, BATCH_SIZE), BATCH_SIZE),
            median_cost(lambda: ask_and_tell_batch(study, BATCH_SIZE), BATCH_SIZE),
            median_cost(lambda: ask_and_tell_batch(in_memory, BATCH_SIZE), BATCH_SIZE),
        )


def measure_plain(directory: Path, n_trials: int) -> Cost:
    """Optuna's own storage, every write a transaction."""
    storage = RDBStorage(f"sqlite:///{directory / 'plain.db'}")
    study_id = storage.create_new_study([StudyDirection.MINIMIZE], "storage")
    record_batch(storage, study_id, 1)
    return median_cost(lambda: record_batch(storage, study_id, n_trials), n_trials, repeats=3)


def measure_reading(directory: Path) -> tuple[int, Cost, Cost]:
    """The number of trials, and the cost of reading one into a new process: fast, and plain."""
    path = directory / "fast.db"
    n_trials = SQLiteStorage(path).get_n_trials(1)
    fast = median_cost(lambda: SQLiteStorage(path).get_n_trials(1), n_trials, 1)
    sample = directory / "sample.db"
    storage = SQLiteStorage(sample)
    record_batch(storage, storage.create_new_study([StudyDirection.MINIMIZE]), 500)
    plain = median_cost(lambda: RDBStorage(f"sqlite:///{sample}").get_all_trials(1), 500, 3)
    return n_trials, fast, plain


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="grow to 100 000 trials (minutes)")
    parser.add_argument("--plain-trials", type=int, default=20, help="trials for RDBStorage")
    parser.add_argument("--directory", type=Path, help="where to write; default: a temporary one")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sizes = [1_000, 10_000, *([100_000] if options.full else [])]
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        plain = measure_plain(directory, options.plain_trials)
        print("ms per trial of 20 parameters and 5 attributes, committed in batches of 200")
        print(f"{'trials':>8} {'storage':>13} {'ask, tell':>13} {'in memory':>13} {'of plain':>9}")
        costs = []
        for cost in measure(sizes, directory):
            costs.append(cost)
            ratio = f"1/{plain.wall / cost.storage.wall:.0f}"
            print(
                f"{cost.n_trials:>8} {cost.storage!s:>13} {cost.ask_and_tell!s:>13} "
                f"{cost.in_memory!s:>13} {ratio:>9}",
                flush=True,
            )
        print(f"plain RDBStorage, {options.plain_trials} trials: {plain} ms per trial")
        first, last = costs[0].storage, costs[-1].storage
        print(
            f"storage at {sizes[-1]} trials costs {last.wall / first.wall:.2f} "
            f"({last.processor / first.processor:.2f}) times what it costs at {sizes[0]}"
        )
        size_kb = (directory / "fast.db").stat().st_size / 1e3
        n_trials, fast, plain_reading = measure_reading(directory)
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(
            f"reading all {n_trials} trials in a new process: {fast} ms per trial (plain "
            f"RDBStorage, 500 trials: {plain_reading}); file {size_kb / n_trials:.1f} kB per "
            f"trial; peak memory of this benchmark, with every trial read twice, {peak_mb:.0f} MB"
        )


if __name__ == "__main__":
    main()
