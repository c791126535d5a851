"""Noise models called for a batch against the same models called as aihwkit's tile does.

That aihwkit's own models agree is in test_monte_carlo_agreement.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from aihwkit.inference import PCMLikeNoiseModel
from aihwkit.inference.noise.base import BaseNoiseModel
from loss_agreement import PERIPHERY, assert_means_agree, compare, comparison_problem
from small_problems import small_problem, small_rpu_config
from torch import Tensor

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.monte_carlo import MonteCarloEngine
from wpo_optuna.loss.reference import ReferenceEngine


class UsualSubclass(PCMLikeNoiseModel):
    """Draws in the usual way, changes what it drew, and clips its targets in place."""

    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        g_target.clamp_(max=24.0)
        return (g_target + torch.randn_like(g_target).mul_(0.5)).clamp_(min=0)

    def generate_drift_coefficients(self, g_target: Tensor) -> Tensor:
        return 0.001 * g_target + torch.randn_like(g_target).mul_(0.01) + 0.05


class DrawsByShape(PCMLikeNoiseModel):
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        return g_target + 0.3 * torch.randn(g_target.shape)


class DriftsByTheMean(PCMLikeNoiseModel):
    def apply_drift_noise_to_conductance(
        self, g_prog: Tensor, drift_noise_param: Tensor, t_inference: float
    ) -> Tensor:
        return g_prog - 0.01 * g_prog.mean()


class ProgramsWeights(PCMLikeNoiseModel):
    def apply_programming_noise(self, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
        return super().apply_programming_noise(weights)


def test_models_of_the_users_own_agree_with_aihwkit() -> None:
    # 2 comparisons; false-alarm rate 10^-4.
    rpu_config = small_rpu_config(UsualSubclass(), max_input_size=32, **PERIPHERY)
    problem = comparison_problem(rpu_config=rpu_config)
    tested = MonteCarloEngine(problem)
    x = np.random.default_rng(0).random((2, problem.hypercube.dimension))
    converters = [s.to_converter() for s in problem.hypercube.decode(x)]
    assert_means_agree(compare(ReferenceEngine(problem), tested, converters, 60, "own model", 1))
    assert np.array_equal(tested.tnmse(x), tested.tnmse(x))


ALONE = "does not treat each device alone, or does not draw its random numbers by torch.randn_like"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (DrawsByShape, ALONE),
        (DriftsByTheMean, ALONE),
        (ProgramsWeights, "overrides apply_programming_noise"),
    ],
)
def test_other_models_are_refused_by_name_with_the_engine_to_use(
    model: type[BaseNoiseModel], reason: str
) -> None:
    with pytest.raises(InvalidArgument, match=r'use the engine "aihwkit"\.$') as refused:
        MonteCarloEngine(small_problem(rpu_config=small_rpu_config(model())))
    assert f"rpu_config.noise_model = {model.__name__} {reason}" in str(refused.value)
