"""The loop of a study: batches, totals, interruption, several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
import pytest
from analytic_engine import AnalyticEngine
from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.problem.weight_programming import WeightProgrammingProblem
from wpo_optuna.samplers import make_sampler
from wpo_optuna.storage import open_storage
from wpo_optuna.study.objective import HypercubeObjective
from wpo_optuna.study.optimize import PHASE, Origin, optimize, record, recorded

POPSIZE = 2  # 28 members in 14 dimensions


def objective_of(problem: WeightProgrammingProblem) -> HypercubeObjective:
    return HypercubeObjective(problem, AnalyticEngine(problem))


def new_study(storage: object, objective: HypercubeObjective, sampler: str = "de") -> optuna.Study:
    options = {"popsize": POPSIZE} if sampler == "de" else {}
    return optuna.create_study(
        study_name="loop",
        storage=storage,  # type: ignore[arg-type]
        load_if_exists=True,
        sampler=make_sampler(sampler, seed=5, search_space=objective.distributions, **options),
    )


def run(study: optuna.Study, objective: HypercubeObjective, n_trials: int, batch: int) -> None:
    optimize(
        study,
        objective,
        n_trials=n_trials,
        batch_size=batch,
        on_finished=lambda trials: None,
        should_stop=lambda: False,
    )


def content(study: optuna.Study) -> list[str]:
    """What each completed trial holds, in a form that does not depend on the order of names."""
    return [
        json.dumps([trial.params, trial.value, trial.user_attrs], sort_keys=True)
        for trial in study.get_trials(states=(TrialState.COMPLETE,))
    ]


@pytest.mark.parametrize("batch", [1, 7, 28, 1000])
def test_batches_of_any_size_hold_the_trials_of_a_loop_one_by_one(
    problem: WeightProgrammingProblem, tmp_path: Path, batch: int
) -> None:
    objective = objective_of(problem)
    one_by_one = new_study(optuna.storages.InMemoryStorage(), objective)
    one_by_one.optimize(objective, n_trials=60)

    study = new_study(open_storage(f"sqlite:///{tmp_path}/a.db"), objective)
    run(study, objective, 60, batch)

    assert content(study) == content(one_by_one)


def test_a_batch_never_crosses_a_generation(problem: WeightProgrammingProblem) -> None:
    objective = objective_of(problem)
    run(new_study(optuna.storages.InMemoryStorage(), objective), objective, 60, batch=1000)
    assert isinstance(objective.engine, AnalyticEngine)
    assert objective.engine.batches == [28, 28, 4]


@pytest.mark.parametrize("sampler", ["de", "cmaes", "tpe", "random", "qmc"])
def test_a_resumed_study_is_brought_to_its_total_and_repeats_no_point(
    problem: WeightProgrammingProblem, tmp_path: Path, sampler: str
) -> None:
    objective = objective_of(problem)
    url = f"sqlite:///{tmp_path}/a.db"
    run(new_study(open_storage(url), objective, sampler), objective, 20, batch=8)
    study = new_study(open_storage(url), objective, sampler)
    study.sampler = make_sampler(
        sampler,
        seed=5,
        search_space=objective.distributions,
        n_earlier_trials=len(study.trials),
        **({"popsize": POPSIZE} if sampler == "de" else {}),
    )
    run(study, objective, 45, batch=8)
    trials = study.get_trials(states=(TrialState.COMPLETE,))
    assert len(trials) == 45
    assert len({tuple(trial.params.values()) for trial in trials}) == 45


def test_every_trial_carries_what_was_found_out(problem: WeightProgrammingProblem) -> None:
    objective = objective_of(problem)
    study = new_study(optuna.storages.InMemoryStorage(), objective)
    run(study, objective, 5, batch=5)
    for trial in study.trials:
        x = objective.point(trial.params)
        strategy = problem.hypercube.decode(x)
        decoded = problem.hypercube.decode_arrays(x)
        assert trial.user_attrs["f_lst"] == list(strategy.f_lst)
        assert trial.user_attrs["g_lst"] == [list(curve) for curve in strategy.g_lst]
        assert trial.user_attrs["k_w"] == decoded.k_w[0]
        assert trial.user_attrs["baseline"] == objective.baseline == pytest.approx(0.1)
        expected = (trial.user_attrs["tnmse"] - 0.1) / 0.1 + problem.loss_margin
        assert trial.value == pytest.approx(expected, rel=1e-12)


def test_an_engine_that_fails_leaves_failed_trials_and_the_study_goes_on_later(
    problem: WeightProgrammingProblem,
) -> None:
    class FailsOnce(AnalyticEngine):
        failed = False

        def tnmse(self, x: Sequence, seed: int | None = None) -> np.ndarray:
            if len(self.batches) == 1 and not self.failed:
                self.failed = True
                raise MemoryError("out of memory")
            return super().tnmse(x, seed)

    objective = HypercubeObjective(problem, FailsOnce(problem))
    study = new_study(optuna.storages.InMemoryStorage(), objective)
    with pytest.raises(MemoryError):
        run(study, objective, 60, batch=12)
    run(study, objective, 60, batch=12)

    smooth = objective_of(problem)
    uninterrupted = new_study(optuna.storages.InMemoryStorage(), smooth)
    run(uninterrupted, smooth, 60, batch=12)
    assert Counter(content(study)) == Counter(content(uninterrupted))


def test_points_found_elsewhere_are_recorded_as_completed_trials_of_their_phase(
    problem: WeightProgrammingProblem, tmp_path: Path
) -> None:
    objective = objective_of(problem)
    study = new_study(open_storage(f"sqlite:///{tmp_path}/a.db"), objective)
    run(study, objective, 3, batch=3)
    x = np.random.default_rng(0).random((4, problem.hypercube.dimension))
    origins = [Origin("polish", 7, index) for index in range(4)]
    trials = record(study, objective, x, objective.engine.tnmse(x), origins)
    assert [trial.number for trial in trials] == [3, 4, 5, 6]
    assert record(study, objective, x, objective.engine.tnmse(x), origins) == []
    assert recorded(study) == set(origins)
    assert all(trial.user_attrs[PHASE] == "polish" for trial in trials)
    np.testing.assert_array_equal([objective.point(trial.params) for trial in trials], x)
    assert study.best_value == min(trial.value for trial in study.trials)


WORKER = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import test_optimize as t
from wpo_optuna.storage import open_storage
from small_problems import small_problem
problem = small_problem()
objective = t.objective_of(problem)
study = t.new_study(open_storage(sys.argv[1]), objective)
print("ready", flush=True)
import time
def finished(trials):
    print(len(trials), flush=True)
    time.sleep(float(sys.argv[3]))
t.optimize(study, objective, n_trials=int(sys.argv[2]), batch_size=5, on_finished=finished,
           should_stop=lambda: False)
"""


