"""Noise models called for a batch against the same models called as aihwkit's tile does."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from aihwkit.inference import (
    PCMLikeNoiseModel,
    ReRamCMONoiseModel,
    ReRamWan2022NoiseModel,
)
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.inference.noise.custom import StateIndependentNoiseModel
from aihwkit.inference.noise.hermes import HermesNoiseModel
from loss_agreement import DRIFT_MODEL, DriftModelNoise
from torch import Tensor

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.common_noise import CommonNoise
from wpo_optuna.loss.device_noise import (
    BroadcastNoise,
    DeviceNoise,
    ExpandedNoise,
    Serving,
    SingleNoise,
)
from wpo_optuna.loss.noise_trial import batched_device_noise

CPU = torch.device("cpu")
DAY = 86400.0
RANGE = (0.0, 25.0)

AIHWKIT_MODELS: dict[str, Callable[[], BaseNoiseModel]] = {
    "PCM": PCMLikeNoiseModel,
    "PCM with a drift model": lambda: DriftModelNoise(DRIFT_MODEL),
    "ReRAM of Wan": lambda: ReRamWan2022NoiseModel(g_max=25.0),
    "ReRAM CMO": lambda: ReRamCMONoiseModel(g_min=0.0, g_max=25.0),
    "Hermes, one device": lambda: HermesNoiseModel(num_devices=1, g_max=10.35),
    "Hermes, two devices": lambda: HermesNoiseModel(num_devices=2, g_max=20.7),
    "state-independent": StateIndependentNoiseModel,
}


class AddsInPlace(PCMLikeNoiseModel):
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        g_target += 0.3 * torch.randn_like(g_target)
        return g_target


class ChangesItsNoise(PCMLikeNoiseModel):
    def generate_drift_coefficients(self, g_target: Tensor) -> Tensor:
        return torch.randn_like(g_target).mul_(0.01).add_(0.05)


class DrawsByShape(PCMLikeNoiseModel):
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        return g_target + 0.3 * torch.randn(g_target.shape)


class DrawsByNumpy(PCMLikeNoiseModel):
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        drawn = np.random.normal(scale=0.3, size=tuple(g_target.shape))  # noqa: NPY002
        return g_target + torch.from_numpy(drawn).float()


class DrawsByPython(PCMLikeNoiseModel):
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        return g_target + torch.tensor([random.gauss(0, 0.3) for _ in g_target.flatten()]).reshape(
            g_target.shape
        )


class DrawsForSomeDevices(PCMLikeNoiseModel):
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        g = g_target.clone()
        programmed = g > 1.0
        g[programmed] += 0.3 * torch.randn_like(g[programmed])
        return g


class Deterministic(PCMLikeNoiseModel):
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        return 0.98 * g_target

    def generate_drift_coefficients(self, g_target: Tensor) -> None:
        return None

    def apply_drift_noise_to_conductance(
        self, g_prog: Tensor, drift_noise_param: None, t_inference: float
    ) -> Tensor:
        assert drift_noise_param is None
        return g_prog * 0.9


class ScalesByTheLargest(PCMLikeNoiseModel):
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        return g_target + 0.01 * g_target.max() * torch.randn_like(g_target)


class ScalesByTheLargestAndDrawsByShape(PCMLikeNoiseModel):
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        return g_target + 0.01 * g_target.max() * torch.randn(g_target.shape)


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


@pytest.mark.parametrize("name", AIHWKIT_MODELS)
def test_all_models_of_aihwkit_are_called_in_the_fastest_way(name: str) -> None:
    way = batched_device_noise(AIHWKIT_MODELS[name](), [1.0, DAY], (0.0, 10.0), CPU)
    assert type(way) is BroadcastNoise


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (AddsInPlace, ExpandedNoise),
        (ChangesItsNoise, ExpandedNoise),
        (Deterministic, BroadcastNoise),
        (DrawsByShape, SingleNoise),
        (DrawsByNumpy, SingleNoise),
        (DrawsByPython, SingleNoise),
        (DrawsForSomeDevices, SingleNoise),
    ],
)
def test_other_models_are_called_in_the_fastest_way_they_bear(
    model: type[BaseNoiseModel], expected: type[DeviceNoise]
) -> None:
    assert type(batched_device_noise(model(), [1.0, DAY], RANGE, CPU)) is expected


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (ScalesByTheLargest, "does not treat each device alone"),
        (ScalesByTheLargestAndDrawsByShape, "does not treat each device alone"),
        (DriftsByTheMean, "does not treat each device alone"),
        (ProgramsWeights, "overrides apply_programming_noise"),
        (DriftsWeights, "overrides apply_drift_noise"),
    ],
)
def test_models_that_couple_devices_are_refused_by_name(
    model: type[BaseNoiseModel], reason: str
) -> None:
    with pytest.raises(InvalidArgument, match=r'use the engine "aihwkit"\.$') as refused:
        batched_device_noise(model(), [1.0, DAY], RANGE, CPU)
    assert model.__name__ in str(refused.value)
    assert reason in str(refused.value)


class Fails(PCMLikeNoiseModel):
    def generate_drift_coefficients(self, g_target: Tensor) -> Tensor:
        raise ValueError("no drift was measured.\nSee the data sheet.")


def test_what_a_model_itself_refuses_is_passed_on_in_one_sentence() -> None:
    with pytest.raises(InvalidArgument, match=r"Fails cannot .* 25 µS: no drift was measured\.$"):
        batched_device_noise(Fails(), [1.0, DAY], RANGE, CPU)


@pytest.mark.parametrize(
    "model", [PCMLikeNoiseModel, AddsInPlace, DrawsByShape, DrawsByNumpy, DrawsByPython]
)
def test_neither_the_trial_nor_the_calls_change_global_generators(
    model: type[BaseNoiseModel],
) -> None:
    targets = torch.rand(2, 4, 3, 5)
    before = generator_states()
    way = batched_device_noise(model(), [1.0, DAY], RANGE, CPU)
    noise = CommonNoise(1, [0])
    g, nu = way.program(targets, noise, 0).at(0)
    way.drift(g.clone(), nu, 0, noise, 0)
    assert generator_states() == before


def generator_states() -> bytes:
    return pickle.dumps((torch.get_rng_state().numpy(), np.random.get_state(), random.getstate()))  # noqa: NPY002


@pytest.mark.parametrize("way", [BroadcastNoise, ExpandedNoise])
def test_serving_powers_by_logarithms_agrees_with_torch(way: type[DeviceNoise]) -> None:
    # t = 0 has no drift; g = 0 makes the base of a power zero.
    model, times = PCMLikeNoiseModel(), [0.0, 1.0, 360 * DAY]
    targets = torch.linspace(0.0, 25.0, 60).reshape(1, 4, 3, 5)
    noise = CommonNoise(5, [0])
    devices = way(model, times, CPU).program(targets.clone(), noise, 0)
    for i, t in enumerate(times):
        g, nu = devices.at(i)
        drifted = way(model, times, CPU).drift(g.clone(), nu, i, noise, 0)
        xi = noise.normal((0, 3, i, 0), tuple(g.shape[1:]), CPU)
        with monkeypatched_normals(xi):
            expected = model.apply_drift_noise_to_conductance(g.clone(), nu, t)
        torch.testing.assert_close(drifted, expected, rtol=2e-5, atol=1e-6)
    assert (devices.conductances == 0).any()


class monkeypatched_normals:  # noqa: N801
    """Within its block, aihwkit's PCM model gets given numbers, and torch computes its powers."""

    def __init__(self, normals: Tensor) -> None:
        self._patch = pytest.MonkeyPatch()
        self._normals = normals

    def __enter__(self) -> None:
        self._patch.setattr("aihwkit.inference.noise.pcm.randn_like", lambda _: self._normals)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


