"""The user's network beside a study of its weights, to see what strategies are worth in it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wpo_optuna.evaluate.accuracy import NetworkSetup, compare_over_time, set_up_network
from wpo_optuna.network.account import NetworkWarning
from wpo_optuna.network.analogue import Choice

if TYPE_CHECKING:
    from wpo_optuna.evaluate.metric_over_time import MetricOverTime
    from wpo_optuna.problem import WeightProgrammingProblem
    from wpo_optuna.strategy import ProgrammingStrategy
    from wpo_optuna.study.objective import Direction
    from wpo_optuna.study.problem_setup import ProblemSetup
    from wpo_optuna.study.settings import StudySettings


def network_of(settings: StudySettings, setup: ProblemSetup) -> NetworkSetup:
    """The network that was given, on the study's hardware; warns if it is not the study's.

    Raises:
        InvalidArgument: one of the user's functions cannot be used.
    """
    assert settings.model is not None
    network = set_up_network(
        model=settings.model, data=settings.data, metric=settings.metric,
        rpu_config=settings.rpu_config, choice=Choice(settings.include, settings.exclude),
    )  # fmt: skip
    studied = [tensor.name for tensor in setup.checkpoint.account.analogue]
    told = network.network.account.disagreement(studied)
    if told is not None:
        warnings.warn(told, NetworkWarning, stacklevel=2)
    return network


class NetworkMetric:
    """A network's metric at the last time, as the second objective of a study.

    All strategies meet the same seeds.

    Args:
        network: the network, and how its quality is measured.
        problem: whose strategies are programmed into it.
        programmings: of each strategy, over which the metric is averaged.
        seed: seed of the programmings.
    """

    def __init__(
        self, network: NetworkSetup, problem: WeightProgrammingProblem, programmings: int, seed: int
    ) -> None:
        self._network, self._problem = network, problem
        self._programmings, self._seed = programmings, seed
        self.name = re.sub(r"\W", "_", network.metric_name)
        # Nobody knows of a network without a digital form what is better: more is taken to be.
        is_less_better = self._measured({}).higher_is_better is False
        self.direction: Direction = "minimize" if is_less_better else "maximize"

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Its means ``(n,)`` at points ``(n, d)`` of the hypercube."""
        strategies = self._problem.hypercube.decode(np.atleast_2d(x))
        assert isinstance(strategies, list)
        measured = self._measured({str(i): strategy for i, strategy in enumerate(strategies)})
        return np.array([measured.mean(str(i))[0] for i in range(len(strategies))])

    def _measured(self, strategies: Mapping[str, ProgrammingStrategy]) -> MetricOverTime:
        problem = self._problem
        last = [problem.t_steps[-1]]
        return compare_over_time(
            self._network, strategies, problem.g_converter_baseline, last,
            repeats=self._programmings, seed=self._seed,
        )  # fmt: skip