def start_worker(url: str, n_trials: int, pause: float) -> subprocess.Popen[str]:
    tests = Path(__file__).parent
    code = WORKER.format(tests=str(tests), root=str(tests.parent))
    return subprocess.Popen(
        [sys.executable, "-c", code, url, str(n_trials), str(pause)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_share_a_study_and_a_killed_one_loses_nothing(
    problem: WeightProgrammingProblem, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    objective = objective_of(problem)
    new_study(open_storage(url), objective)  # exists before both start
    workers = [start_worker(url, 100, 0.02), start_worker(url, 100, 0.02)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        worker.stdout.readline()
    os.kill(workers[0].pid, signal.SIGKILL)
    assert workers[1].wait(timeout=60) == 0
    workers[0].wait()

    alone = new_study(optuna.storages.InMemoryStorage(), objective)
    run(alone, objective, 100, batch=5)
    shared = optuna.load_study(study_name="loop", storage=url)
    assert Counter(content(shared)) == Counter(content(alone))


def finished_numbers(trials: Sequence[FrozenTrial]) -> list[int]:
    return [trial.number for trial in trials]


def test_trials_of_another_program_are_not_waited_for_for_ever(
    problem: WeightProgrammingProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain Optuna script asked for a trial and died: nobody can know whose it was."""
    monkeypatch.setattr("wpo_optuna.study.workers._OWNERLESS_S", 0.3)
    for sampler in ("de", "random"):
        objective = objective_of(problem)
        study = new_study(optuna.storages.InMemoryStorage(), objective, sampler)
        run(study, objective, 10, batch=5)
        study._storage.create_new_trial(study._study_id)
        run(study, objective, 30, batch=5)
        states = Counter(trial.state for trial in study.trials)
        assert states == {TrialState.COMPLETE: 30, TrialState.RUNNING: 1}


def test_a_wait_for_other_processes_says_for_whom(
    problem: WeightProgrammingProblem,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("wpo_optuna.study.optimize._FIRST_MESSAGE_S", 0.2)
    objective = objective_of(problem)
    study = new_study(optuna.storages.InMemoryStorage(), objective, "random")
    run(study, objective, 1, batch=1)
    study.ask()
    end = time.monotonic() + 0.6
    optimize(
        study, objective, n_trials=2, batch_size=8, on_finished=lambda trials: None,
        should_stop=lambda: time.monotonic() > end,
    )  # fmt: skip
    assert "trials 1 of study" in caplog.text
    assert "study.tell(number, state=TrialState.FAIL)" in caplog.text


def test_waiting_for_a_process_that_never_finishes_ends_with_the_stop_request(
    problem: WeightProgrammingProblem,
) -> None:
    objective = objective_of(problem)
    study = new_study(optuna.storages.InMemoryStorage(), objective, "random")
    run(study, objective, 1, batch=1)
    study.ask()  # somebody else's, of unknown origin: it is waited for
    end = time.monotonic() + 0.5
    done: list[int] = []
    optimize(
        study,
        objective,
        n_trials=3,
        batch_size=8,
        on_finished=lambda trials: done.extend(finished_numbers(trials)),
        should_stop=lambda: time.monotonic() > end,
    )
    assert done == [2]
