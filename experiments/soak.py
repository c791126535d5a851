"""Studies in rough weather: workers are killed, servers are restarted, and the disk is full.

Four workers, each the study's command in a process of its own, bring a study to its total. At
random moments (after so many new trials, however fast the machine is) one of them gets SIGKILL or
SIGTERM and another one is started in its place, MLflow's server is restarted, and so is PostgreSQL
or, of a study on SQLite, the disk is full for a while. One study comes after the other, with all
samplers in turn, until the time is over. Of each study is then said whether its trials are exactly
as many as asked for and no two the same, whether differential evolution's are those of a study that
nobody disturbed, whether MLflow has what the storage has, whether a worker gave up for anything but
a full disk, and whether a process is left.

    python -m experiments.soak --minutes 20
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from mlflow import MlflowClient
from optuna.trial import FrozenTrial, TrialState

from tests.mlflow_servers import MlflowServer
from tests.postgresql_server import PostgresqlServer
from tests.small_disk import SmallDisk
from wpo_optuna.errors import InvalidArgument
from wpo_optuna.storage import FinishedTrials, load_study
from wpo_optuna.track.destination import Destination

# Multiples of a generation: of one that the total cuts, any candidates may be in the study.
TRIALS = {"de": 1000, "random": 1000, "cmaes": 500, "qmc": 1000, "tpe": 200}
N_WORKERS = 4
# On average, in a study.
N_DISASTERS = 12
PATIENCE_S = 600.0
STORAGES = ("postgresql", "sqlite")
_DISK_MB = 200.0
# By this a worker's processes are found again, those that deliver to MLflow included.
_MARK = "WPO_SOAK"


@dataclass
class Weather:
    """What happened to one study, and what was found afterwards.

    Attributes:
        sampler: its sampler.
        storage: the kind of its storage.
        n_trials: the total it was to be brought to.
        happened: how often what happened.
        sentences: with which workers gave up.
        faults: what is not as it should be.
        seconds: how long it took.
    """

    sampler: str
    storage: str
    n_trials: int
    happened: Counter[str] = field(default_factory=Counter)
    sentences: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    COLUMNS = ("started", "SIGKILL", "SIGTERM", "database", "full disk", "MLflow", "gave up")

    def row(self) -> str:
        """A row of the table."""
        counts = " | ".join(str(self.happened[column]) for column in self.COLUMNS)
        found = "; ".join(self.faults) or "as it should be"
        study = f"{self.sampler} | {self.storage} | {self.n_trials}"
        return f"| {study} | {counts} | {self.seconds:.0f} s | {found} |"

    @classmethod
    def head(cls) -> str:
        """The head of the table."""
        names = (
            "sampler", "storage", "trials", "workers started", "SIGKILL", "SIGTERM",
            "database restarted", "disk full", "MLflow restarted", "gave up with a sentence",
            "time", "found afterwards",
        )  # fmt: skip
        return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


class Fleet:
    """Workers on one study.

    Args:
        words: the study's options.
        directory: where they run, each in a directory of its own.
        weather: takes down what happens.
    """

    def __init__(self, words: Sequence[str], directory: Path, weather: Weather) -> None:
        self.mark = uuid.uuid4().hex
        self._words, self._directory, self._weather = words, directory, weather
        # Where each of those that run, or ended well, does so.
        self._workers: dict[subprocess.Popen, Path] = {}
        for _ in range(N_WORKERS):
            self._start()

    def _start(self) -> None:
        place = self._directory / f"{self.mark}-{self._weather.happened['started']}"
        place.mkdir()
        self._weather.happened["started"] += 1
        with (place / "told").open("w") as told:
            worker = subprocess.Popen(
                [sys.executable, "-m", "wpo_optuna.study", *self._words],
                cwd=place, env=environment() | {_MARK: self.mark}, stdout=told, stderr=told,
            )  # fmt: skip
        self._workers[worker] = place

    def send(self, name: str) -> None:
        """Sends a signal to one of the workers, and starts another one in its place."""
        running = [worker for worker in self._workers if worker.poll() is None]
        if running:
            worker = random.choice(running)
            worker.send_signal(signal.Signals[name])
            worker.wait()
            del self._workers[worker]
            self._weather.happened[name] += 1
            self._start()

    def have_given_up(self) -> bool:
        """Whether none of its workers runs that has not ended well."""
        return all(worker.poll() is not None for worker in self._workers)

    def is_at_work(self) -> bool:
        """Whether a worker runs; one that gave up is replaced, which its user would do."""
        for worker in [w for w in self._workers if w.poll() not in (None, 0)]:
            told = (self._workers.pop(worker) / "told").read_text().splitlines()
            self._weather.happened["gave up"] += 1
            sentence = told[-1] if told else f"nothing, with status {worker.returncode}"
            self._weather.sentences.append(sentence)
            if "is full" not in sentence:
                self._weather.faults.append("a worker gave up")
            self._start()
        return any(worker.poll() is None for worker in self._workers)

    def left(self) -> list[str]:
        """The commands of all its processes that run."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"{_MARK}={self.mark}".encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_text().replace("\0", " "))
            except OSError:  # it has ended, or is another user's
                continue
        return found


