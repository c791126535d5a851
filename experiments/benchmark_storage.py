"""What a finished trial costs to store and to read, on the disk and in memory.

Trials have 20 parameters and 5 attributes, as those of two pairs of devices, and are appended in
batches of 256, each committed to the disk. Medians over batches, because a busy machine only ever
makes a batch slower; in brackets the processor time of this process, which leaves out waiting for
the disk, a database server and other programs.

    python -m experiments.benchmark_storage --full --storage sqlite:///new.db
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, create_trial

from wpo_optuna.storage import FinishedTrials, load_study, masked_url, open_storage

SPACE: dict[str, BaseDistribution] = {
    name: FloatDistribution(0, 1) for name in ["f_1", "k_w", *(f"g_0_{knot}" for knot in range(18))]
}
BATCH_SIZE = 256
PAGE = 1000
BATCHES_MEASURED = 9
STUDY = "benchmark"


@dataclass(frozen=True)
class Cost:
    """Milliseconds per trial."""

    wall: float
    processor: float

    def __str__(self) -> str:
        return f"{self.wall:.2f} ({self.processor:.2f})"

    @classmethod
    def of(cls, run: Callable[[], object], n_trials: int) -> Cost:
        """What something costs that stores or reads so many trials."""
        started = time.perf_counter(), time.process_time()
        run()
        wall, processor = time.perf_counter() - started[0], time.process_time() - started[1]
        return cls(1e3 * wall / n_trials, 1e3 * processor / n_trials)

    @classmethod
    def median(cls, costs: Sequence[Cost]) -> Cost:
        """The median of each."""
        walls, processors = [cost.wall for cost in costs], [cost.processor for cost in costs]
        return cls(statistics.median(walls), statistics.median(processors))


def batch_of_trials(size: int, seed: int) -> list[FrozenTrial]:
    """Finished trials such as a study has."""
    rng = np.random.default_rng(seed)
    return [
        create_trial(
            value=rng.random(),
            params=dict(zip(SPACE, rng.random(len(SPACE)).tolist(), strict=True)),
            distributions=SPACE,
            user_attrs={
                "tnmse": rng.random(),
                "baseline": 0.1524,
                "f_lst": [1.0, rng.random()],
                "g_lst": rng.uniform(0, 25, (4, 11)).tolist(),
                "k_w": rng.random(),
            },
            system_attrs={"de:candidate": {"generation": seed, "index": index}},
        )
        for index in range(size)
    ]


def _candidate(trial: FrozenTrial) -> tuple[object, ...]:
    return tuple(trial.system_attrs.get("de:candidate", {"number": trial.number}).values())


def appending(stored: FinishedTrials, n_trials: int, n_batches: int, first: int) -> Cost:
    """The cost of a trial once a study has so many; it is brought to that number first."""

    def append(trials: list[FrozenTrial]) -> int:
        return stored.append(trials).n_complete

    seed, n_complete = first, append([])
    costs: list[Cost] = []
    while n_complete < n_trials or len(costs) < n_batches:
        trials = batch_of_trials(BATCH_SIZE, seed)
        costs.append(Cost.of(lambda: append(trials), BATCH_SIZE))  # noqa: B023
        seed, n_complete = seed + 1, n_complete + BATCH_SIZE
    return Cost.median(costs[-n_batches:])


def into_memory(url: str) -> tuple[int, Cost, float]:
    """The number of trials, and what one of them costs to read into memory: ms, and kB there."""
    stored = FinishedTrials(load_study(url, STUDY), ["tnmse"], _candidate)
    memory = InMemoryStorage()
    study_id = memory.create_new_study([optuna.study.StudyDirection.MINIMIZE])

    def read_page() -> int:
        page = stored.read_new(PAGE)
        for trial in page:
            memory.create_new_trial(study_id, template_trial=trial)
        return len(page)

    def read_rest() -> None:
        while read_page():
            pass

    n_before = read_page()  # what is loaded and compiled once
    tracemalloc.start()
    n_traced = read_page()
    kilobytes = tracemalloc.get_traced_memory()[0] / 1e3 / max(n_traced, 1)
    tracemalloc.stop()
    cost = Cost.of(read_rest, 1)
    n = memory.get_n_trials(study_id)
    n_timed = max(n - n_before - n_traced, 1)
    return n, Cost(cost.wall / n_timed, cost.processor / n_timed), kilobytes


def bytes_on_disk(url: str) -> int:
    """The size of an SQLite database, its log included; 0 of others."""
    path = Path(url.removeprefix("sqlite:///"))
    return sum(file.stat().st_size for file in (path, Path(f"{path}-wal")) if file.exists())


def plain_cost(url: str, n_trials: int) -> Cost:
    """The cost of storing a trial with Optuna's own calls."""
    study = load_study(url, STUDY)
    return Cost.of(lambda: study.add_trials(batch_of_trials(n_trials, 0)), n_trials)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--full", action="store_true", help="grow to 100 000 trials (minutes)")
    parser.add_argument("--storage", help="URL of a database; default: a new SQLite file")
    parser.add_argument("--plain-trials", type=int, default=20, help="trials of Study.add_trials")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        url = options.storage or f"sqlite:///{Path(folder) / 'new.db'}"
        study = optuna.create_study(storage=open_storage(url), study_name=STUDY)
        stored = FinishedTrials(study, identity=_candidate)
        print(f"{masked_url(url)}: ms per trial of 20 parameters and 5 attributes")
        seed = 0
        for size in [*options.sizes, *([100_000] if options.full else [])]:
            seed += 1_000_000
            cost = appending(stored, size, BATCHES_MEASURED, seed)
            print(f"storing, at {size:>7} trials    {cost}", flush=True)
        print(f"storing, by Study.add_trials   {plain_cost(url, options.plain_trials)}")
        n, reading, kilobytes = into_memory(url)
        print(f"reading all {n:>7}             {reading}, {n * reading.wall / 1e3:.1f} s in all")
        on_disk = bytes_on_disk(url) / n / 1e3
        print(f"kB a trial: {on_disk:.2f} on the disk, {kilobytes:.2f} in memory")


if __name__ == "__main__":
    main()
