"""TPE proposes what Optuna's proposes, after few and after many trials."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
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
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator, _ParzenEstimatorParameters
from optuna.samplers._tpe.sampler import default_weights
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from wpo_optuna.samplers import tpe_sampler
from wpo_optuna.samplers.tpe_sampler import CachingTPESampler
from wpo_optuna.samplers.tpe_screening import _Kernels, screened
from wpo_optuna.sqlite import SQLiteStorage

CATEGORICAL: dict[str, BaseDistribution] = {
    "kind": CategoricalDistribution(["a", "b", None]),
    "x": FloatDistribution(0.0, 1.0),
}


def makers(**options: Any) -> tuple[MakeSampler, MakeSampler]:
    options = {"constant_liar": True, "multivariate": True} | options

    def of(kind: type[TPESampler]) -> MakeSampler:
        return lambda seed: kind(seed=seed, **options)

    return of(TPESampler), of(CachingTPESampler)


@pytest.mark.parametrize("outcome", [sphere, with_failures, with_infinities])
@pytest.mark.parametrize("size", [1, 8, 25])
def test_proposals_are_optunas(size: int, outcome: Outcome) -> None:
    assert_equal_proposals(lambda bench: bench.run(100 // size, size, outcome), makers())


@pytest.mark.parametrize(
    "options",
    [
        {"constant_liar": False},
        {"multivariate": False},
        {"multivariate": None},
        {"group": True},
        {"n_startup_trials": 30},
        {"n_ei_candidates": 1},
        {"gamma": lambda n: n // 2},
        {"gamma": lambda n: 0},
        {"weights": np.ones},
        {"consider_magic_clip": False},
        {"consider_endpoints": True},
    ],
    ids=lambda options: "-".join(map(str, options)),
)
def test_proposals_are_optunas_with_every_option(options: dict[str, Any]) -> None:
    assert_equal_proposals(lambda bench: bench.run(8, 6, with_failures), makers(**options))


@pytest.mark.parametrize("space", [MIXED, CATEGORICAL], ids=["mixed", "categorical"])
def test_proposals_are_optunas_for_all_kinds_of_parameters(
    space: dict[str, BaseDistribution],
) -> None:
    def outcome(trial: FrozenTrial) -> float:
        return sum(
            hash(str(v)) % 7 if isinstance(v, str) else v or 0 for v in trial.params.values()
        )

    assert_equal_proposals(
        lambda bench: bench.run(8, 7, outcome, space), makers(), direction="maximize"
    )


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_proposals_are_optunas_with_equal_values(direction: str) -> None:
    def outcome(trial: FrozenTrial) -> float:
        return float(trial.number % 3)

    assert_equal_proposals(lambda bench: bench.run(12, 5, outcome), makers(), direction=direction)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_proposals_are_optunas_with_pruned_trials_and_violated_constraints(direction: str) -> None:
    def objective(trial: Trial) -> float:
        x = trial.suggest_float("x", -1, 1)
        trial.set_constraint("late", x - 0.5)
        if trial.number % 3 == 0:
            for step in range(trial.number % 5):
                trial.report(math.nan if trial.number % 6 == 0 and step == 3 else x, step)
            raise optuna.TrialPruned
        return x

    def run(bench: Bench) -> None:
        # So few completed trials that pruned and infeasible ones are among the best.
        bench.study.optimize(objective, n_trials=50)
        bench.proposed = [trial.params for trial in bench.study.trials]

    assert_equal_proposals(run, makers(gamma=lambda n: n * 3 // 4), direction=direction)


def test_proposals_are_optunas_when_spaces_change() -> None:
    def run(bench: Bench) -> None:
        bench.run(3, 7)
        bench.run(3, 7, space={name: CONTINUOUS[name] for name in ("x1", "x4")})
        bench.run(3, 7, space=dict.fromkeys(CONTINUOUS, FloatDistribution(0.0, 1.0)))

    for options in ({}, {"multivariate": False}, {"group": True}):
        assert_equal_proposals(run, makers(**options))


def test_proposals_are_optunas_beside_running_trials(tmp_path: Path) -> None:
    def run(bench: Bench) -> None:
        bench.run(1, 12)
        for seed in range(2, 6):
            here = bench.ask(5, CONTINUOUS)
            study = bench.study
            bench.resume(seed)
            bench.run(2, 4, with_failures)
            bench.ask(2, CONTINUOUS)  # never told
            bench.study = study
            bench.tell(here[3:])
            bench.run(1, 3)
            bench.tell(here[:3])

    assert_equal_proposals(run, makers(), tmp_path)


@pytest.mark.parametrize("in_memory", [True, False])
def test_proposals_are_optunas_in_a_study_that_new_processes_resume(
    tmp_path: Path, in_memory: bool
) -> None:
    def run(bench: Bench) -> None:
        for seed in range(2, 6):
            bench.run(3, 7, with_infinities)
            bench.resume(seed)

    assert_equal_proposals(run, makers(), None if in_memory else tmp_path)


def add_history(study: optuna.Study, n: int, space: dict[str, BaseDistribution]) -> None:
    points = np.random.default_rng(3).random((n, len(space)))
    study.add_trials(
        [
            create_trial(
                params=dict(zip(space, point.tolist(), strict=True)),
                distributions=space,
                value=float(((point - 0.3) ** 2).sum()),
            )
            for point in points
        ]
    )


def test_proposals_are_optunas_after_thousands_of_trials() -> None:
    space: dict[str, BaseDistribution] = {
        f"x{index}": FloatDistribution(0.0, 1.0) for index in range(10)
    }

    def run(bench: Bench) -> None:
        add_history(bench.study, 2000, space)
        bench.run(4, 6, space=space)

    assert_equal_proposals(run, makers())


def test_nothing_of_a_batch_that_was_undone_is_relied_upon(tmp_path: Path) -> None:
    def run(bench: Bench) -> None:
        bench.run(3, 8)
        if isinstance(bench.study.sampler, CachingTPESampler):
            state = bench.study.sampler._rng.rng.get_state()
            with pytest.raises(RuntimeError):  # noqa: SIM117, PT012
                with bench.study._storage.batch(bench.study._study_id):  # type: ignore[attr-defined]
                    for _ in range(3):
                        bench.study.tell(bench.study.ask(CONTINUOUS), -100.0)
                    bench.study.ask(CONTINUOUS)
                    raise RuntimeError
            bench.study.sampler._rng.rng.set_state(state)
        bench.run(3, 8)

    assert_equal_proposals(run, makers(), tmp_path)


def test_trials_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(makers()[1])
    bench.run(6, 8)
    read = []
    to_internal_repr = FloatDistribution.to_internal_repr

    def counted(self: FloatDistribution, value: float) -> float:
        read.append(value)
        return to_internal_repr(self, value)

    monkeypatch.setattr(FloatDistribution, "to_internal_repr", counted)
    bench.ask(1, CONTINUOUS)
    # Those of the eight trials told last, and what is suggested (several times).
    assert len(set(read)) == (8 + 1) * len(CONTINUOUS)


def test_a_study_with_two_objectives_is_left_to_optuna() -> None:
    def proposed(make: MakeSampler) -> list[dict[str, Any]]:
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=make(4))
        study.optimize(lambda t: (t.suggest_float("x", 0, 1), t.suggest_float("y", 0, 1)), 30)
        return [trial.params for trial in study.trials]

    plain, caching = makers(multivariate=None)
    assert proposed(plain) == proposed(caching)


def test_a_pickled_sampler_goes_on() -> None:
    def run(bench: Bench) -> None:
        bench.run(3, 8)
        bench.study.sampler = pickle.loads(pickle.dumps(bench.study.sampler))
        bench.run(2, 8)

    assert_equal_proposals(run, makers())


def test_threads_share_a_sampler(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "threads.db")
    study = optuna.create_study(storage=storage, sampler=makers()[1](1))
    study.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, n_trials=60, n_jobs=4)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert study.best_value < 0.05


# Screening


def estimators(n: int, space: dict[str, BaseDistribution], clip: bool = True) -> Any:
    generator = np.random.default_rng(n)
    parameters = _ParzenEstimatorParameters(1.0, clip, False, default_weights, True)

    def observations(size: int) -> dict[str, np.ndarray]:
        quantiles = generator.beta(0.3, 0.3, (len(space), size))
        return {
            name: d.low * (d.high / d.low) ** q if d.log else d.low + (d.high - d.low) * q
            for (name, d), q in zip(space.items(), quantiles, strict=True)
        }

    below, above = (_ParzenEstimator(observations(m), space, parameters) for m in (25, n))
    return below.sample(np.random.RandomState(n), 24), below, above


SCREENED: dict[str, dict[str, BaseDistribution]] = {
    "unit": {f"x{index}": FloatDistribution(0.0, 1.0) for index in range(20)},
    "far": {f"x{index}": FloatDistribution(1e3, 1e3 + 1.0) for index in range(5)},
    "log": {f"x{index}": FloatDistribution(1e-4, 1e3, log=True) for index in range(5)},
    "one": {"x": FloatDistribution(-3.0, 1e6)},
}


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("name", SCREENED)
@pytest.mark.parametrize("n", [0, 1, 30, 3000])
def test_densities_differ_from_optunas_by_less_than_they_say(n: int, name: str, clip: bool) -> None:
    samples, _, above = estimators(n, SCREENED[name], clip)
    kernels = _Kernels.of(above)
    assert kernels is not None
    points = kernels.transformed(above._transform(samples))
    assert points is not None
    difference = np.abs(kernels.log_pdf(points) - above.log_pdf(samples))
    assert difference.max() < 0.2 * kernels.error
    if clip:
        assert kernels.error < 1e-6


def test_candidates_too_near_to_each_other_are_left_to_optuna() -> None:
    samples, below, above = estimators(100, SCREENED["unit"])
    values = screened(samples, below, above)
    assert values is not None
    best = int(values.argmax())
    twice = {name: np.append(column, column[best]) for name, column in samples.items()}
    assert screened(twice, below, above) is None


@pytest.mark.parametrize("value", [-1e-9, 1.0 + 1e-9, math.nan])
def test_candidates_out_of_bounds_are_left_to_optuna(value: float) -> None:
    samples, below, above = estimators(100, SCREENED["unit"])
    samples["x3"][5] = value
    kernels = _Kernels.of(above)
    assert kernels is not None
    assert kernels.transformed(above._transform(samples)) is None
    assert screened(samples, below, above) is None


def test_most_proposals_are_told_by_screening(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def noted(*arguments: Any) -> Any:
        told.append(screened(*arguments))
        return told[-1]

    monkeypatch.setattr(tpe_sampler, "screened", noted)
    Bench(makers()[1]).run(10, 10)
    assert sum(values is not None for values in told) >= len(told) - 2 > 80
