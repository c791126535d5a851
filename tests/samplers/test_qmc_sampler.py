"""Quasi-Monte Carlo proposes what Optuna's proposes, and goes through its sequence once."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import optuna
import pytest
from compared_samplers import (
    CONTINUOUS,
    MIXED,
    Bench,
    MakeSampler,
    assert_equal_proposals,
    with_failures,
)
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import QMCSampler

from wpo_optuna.samplers.qmc_sampler import CachingQMCSampler

# The single point of a distribution is no coordinate of a sequence.
MANY_KINDS: dict[str, BaseDistribution] = MIXED | {"kind": CategoricalDistribution("abc")}


def makers(**options: Any) -> tuple[MakeSampler, MakeSampler]:
    def of(kind: type[QMCSampler]) -> MakeSampler:
        return lambda seed: kind(seed=7, warn_independent_sampling=False, **options)

    return of(QMCSampler), of(CachingQMCSampler)


@pytest.mark.parametrize("space", [CONTINUOUS, MANY_KINDS], ids=["continuous", "many kinds"])
@pytest.mark.parametrize("scramble", [False, True])
@pytest.mark.parametrize("qmc_type", ["sobol", "halton"])
def test_proposals_are_optunas(
    qmc_type: str, scramble: bool, space: dict[str, BaseDistribution]
) -> None:
    def run(bench: Bench) -> None:
        bench.run(3, 1, lambda trial: None, space)
        bench.run(9, 9, lambda trial: float(trial.number % 5), space)
        bench.study.sampler = pickle.loads(pickle.dumps(bench.study.sampler))
        bench.run(2, 9, lambda trial: 1.0, space)

    assert_equal_proposals(run, makers(qmc_type=qmc_type, scramble=scramble))


def test_proposals_are_optunas_beside_other_processes(tmp_path: Path) -> None:
    def run(bench: Bench) -> None:
        bench.run(1, 4)
        studies = [bench.study]
        for seed in range(2):
            bench.resume(seed)
            studies.append(bench.study)
        for step in range(20):
            bench.study = studies[step % 3 if step < 12 else 1]
            bench.run(1, 1 + step % 4, with_failures)

    assert_equal_proposals(run, makers(scramble=True), tmp_path)


def test_another_study_begins_at_the_beginning() -> None:
    def run(bench: Bench) -> None:
        bench.run(3, 5)
        bench.study = optuna.create_study(sampler=bench.study.sampler)
        bench.run(3, 5)

    assert_equal_proposals(run, makers(scramble=True))