def environment() -> dict[str, str]:
    """That of a worker, which finds this package and no store of somebody's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    root = str(Path(__file__).parents[1])
    return kept | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


class Disk:
    """A disk that an SQLite database is on, and that may be full."""

    def __init__(self, directory: Path) -> None:
        self._disk = SmallDisk(directory, _DISK_MB)
        self.url = f"sqlite:///{directory}/wpo.db"

    def be_full(self, fleet: Fleet) -> None:
        """Leaves no space until the workers of a fleet have given up, or for a minute."""
        self._disk.fill()
        deadline = time.monotonic() + 60
        while not fleet.have_given_up() and time.monotonic() < deadline:
            time.sleep(0.05)
        self._disk.resize(_DISK_MB)

    def stop(self) -> None:
        """Ends it, with its files."""
        self._disk.unmount()


def soak(
    sampler: str, n_trials: int, storage: PostgresqlServer | Disk, mlflow: MlflowServer,
    directory: Path,
) -> Weather:  # fmt: skip
    """Brings a study to its total in rough weather, and looks at what there is then."""
    url, started = storage.url, time.monotonic()
    weather = Weather(sampler, url.partition(":")[0].partition("+")[0], n_trials)
    name = f"soak-{sampler}-{uuid.uuid4().hex[:6]}"
    search = (
        "--sampler", sampler, "--n-trials", str(n_trials), "--batch-size", "4", "--no-polish",
        "--finalists", "1", "--no-self-check", "--no-report", "--baseline-iterations", "2",
        "--quiet", "--study-name", name, "--trial-runs", "best",
    )  # fmt: skip
    records = ("--storage", url, "--tracking-uri", mlflow.uri)
    fleet = Fleet((*search, *records), directory, weather)

    def trouble_storage() -> None:
        if isinstance(storage, PostgresqlServer):
            storage.restart(random.choice(["fast", "immediate"]))
            weather.happened["database"] += 1
        else:
            storage.be_full(fleet)
            weather.happened["full disk"] += 1

    def restart_mlflow() -> None:
        mlflow.stop()
        time.sleep(random.uniform(0, 3))
        mlflow.start()
        weather.happened["MLflow"] += 1

    others: list[Callable[[], None]] = [
        lambda: fleet.send("SIGKILL"), lambda: fleet.send("SIGTERM"), restart_mlflow,
    ]  # fmt: skip
    # The storage comes first: a study may be over after the third.
    disasters = itertools.cycle([trouble_storage, *random.sample(others, len(others))])
    progress, next_disaster = Progress(url, name), 1
    while fleet.is_at_work():
        time.sleep(0.05)
        if n_trials > progress.n_completed() >= next_disaster:
            next(disasters)()
            next_disaster = progress.n_completed() + round(
                random.expovariate(N_DISASTERS / n_trials)
            )
        if time.monotonic() - started > PATIENCE_S:
            weather.faults.append("not finished in ten minutes")
            break
    weather.faults += faults_of(fleet, url, name, n_trials, mlflow.uri)
    if sampler == "de":
        calm = f"sqlite:///{directory}/{name}.db"
        alone = ("--storage", calm, "--tracking-uri", "none")
        command = [sys.executable, "-m", "wpo_optuna.study", *search, *alone]
        subprocess.run(
            command, cwd=directory, env=environment(), stdout=subprocess.DEVNULL, check=True
        )
        if points(completed(url, name)) != points(completed(calm, name)):
            weather.faults.append("other trials than in calm weather")
    weather.seconds = time.monotonic() - started
    return weather


def completed(url: str, name: str) -> list[FrozenTrial]:
    """The completed trials of a stored study."""
    return load_study(url, name).get_trials(states=(TrialState.COMPLETE,))


class Progress:
    """How far a study has got."""

    def __init__(self, url: str, name: str) -> None:
        self._url, self._name = url, name
        self._reader: FinishedTrials | None = None
        self._n_completed = 0

    def n_completed(self) -> int:
        """How many trials it has; 0 as long as there is no such study."""
        if self._reader is None:
            try:
                self._reader = FinishedTrials(load_study(self._url, self._name), [])
            except InvalidArgument:
                return 0
        self._n_completed += len(self._reader.read_new())
        return self._n_completed


def points(trials: Sequence[FrozenTrial]) -> Counter[tuple[object, ...]]:
    """The parameters and value of each trial."""
    return Counter((*trial.params.items(), trial.value) for trial in trials)


def faults_of(fleet: Fleet, url: str, name: str, n_trials: int, uri: str) -> list[str]:
    """What is not as it should be after a study has ended."""
    faults = []
    deadline = time.monotonic() + PATIENCE_S / 5
    while (left := fleet.left()) and time.monotonic() < deadline:
        time.sleep(0.5)
    if left:
        faults.append(f"{len(left)} processes left: {left[0]}")
    trials = completed(url, name)
    if len(trials) != n_trials or len(load_study(url, name).trials) != n_trials:
        faults.append(f"{len(trials)} completed trials")
    if len(points(trials)) != len(trials):
        faults.append("trials that are there twice")
    words = ["--study-name", name, "--storage", url, "--tracking-uri", uri]
    command = [sys.executable, "-m", "wpo_optuna.track", *words]
    tracked = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if tracked.returncode != 0:
        return [*faults, f"track: {tracked.stderr.strip()}"]
    return faults + differences_in_mlflow(trials, name, uri)


def differences_in_mlflow(trials: Sequence[FrozenTrial], name: str, uri: str) -> list[str]:
    """What MLflow's series of a study lacks, or has twice."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(Destination(uri).experiment_name)
    runs = client.search_runs([experiment.experiment_id], f"tags.`wpo.study` = '{name}'")
    studies = [run for run in runs if run.data.tags.get("wpo.kind") == "study"]
    if len(studies) != 1:
        return [f"{len(studies)} runs of the study in MLflow"]
    series = client.get_metric_history(studies[0].info.run_id, "trial_tnmse")
    recorded = sorted((point.step, point.value) for point in series)
    if recorded != [(trial.number, trial.user_attrs["tnmse"]) for trial in trials]:
        return [f"{len(recorded)} points in MLflow, or others than stored"]
    status = studies[0].info.status
    return [] if status == "FINISHED" else [f"MLflow says {status}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Soaks and prints the table; returns 1 if something was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="no study begins after that")
    parser.add_argument("--samplers", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--storages", nargs="+", choices=STORAGES, default=list(STORAGES))
    parser.add_argument("--seed", type=int, help="of the moments; default: another one each time")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    random.seed(options.seed)
    ends, n_faults = time.monotonic() + 60 * options.minutes, 0
    with tempfile.TemporaryDirectory(prefix="wpo_soak_") as folder, ExitStack() as stack:
        mlflow = MlflowServer(Path(folder))
        stack.callback(mlflow.stop)
        mlflow.start()
        storages: list[PostgresqlServer | Disk] = []
        for kind in options.storages:
            storage = PostgresqlServer() if kind == "postgresql" else Disk(Path(folder) / "disk")
            stack.callback(storage.stop)
            storages.append(storage)
        print(Weather.head(), flush=True)
        for sampler, storage in zip(
            itertools.cycle(options.samplers), itertools.cycle(storages), strict=False
        ):
            weather = soak(sampler, TRIALS[sampler], storage, mlflow, Path(folder))
            print(weather.row(), flush=True)
            for sentence in weather.sentences:
                print(f"gave up: {sentence}", file=sys.stderr)
            n_faults += len(weather.faults)
            if time.monotonic() > ends:
                break
    return int(n_faults > 0)


if __name__ == "__main__":
    sys.exit(main())
