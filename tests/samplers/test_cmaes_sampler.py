"""CMA-ES proposes what Optuna's proposes, and stores its state once per generation."""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from compared_samplers import (
    CONTINUOUS,
    MIXED,
    Bench,
    MakeSampler,
    Outcome,
    assert_equal_proposals,
    sphere,
    with_failures,
    with_infinities,
)
from optuna.samplers import CmaEsSampler
from optuna.storages import InMemoryStorage
from optuna.trial import Trial, TrialState, create_trial

from wpo_optuna.samplers.cmaes_sampler import CachingCmaEsSampler
from wpo_optuna.sqlite import SQLiteStorage
from wpo_optuna.storage import transaction

POPSIZE = 9  # cmaes' own choice in six dimensions


def makers(**options: Any) -> tuple[MakeSampler, MakeSampler]:
    def of(kind: type[CmaEsSampler]) -> MakeSampler:
        return lambda seed: kind(seed=seed, warn_independent_sampling=False, **options)

    return of(CmaEsSampler), of(CachingCmaEsSampler)


@pytest.mark.parametrize("outcome", [sphere, with_failures, with_infinities])
@pytest.mark.parametrize("size", [1, 4, POPSIZE, 20])
def test_proposals_are_optunas(size: int, outcome: Outcome) -> None:
    assert_equal_proposals(lambda bench: bench.run(120 // size, size, outcome), makers())


@pytest.mark.parametrize(
    "options",
    [
        {"popsize": 5},
        {"n_startup_trials": 13},
        {"use_separable_cma": True},
        {"with_margin": True},
        {"lr_adapt": True},
        {"consider_pruned_trials": True},
        {"x0": dict.fromkeys(CONTINUOUS, 1.0), "sigma0": 0.1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_proposals_are_optunas_with_every_option(options: dict[str, Any]) -> None:
    assert_equal_proposals(lambda bench: bench.run(9, 7, with_failures), makers(**options))


@pytest.mark.parametrize("with_margin", [False, True])
def test_proposals_are_optunas_for_all_kinds_of_numbers(with_margin: bool) -> None:
    assert_equal_proposals(
        lambda bench: bench.run(12, 8, space=MIXED),
        makers(with_margin=with_margin),
        direction="maximize",
    )


def test_proposals_are_optunas_when_the_common_space_shrinks() -> None:
    def run(bench: Bench) -> None:
        bench.run(5, POPSIZE)
        bench.run(5, POPSIZE, space={name: CONTINUOUS[name] for name in ("x1", "x4")})

    assert_equal_proposals(run, makers())


def test_proposals_are_optunas_in_a_study_that_new_processes_resume(tmp_path: Path) -> None:
    def run(bench: Bench) -> None:
        for seed in range(2, 8):
            bench.run(3, 5, with_failures)
            bench.resume(seed)

    assert_equal_proposals(run, makers(), tmp_path)


def first_of_a_generation_fails(bench: Bench) -> None:
    bench.run(1, 1)
    bench.run(1, POPSIZE)
    for _ in range(4):
        first, *others = bench.ask(POPSIZE + 2, CONTINUOUS)
        bench.tell(others[:4])
        bench.resume(7)  # the trial that holds the state is still running
        later = bench.ask(2, CONTINUOUS)
        bench.tell([first], lambda trial: None)
        bench.tell([*later, *others[4:]])
        bench.resume(8)


@pytest.mark.parametrize("in_memory", [True, False])
def test_proposals_are_optunas_where_the_trial_with_the_state_fails(
    tmp_path: Path, in_memory: bool
) -> None:
    assert_equal_proposals(first_of_a_generation_fails, makers(), None if in_memory else tmp_path)


def test_proposals_are_optunas_where_failed_trials_are_repeated() -> None:
    def run(bench: Bench) -> None:
        retry = optuna.storages.RetryFailedTrialCallback()
        bench.run(1, 1)
        bench.run(2, POPSIZE)
        for _ in range(4):
            # A trial that failed before it had all of its parameters is sampled once more.
            some = {"x0": CONTINUOUS["x0"]}
            holder, other = bench.ask(2, some)
            bench.tell([holder, other], lambda trial: None)
            bench.run(1, POPSIZE)
            # The second to be repeated brings the state of the generation that is over.
            for trial in (other, holder):
                retry(bench.study, bench.study.trials[trial.number])
            bench.run(1, 2)
            bench.resume(5)
            bench.run(1, POPSIZE - 2)

    assert_equal_proposals(run, makers())


def test_proposals_are_optunas_when_another_process_adds_and_finishes_trials(
    tmp_path: Path,
) -> None:
    def run(bench: Bench) -> None:
        bench.run(1, 1)
        for seed in range(3, 9):
            here = bench.ask(6, CONTINUOUS)
            study = bench.study
            bench.resume(seed)
            bench.run(2, 4, with_failures)
            there = bench.ask(3, CONTINUOUS)
            bench.study = study
            bench.tell(here[3:])
            bench.run(1, 3)
            # Late ones take their place among those of the generation by their numbers.
            bench.tell(here[:3])
            bench.tell(there)

    assert_equal_proposals(run, makers(), tmp_path)


def test_optunas_sampler_and_this_one_take_turns(tmp_path: Path) -> None:
    plain, caching = makers()

    def turns(order: tuple[MakeSampler, ...]) -> list[dict[str, Any]]:
        name = "".join(str(kind is caching) for kind in order)
        bench = Bench(order[0], tmp_path / f"{name}.db")
        for kind in (*order, *order):
            bench._make = kind
            bench.resume(5)
            bench.run(5, POPSIZE)
        return bench.proposed

    assert turns((plain, caching)) == turns((plain, plain)) == turns((caching, plain))


def stored_optimizers(study: optuna.Study) -> list[int]:
    """The generation of each stored optimizer."""
    generations = []
    for trial in study.get_trials(deepcopy=False):
        chunks = [v for k, v in trial.system_attrs.items() if k.startswith("cma:optimizer")]
        if chunks:
            generations.append(pickle.loads(bytes.fromhex("".join(chunks))).generation)
    return generations


def test_each_generation_stores_its_state_once() -> None:
    bench = Bench(makers()[1])
    bench.run(1, 1)
    bench.run(8, POPSIZE)
    assert stored_optimizers(bench.study) == list(range(1, 8))
    plain = Bench(makers()[0])
    plain.run(1, 1)
    plain.run(8, POPSIZE)
    assert len(stored_optimizers(plain.study)) == 7 * POPSIZE


def test_nothing_of_a_batch_that_was_undone_is_relied_upon(tmp_path: Path) -> None:
    def run(bench: Bench) -> None:
        bench.run(1, 1)
        bench.run(3, POPSIZE)
        if isinstance(bench.study.sampler, CachingCmaEsSampler):
            state = bench.study.sampler._cma_rng.rng.get_state()
            ask_and_undo(bench.study, 3)
            bench.study.sampler._cma_rng.rng.set_state(state)
        # Other trials get the numbers of those that were undone.
        bench.study.add_trials(
            [
                create_trial(
                    value=1.0, params=dict.fromkeys(CONTINUOUS, 0.0), distributions=CONTINUOUS
                )
            ]
            * 3
        )
        bench.run(3, POPSIZE)

    assert_equal_proposals(run, makers(), tmp_path)


def ask_and_undo(study: optuna.Study, n: int) -> None:
    with contextlib.suppress(InterruptedError), transaction(study):
        for _ in range(n):
            study.ask(CONTINUOUS)
        raise InterruptedError


def test_a_state_that_could_not_be_stored_is_stored_by_the_next_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(makers()[1])
    bench.run(1, 1)
    bench.run(1, POPSIZE)
    write = bench.study._storage.set_trial_system_attr

    def failing(trial_id: int, key: str, value: Any) -> None:
        if key == "cma:optimizer:1":
            raise OSError
        write(trial_id, key, value)

    monkeypatch.setattr(bench.study._storage, "set_trial_system_attr", failing)
    with pytest.raises(OSError):
        bench.study.ask(CONTINUOUS)
    monkeypatch.undo()
    bench.run(1, POPSIZE)
    complete = bench.study.get_trials(states=(TrialState.COMPLETE,))
    holds_state = ["cma:optimizer:1" in trial.system_attrs for trial in complete[-POPSIZE:]]
    assert holds_state == [True] + [False] * (POPSIZE - 1)


def test_trials_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(makers()[1])
    bench.run(20, POPSIZE)
    looked_at = []
    note: Callable[[Any, Any], None] = bench.study.sampler._history._note  # type: ignore[attr-defined]
    monkeypatch.setattr(
        bench.study.sampler._history,  # type: ignore[attr-defined]
        "_note",
        lambda trial: (looked_at.append(trial.number), note(trial)),  # type: ignore[call-arg]
    )
    bench.run(3, POPSIZE)
    bench.ask(1, CONTINUOUS)
    assert looked_at == list(range(20 * POPSIZE - POPSIZE, 23 * POPSIZE))


def test_a_pickled_sampler_goes_on(tmp_path: Path) -> None:
    def run(bench: Bench) -> None:
        bench.run(5, POPSIZE)
        bench.study.sampler = pickle.loads(pickle.dumps(bench.study.sampler))
        bench.run(3, POPSIZE)

    assert_equal_proposals(run, makers(), tmp_path)


def test_threads_share_a_sampler(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "threads.db")
    study = optuna.create_study(storage=storage, sampler=makers()[1](1))
    study.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, n_trials=60, n_jobs=4)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert study.best_value < 0.05


class Halting(InMemoryStorage):
    """Stops halfway through the first state that is stored, until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.is_halfway, self.may_go_on = threading.Event(), threading.Event()

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_system_attr(trial_id, key, value)
        if key == "cma:optimizer:0" and not self.is_halfway.is_set():
            self.is_halfway.set()
            assert self.may_go_on.wait(timeout=60)


def test_no_thread_restores_a_state_that_another_has_stored_by_half() -> None:
    storage = Halting()
    study = optuna.create_study(storage=storage, sampler=makers()[1](1))

    def ask_and_tell() -> Trial:
        trial = study.ask(CONTINUOUS)
        study.tell(trial, sphere(storage.get_trial(trial._trial_id)))
        return trial

    for _ in range(1 + POPSIZE):
        ask_and_tell()
    with ThreadPoolExecutor() as threads:
        slow = threads.submit(ask_and_tell)
        assert storage.is_halfway.wait(timeout=60)
        try:
            meanwhile = [ask_and_tell() for _ in range(3)]
        finally:
            storage.may_go_on.set()
        assert slow.result(timeout=60).number < meanwhile[0].number
    for _ in range(2 * POPSIZE):
        ask_and_tell()
    generations = [trial.system_attrs.get("cma:generation") for trial in study.trials]
    assert generations[1 + POPSIZE :][:POPSIZE] == [1] * POPSIZE
    assert generations[-1] == 3
