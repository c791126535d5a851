"""The loop of a study on its mirror: batches, totals, resuming, several processes, kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from analytic_engine import AnalyticEngine
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from wpo_optuna.problem import WeightProgrammingProblem
from wpo_optuna.samplers import make_sampler
from wpo_optuna.storage import open_storage
from wpo_optuna.study.mirror import Mirror, Origin, sample
from wpo_optuna.study.objective import HypercubeObjective

POPSIZE = 2  # 28 members in 14 dimensions


def objective_of(problem: WeightProgrammingProblem) -> HypercubeObjective:
    return HypercubeObjective(problem, AnalyticEngine(problem))


def mirror_of(
    storage: BaseStorage, objective: HypercubeObjective, sampler: str = "de", sessions: int = 0
) -> Mirror:
    options: dict[str, Any] = {"popsize": POPSIZE} if sampler == "de" else {}
    made = make_sampler(
        sampler, seed=5, search_space=objective.distributions, n_earlier_sessions=sessions,
        **options,
    )  # fmt: skip
    study = optuna.create_study(study_name="loop", storage=storage, load_if_exists=True)
    return Mirror(study, storage, objective, made)


def run(mirror: Mirror, n_trials: int, batch: int) -> Mirror:
    sample(mirror, total=n_trials, batch_size=batch)
    return mirror


def completed(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE,))


def content(study: optuna.Study) -> list[str]:
    """What each completed trial holds, in a form that does not depend on the order of names."""
    return [
        json.dumps([trial.params, trial.value, trial.user_attrs], sort_keys=True)
        for trial in completed(study)
    ]


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_batches_of_any_size_hold_the_trials_of_a_loop_one_by_one(
    problem: WeightProgrammingProblem, tmp_path: Path, batch: int
) -> None:
    objective = objective_of(problem)
    options = {"seed": 5, "search_space": objective.distributions, "popsize": POPSIZE}
    one_by_one = optuna.create_study(sampler=make_sampler("de", **options))
    one_by_one.optimize(objective, n_trials=60)
    mirror = run(mirror_of(open_storage(f"sqlite:///{tmp_path}/a.db"), objective), 60, batch)
    assert content(mirror.study) == content(one_by_one)


def test_a_batch_never_crosses_a_generation(problem: WeightProgrammingProblem) -> None:
    objective = objective_of(problem)
    run(mirror_of(InMemoryStorage(), objective), 60, batch=1000)
    assert isinstance(objective.engine, AnalyticEngine)
    assert objective.engine.batches == [28, 28, 4]


@pytest.mark.parametrize("sampler", ["de", "cmaes", "tpe", "random", "qmc"])
def test_a_resumed_study_is_brought_to_its_total_and_repeats_no_point(
    problem: WeightProgrammingProblem, tmp_path: Path, sampler: str
) -> None:
    objective = objective_of(problem)
    url = f"sqlite:///{tmp_path}/a.db"
    run(mirror_of(open_storage(url), objective, sampler), 20, batch=8)
    study = run(mirror_of(open_storage(url), objective, sampler, sessions=1), 45, batch=8).study
    trials = completed(study)
    assert len(trials) == 45
    assert len({tuple(trial.params.values()) for trial in trials}) == 45


def test_a_quasi_random_sequence_is_continued(
    problem: WeightProgrammingProblem, tmp_path: Path
) -> None:
    objective = objective_of(problem)
    whole = run(mirror_of(InMemoryStorage(), objective, "qmc"), 40, batch=8).study
    url = f"sqlite:///{tmp_path}/a.db"
    run(mirror_of(open_storage(url), objective, "qmc"), 20, batch=8)
    resumed = run(mirror_of(open_storage(url), objective, "qmc", sessions=1), 40, batch=8).study
    # Optuna's sampler takes the first point at random, and each session's first batch may too.
    points, again = ([tuple(t.params.values()) for t in completed(s)] for s in (whole, resumed))
    assert len(set(points[1:]) & set(again[1:])) >= 38


def test_every_trial_carries_what_was_found_out(problem: WeightProgrammingProblem) -> None:
    objective = objective_of(problem)
    study = run(mirror_of(InMemoryStorage(), objective), 5, batch=5).study
    for trial in study.trials:
        x = objective.point(trial.params)
        strategy = problem.hypercube.decode(x)
        assert trial.user_attrs["f_lst"] == list(strategy.f_lst)
        assert trial.user_attrs["g_lst"] == [list(curve) for curve in strategy.g_lst]
        assert trial.user_attrs["k_w"] == problem.hypercube.decode_arrays(x).k_w[0]
        assert trial.user_attrs["baseline"] == objective.baseline == pytest.approx(0.1)
        expected = (trial.user_attrs["tnmse"] - 0.1) / 0.1 + problem.loss_margin
        assert trial.value == pytest.approx(expected, rel=1e-12)
        assert trial.datetime_start <= trial.datetime_complete


def test_an_engine_that_fails_leaves_nothing_and_the_study_goes_on_later(
    problem: WeightProgrammingProblem,
) -> None:
    class FailsOnce(AnalyticEngine):
        failed = False

        def tnmse(self, x: Sequence, seed: int | None = None) -> np.ndarray:
            if len(self.batches) == 1 and not self.failed:
                self.failed = True
                raise MemoryError("out of memory")
            return super().tnmse(x, seed)

    storage, objective = InMemoryStorage(), HypercubeObjective(problem, FailsOnce(problem))
    with pytest.raises(MemoryError):
        run(mirror_of(storage, objective), 60, batch=12)
    study = run(mirror_of(storage, objective), 60, batch=12).study
    whole = run(mirror_of(InMemoryStorage(), objective_of(problem)), 60, batch=12).study
    assert content(study) == content(whole)


def test_points_found_elsewhere_are_recorded_once_and_within_the_total(
    problem: WeightProgrammingProblem, tmp_path: Path
) -> None:
    objective = objective_of(problem)
    mirror = run(mirror_of(open_storage(f"sqlite:///{tmp_path}/a.db"), objective), 3, batch=3)
    x = np.random.default_rng(0).random((4, problem.hypercube.dimension))
    tnmse = objective.engine.tnmse(x)
    origins = [Origin("polish", 7, index) for index in range(4)]
    recorded: list[list[int]] = []
    mirror.on_stored = lambda trials: recorded.append([trial.number for trial in trials])
    mirror.record(x[:2], tnmse[:2], origins[:2], 6)
    mirror.record(x, tnmse, origins, 6)
    mirror.record(x, tnmse, origins, 6)
    assert recorded == [[3, 4], [5], []]
    assert mirror.origins() == set(origins[:3])
    stored = completed(mirror.study)
    np.testing.assert_array_equal([objective.point(t.params) for t in stored[3:]], x[:3])
    assert [t.user_attrs["tnmse"] for t in stored[3:]] == tnmse[:3].tolist()


WORKER = """
import sys
sys.path[:0] = [{study!r}, {tests!r}, {root!r}]
import test_sampling as t
from wpo_optuna.storage import open_storage
from small_problems import small_problem
import time
mirror = t.mirror_of(open_storage(sys.argv[1]), t.objective_of(small_problem()), sys.argv[2])
print("ready", flush=True)
def stored(trials):
    print(len(trials), flush=True)
    time.sleep(0.02)