@pytest.mark.parametrize("exponent", [0.65, -0.5, 2, 3.0, 0.0, torch.tensor(0.5)])
def test_powers_of_any_kind_stay_what_they_are(exponent: float | Tensor) -> None:
    base = torch.tensor([0.0, 1e-6, 0.3, 25.0, -2.0])
    expected = base**exponent, torch.pow(base, exponent), 5.0**base, 2**base
    with Serving(lambda shape, call: torch.zeros(shape)):
        served = base**exponent, torch.pow(base, exponent), 5.0**base, 2**base
    for one, other in zip(served, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0, equal_nan=True)


def test_every_draw_has_its_own_noise_and_keeps_it_in_company() -> None:
    noise = CommonNoise(7, range(4))
    numbers = noise.normal((1, 2), (3, 5), CPU)
    assert numbers.flatten().unique().numel() == numbers.numel()
    for draw in range(4):
        assert torch.equal(CommonNoise(7, [draw]).normal((1, 2), (3, 5), CPU)[0], numbers[draw])
    assert not torch.equal(CommonNoise(8, [0]).normal((1, 2), (3, 5), CPU)[0], numbers[0])
    assert not torch.equal(noise.normal((2, 1), (3, 5), CPU), numbers)


def test_changing_given_numbers_is_noticed() -> None:
    noise = CommonNoise(7, [0])
    numbers = noise.normal((1,), (3,), CPU)
    assert noise.is_unchanged()
    numbers[0].mul_(2)
    assert not noise.is_unchanged()
