"""Optuna's own conformance suites for the samplers that stand in for Optuna's."""

from collections.abc import Callable

import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)

from wpo_optuna.samplers.cmaes_sampler import CachingCmaEsSampler
from wpo_optuna.samplers.qmc_sampler import CachingQMCSampler
from wpo_optuna.samplers.tpe_sampler import CachingTPESampler


class _NumericalSamplerTestCase(RelativeSamplerTestCase):
    """CMA-ES has no categorical parameters."""

    test_sample_relative_categorical = None  # type: ignore[assignment]
    test_sample_relative_mixed = None  # type: ignore[assignment]


class TestCmaEsSampler(BasicSamplerTestCase, _NumericalSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: CachingCmaEsSampler(n_startup_trials=0)


class TestCmaEsSamplerWithMargin(BasicSamplerTestCase, _NumericalSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: CachingCmaEsSampler(n_startup_trials=0, with_margin=True, popsize=3)


class TestTPESampler(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: CachingTPESampler(n_startup_trials=0)


class TestTPESamplerInGroups(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: CachingTPESampler(n_startup_trials=0, multivariate=True, group=True)


class TestQMCSampler(BasicSamplerTestCase, RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: CachingQMCSampler(seed=0)