mirror.on_stored = stored
t.sample(mirror, total=int(sys.argv[3]), batch_size=5)
"""


def start_worker(url: str, n_trials: int, sampler: str = "de") -> subprocess.Popen[str]:
    here = Path(__file__).parent
    code = WORKER.format(study=str(here), tests=str(here.parent), root=str(here.parents[1]))
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, url, sampler, str(n_trials)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_study_killed_again_and_again_holds_the_trials_of_one_never_interrupted(
    problem: WeightProgrammingProblem, tmp_path: Path
) -> None:
    """The moments are random; no outcome of a right study fails the test (false alarms: none)."""
    url, moments = f"sqlite:///{tmp_path}/a.db", random.Random(3)
    for _ in range(2):
        process = start_worker(url, 5000)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(moments.randint(2, 6)):
            process.stdout.readline()
        time.sleep(moments.uniform(0, 0.03))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    objective = objective_of(problem)
    study = run(mirror_of(open_storage(url), objective), 200, batch=7).study
    assert [trial.number for trial in study.trials] == list(range(200))
    whole = run(mirror_of(InMemoryStorage(), objective), 200, batch=7).study
    assert Counter(content(study)) == Counter(content(whole))


def test_processes_on_one_study_keep_to_its_total_and_none_waits_for_a_killed_one(
    problem: WeightProgrammingProblem, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    workers = [start_worker(url, 150) for _ in range(3)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    os.kill(workers[0].pid, signal.SIGKILL)
    for worker in workers[1:]:
        worker.communicate(timeout=60)
        assert worker.returncode == 0
    objective = objective_of(problem)
    study = mirror_of(open_storage(url), objective).study
    whole = run(mirror_of(InMemoryStorage(), objective), 150, batch=150).study
    assert len(study.trials) == 150
    # The last generation is cut by the total: others of its candidates may be in it.
    n_sure = 150 // 28 * 28
    sure = Counter(content(whole)[:n_sure])
    assert sure & Counter(content(study)) == sure
