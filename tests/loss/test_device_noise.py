"""Noise models called for a batch against the same models called as aihwkit's tile does.

That aihwkit's own models agree is in test_monte_carlo_agreement.py.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from aihwkit.inference import PCMLikeNoiseModel
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.inference.noise.hermes import HermesNoiseModel
from loss_agreement import PERIPHERY, assert_means_agree, compare, comparison_problem
from small_problems import small_problem, small_rpu_config
from torch import Tensor

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.common_noise import CommonNoise
from wpo_optuna.loss.device_noise import DeviceNoise
from wpo_optuna.loss.monte_carlo import MonteCarloEngine
from wpo_optuna.loss.reference import ReferenceEngine

CPU = torch.device("cpu")
DAY = 86400.0
RANGE = (0.0, 25.0)


class UsualSubclass(PCMLikeNoiseModel):
    """Draws in the usual way, changes what it drew, and clips its targets in place."""

    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        g_target.clamp_(max=24.0)
        return (g_target + torch.randn_like(g_target).mul_(0.5)).clamp_(min=0)

    def generate_drift_coefficients(self, g_target: Tensor) -> Tensor:
        return 0.001 * g_target + torch.randn_like(g_target).mul_(0.01) + 0.05


class Deterministic(PCMLikeNoiseModel):
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        return 0.98 * g_target

    def generate_drift_coefficients(self, g_target: Tensor) -> None:
        return None

    def apply_drift_noise_to_conductance(
        self, g_prog: Tensor, drift_noise_param: None, t_inference: float
    ) -> Tensor:
        assert drift_noise_param is None
        return g_prog.mul_(0.9)


class AddsInPlace(PCMLikeNoiseModel):
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        g_target += 0.3 * torch.randn_like(g_target)
        return g_target


class AddsToItsNoise(PCMLikeNoiseModel):
    def generate_drift_coefficients(self, g_target: Tensor) -> Tensor:
        return torch.randn_like(g_target).mul_(0.01).add_(0.001 * g_target)


class DrawsByShape(PCMLikeNoiseModel):
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        return g_target + 0.3 * torch.randn(g_target.shape)


class DrawsByNumpy(PCMLikeNoiseModel):
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        drawn = np.random.normal(scale=0.3, size=tuple(g_target.shape))  # noqa: NPY002
        return g_target + torch.from_numpy(drawn).float()


class DrawsByPython(PCMLikeNoiseModel):
    def generate_drift_coefficients(self, g_target: Tensor) -> Tensor:
        drawn = [random.gauss(0.05, 0.01) for _ in g_target.flatten()]
        return torch.tensor(drawn).reshape(g_target.shape)


class DrawsForSomeDevices(PCMLikeNoiseModel):
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        g = g_target.clone()
        programmed = g > 1.0
        g[programmed] += 0.3 * torch.randn_like(g[programmed])
        return g


class ScalesByTheLargest(PCMLikeNoiseModel):
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        return g_target + 0.01 * g_target.max() * torch.randn_like(g_target)


class DriftsByTheMean(PCMLikeNoiseModel):
    def apply_drift_noise_to_conductance(
        self, g_prog: Tensor, drift_noise_param: Tensor, t_inference: float
    ) -> Tensor:
        return g_prog - 0.01 * g_prog.mean()


class ProgramsWeights(PCMLikeNoiseModel):
    def apply_programming_noise(self, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
        return super().apply_programming_noise(weights)


class DriftsWeights(PCMLikeNoiseModel):
    def apply_drift_noise(
        self, weights: Tensor, drift_noise_parameters: list[Tensor | None], t_inference: float
    ) -> Tensor:
        return super().apply_drift_noise(weights, drift_noise_parameters, t_inference)


class Fails(PCMLikeNoiseModel):
    def generate_drift_coefficients(self, g_target: Tensor) -> Tensor:
        raise ValueError("no drift was measured.\nSee the data sheet.")


@pytest.mark.parametrize("model", [UsualSubclass, Deterministic])
def test_models_of_the_users_own_agree_with_aihwkit(model: type[PCMLikeNoiseModel]) -> None:
    # 2 comparisons each; false-alarm rate 10^-4.
    rpu_config = small_rpu_config(model(), max_input_size=32, **PERIPHERY)
    problem = comparison_problem(rpu_config=rpu_config)
    tested = MonteCarloEngine(problem)
    x = np.random.default_rng(0).random((2, problem.hypercube.dimension))
    converters = [s.to_converter() for s in problem.hypercube.decode(x)]
    assert_means_agree(compare(ReferenceEngine(problem), tested, converters, 60, "own model", 1))
    assert np.array_equal(tested.tnmse(x), tested.tnmse(x))


ALONE = "does not treat each device alone, or does not draw its random numbers by torch.randn_like"


@pytest.mark.parametrize("t_steps", [[DAY], [1.0, DAY]])
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (AddsInPlace, "failed"),
        (AddsToItsNoise, "failed"),
        (DrawsByShape, ALONE),
        (DrawsByNumpy, ALONE),
        (DrawsByPython, ALONE),
        (DrawsForSomeDevices, "failed"),
        (ScalesByTheLargest, ALONE),
        (DriftsByTheMean, ALONE),
        (ProgramsWeights, "overrides apply_programming_noise"),
        (DriftsWeights, "overrides apply_drift_noise"),
        (Fails, "failed (no drift was measured)"),
    ],
)
def test_other_models_are_refused_by_name_with_the_engine_to_use(
    model: type[BaseNoiseModel], reason: str, t_steps: list[float]
) -> None:
    with pytest.raises(InvalidArgument, match=r'use the engine "aihwkit"\.$') as refused:
        DeviceNoise(model(), t_steps, RANGE, CPU)
    assert f"rpu_config.noise_model = {model.__name__} {reason}" in str(refused.value)


def test_conductances_that_a_model_makes_nan_of_make_the_loss_infinite() -> None:
    class Nan(PCMLikeNoiseModel):
        def generate_drift_coefficients(self, g_target: Tensor) -> Tensor:
            return torch.full_like(g_target, torch.nan)

    problem = small_problem(rpu_config=small_rpu_config(Nan()))
    x = np.random.default_rng(0).random((3, problem.hypercube.dimension))
    for engine in (MonteCarloEngine(problem), ReferenceEngine(problem)):
        assert engine.tnmse(x).tolist() == [np.inf] * 3


@pytest.mark.parametrize("model", [PCMLikeNoiseModel(), HermesNoiseModel(num_devices=2)])
def test_all_times_are_programmed_anew_and_every_device_has_noise_of_its_own(
    model: BaseNoiseModel,
) -> None:
    devices = DeviceNoise(model, [1.0, 60.0, DAY], (0.0, 20.0), CPU)
    targets = torch.full((1, 4, 3, 5), 10.0)
    g, nu = devices.program(targets, CommonNoise(1, range(2)), tile=0)
    assert nu is not None
    for drawn in (g, nu):
        assert drawn.shape == (2, 3, 4, 3, 5)
        assert drawn.unique().numel() == drawn.numel()
    again, _ = devices.program(targets, CommonNoise(1, range(1, 2)), tile=0)
    assert torch.equal(again[0], g[1])
    other_tile, _ = devices.program(targets, CommonNoise(1, range(2)), tile=1)
    assert not torch.isin(other_tile, g).any()


def test_powers_of_any_kind_stay_what_they_are() -> None:
    class Powers(PCMLikeNoiseModel):
        def apply_drift_noise_to_conductance(
            self, g_prog: Tensor, drift_noise_param: Tensor, t_inference: float
        ) -> Tensor:
            exponents = (0.65, -0.5, 2, 3.0, 0.0, torch.tensor(0.5))
            powers = [g_prog**e for e in exponents] + [torch.pow(g_prog, e) for e in exponents]
            return torch.stack([*powers, 5.0**-g_prog, 2**-g_prog]).nan_to_num(posinf=9.0).sum(0)

    g = torch.tensor([0.0, 1e-6, 0.3, 25.0, -2.0]).reshape(1, 1, 1, 5)
    model = Powers()
    served = DeviceNoise(model, [1.0], RANGE, CPU).drift(
        g.clone(), None, 0, CommonNoise(0, range(1)), tile=0
    )
    expected = model.apply_drift_noise_to_conductance(g, g, 1.0)
    torch.testing.assert_close(served, expected, rtol=1e-5, atol=0)
