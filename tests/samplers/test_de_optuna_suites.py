"""Optuna's own conformance suites for samplers."""

from collections.abc import Callable

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)

from wpo_optuna.samplers import DESampler


class TestDESampler(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: DESampler(seed=0)


@pytest.mark.slow
class TestDESamplerWithoutSeed(BasicSamplerTestCase, RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: DESampler(
            popsize=1, independent_sampler=optuna.samplers.TPESampler(n_startup_trials=2)
        )
