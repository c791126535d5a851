"""Worker processes on one study.

They are forked from a process that has imported what they need, so that all of them begin within
moments and meet in the search; a process started by the shell would import for seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna
from analytic_engine import AnalyticEngine
from optuna.storages import get_storage, run_grpc_proxy_server
from small_problems import small_problem

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.samplers import make_sampler
from wpo_optuna.storage import FinishedTrials, load_study, open_storage
from wpo_optuna.study.mirror import Mirror, sample
from wpo_optuna.study.objective import HypercubeObjective

STUDY = "fleet"
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["wpo_optuna.study.run", "wpo_optuna.study.problem_setup"])

# A tile so small that scoring through aihwkit takes little time.
HARDWARE = """
from aihwkit.inference import GlobalDriftCompensation, PCMLikeNoiseModel
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.parameters import MappingParameter


def small():
    return InferenceRPUConfig(
        noise_model=PCMLikeNoiseModel(),
        drift_compensation=GlobalDriftCompensation(),
        mapping=MappingParameter(max_input_size=48),
    )
"""
SMALL = (
    "--rpu-config", "hardware.py:small", "--test-out-features", "4", "--t-steps", "1s,1h",
    "--baseline-iterations", "2", "--no-self-check", "--finalists", "1", "--no-report",
    "--study-name", STUDY, "--tracking-uri", "none", "--quiet",
)  # fmt: skip


class Worker:
    """A process that works on the study.

    Args:
        function: what it does.
        arguments: its arguments.
    """

    def __init__(self, function: Callable[..., object], *arguments: Any) -> None:
        # A daemon: where a test fails, nobody waits for it.
        self._process: BaseProcess = _CONTEXT.Process(target=function, args=arguments, daemon=True)
        self._process.start()

    def kill(self) -> None:
        """Ends it with SIGKILL, as a machine that fails would."""
        self._process.kill()
        assert self.wait() == -signal.SIGKILL, "it had ended before"

    def wait(self) -> int | None:
        """Waits for its end, and returns its exit status."""
        self._process.join(240)
        return self._process.exitcode


def search(url: str, sampler: str, n_trials: int) -> None:
    """The loop of a study, with an engine that takes no time."""
    objective = HypercubeObjective(small_problem(), AnalyticEngine(small_problem()))
    options: dict[str, Any] = {"popsize": 2} if sampler == "de" else {}
    # Random samplers of one seed would propose the same points.
    seed = 5 if sampler == "de" else os.getpid()
    made = make_sampler(sampler, seed=seed, search_space=objective.distributions, **options)
    storage = open_storage(url)
    study = optuna.create_study(storage=storage, study_name=STUDY, load_if_exists=True)
    mirror = Mirror(study, storage, objective, made)
    mirror.on_stored = lambda trials: time.sleep(0.02)
    sample(mirror, total=n_trials, batch_size=5)


def serve(url: str, port: int) -> None:
    """Optuna's gRPC proxy of another storage."""
    run_grpc_proxy_server(get_storage(url), host="127.0.0.1", port=port)


def wait_until_open(url: str) -> None:
    """Waits for a server that has just been started, for four minutes at most."""
    deadline = time.monotonic() + 240
    while True:
        try:
            open_storage(url)
            return
        except InvalidArgument:
            if time.monotonic() > deadline:
                raise


def carry_out(directory: Path, *words: str) -> None:
    """``python -m wpo_optuna.study`` with these words; what it prints is in the file "told"."""
    os.chdir(directory)
    told = os.open("told", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(told, 1)
    os.dup2(told, 2)
    from wpo_optuna.study.__main__ import main

    raise SystemExit(main(words))


def start_study(directory: Path, *words: str) -> Worker:
    """A worker that carries out the study's command in a new directory."""
    directory.mkdir()
    (directory / "hardware.py").write_text(HARDWARE)
    return Worker(carry_out, directory, *SMALL, *words)


def study_with(url: str, n_trials: int) -> optuna.Study:
    """The study, once it has so many finished trials."""
    deadline, n_finished = time.monotonic() + 240, 0
    study: optuna.Study | None = None
    while time.monotonic() < deadline:
        if study is None:
            try:
                study = load_study(url, STUDY)
            except InvalidArgument:  # nobody has made it yet
                time.sleep(0.05)
                continue
            stored = FinishedTrials(study, [])
        n_finished += len(stored.read_new())
        if n_finished >= n_trials:
            return study
        time.sleep(0.01)
    raise AssertionError(f"{n_finished} trials after four minutes")
