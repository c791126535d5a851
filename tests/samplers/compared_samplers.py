"""Studies that two samplers run in the same way, to compare what they propose."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from wpo_optuna.sqlite import SQLiteStorage
from wpo_optuna.storage import open_storage, transaction

MakeSampler = Callable[[int], BaseSampler]
Outcome = Callable[[FrozenTrial], float | None]

CONTINUOUS: dict[str, BaseDistribution] = {
    f"x{index}": FloatDistribution(-1.0, 2.0) for index in range(6)
}
MIXED: dict[str, BaseDistribution] = {
    "wide": FloatDistribution(1e-3, 10.0, log=True),
    "plain": FloatDistribution(-1.0, 1.0),
    "stepped": FloatDistribution(0.0, 1.0, step=0.25),
    "whole": IntDistribution(1, 9),
    "single": FloatDistribution(0.5, 0.5),
}


def sphere(trial: FrozenTrial) -> float:
    return float(np.sum((np.array(list(trial.params.values())) - 0.3) ** 2))


def with_failures(trial: FrozenTrial) -> float | None:
    """Some trials fail, the first ones of generations among them."""
    return None if trial.number % 5 in (2, 4) else sphere(trial)


def with_infinities(trial: FrozenTrial) -> float:
    signs = {3: math.inf, 7: -math.inf}
    return signs.get(trial.number % 11, sphere(trial))


class Bench:
    """A study driven by scripted steps, with a storage that can be opened again.

    Args:
        make: makes the sampler from a seed.
        path: the database; None keeps the study in memory.
        direction: the study's.
    """

    def __init__(
        self, make: MakeSampler, path: Path | None = None, direction: str = "minimize"
    ) -> None:
        self._make = make
        self._url = "memory" if path is None else f"sqlite:///{path}"
        self._storage: BaseStorage = open_storage(self._url)
        self.study = optuna.create_study(
            study_name="compared", storage=self._storage, sampler=make(1), direction=direction
        )
        self.proposed: list[dict[str, Any]] = []

    def resume(self, seed: int) -> None:
        """Goes on as a new process would, with nothing but the storage."""
        if isinstance(self._storage, SQLiteStorage):
            self._storage.close()
            self._storage = open_storage(self._url)
        self.study = optuna.load_study(
            study_name="compared", storage=self._storage, sampler=self._make(seed)
        )

    def ask(self, n: int, space: dict[str, BaseDistribution]) -> list[Trial]:
        with transaction(self.study):
            trials = [self.study.ask(space) for _ in range(n)]
        self.proposed += [trial.params for trial in trials]
        return trials

    def tell(self, trials: Sequence[Trial], outcome: Outcome = sphere) -> None:
        with transaction(self.study):
            for trial in trials:
                value = outcome(self.study._storage.get_trial(trial._trial_id))
                state = TrialState.FAIL if value is None else TrialState.COMPLETE
                self.study.tell(trial, value, state=state)

    def run(
        self,
        n_batches: int,
        size: int,
        outcome: Outcome = sphere,
        space: dict[str, BaseDistribution] = CONTINUOUS,
    ) -> None:
        for _ in range(n_batches):
            self.tell(self.ask(size, space), outcome)


def assert_equal_proposals(
    run: Callable[[Bench], None],
    makers: tuple[MakeSampler, MakeSampler],
    tmp_path: Path | None = None,
    direction: str = "minimize",
) -> None:
    """Asserts that two samplers propose the same, to the last bit, in a study run twice."""
    proposed = []
    for name, make in zip("ab", makers, strict=True):
        bench = Bench(make, None if tmp_path is None else tmp_path / f"{name}.db", direction)
        run(bench)
        proposed.append(bench.proposed)
    assert proposed[0] == proposed[1]
    assert len(proposed[0]) > 20
