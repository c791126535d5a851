"""The Monte Carlo engine against aihwkit's own tile: devices, compensation, pairs, periphery.

Draw by draw where all random numbers are the same one, else by means.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from aihwkit.inference import PCMLikeNoiseModel
from aihwkit.inference.converter.base import BaseConductanceConverter
from aihwkit.inference.converter.conductance import (
    CustomPairConductanceConverter,
    DualPairConductanceConverter,
    NPairConductanceConverter,
    SingleDeviceConductanceConverter,
)
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.simulator.parameters.enums import BoundManagementType, WeightNoiseType
from loss_agreement import (
    COMPENSATIONS,
    DAY,
    DEVICES,
    PERIPHERY,
    TORCH_PERIPHERY,
    TORCH_TILES,
    Compared,
    assert_means_agree,
    compare,
    comparison_problem,
    good_and_bad_converters,
)
from small_problems import small_rpu_config
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wpo_optuna.loss.monte_carlo import MonteCarloEngine
from wpo_optuna.loss.noise import CommonNoise
from wpo_optuna.loss.reference import ReferenceEngine
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

# Standard normal numbers for up to six devices of the comparison's tile, used again and again.
NUMBERS = torch.randn(6, 8, 32, generator=torch.Generator().manual_seed(1))


class Served(TorchFunctionMode):
    """Within its block torch.randn_like returns the numbers of one device."""

    def __init__(self, device: int) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.randn_like:
            return NUMBERS[self._device].clone()
        return func(*args, **(kwargs or {}))


class NumberedNoiseModel(BaseNoiseModel):
    """A noise model with those numbers, called for one device after the other as by the tile."""

    def __init__(self, model: BaseNoiseModel, n_devices: int) -> None:
        super().__init__(model.g_converter)
        self._model, self._n_devices, self._calls = model, n_devices, Counter[str]()

    def _call(self, method: str, *arguments: Any) -> Any:
        device = self._calls[method] % self._n_devices
        self._calls[method] += 1
        with Served(device):
            return getattr(self._model, method)(*arguments)

    def apply_programming_noise_to_conductance(self, *arguments: Any) -> Tensor:
        return self._call("apply_programming_noise_to_conductance", *arguments)

    def generate_drift_coefficients(self, *arguments: Any) -> Tensor:
        return self._call("generate_drift_coefficients", *arguments)

    def apply_drift_noise_to_conductance(self, *arguments: Any) -> Tensor:
        return self._call("apply_drift_noise_to_conductance", *arguments)


def assert_same_draw(problem: WeightProgrammingProblem, rtol: float) -> None:
    """Asserts that engine and tile give the same values where they meet the same numbers."""
    engine, n_devices = MonteCarloEngine(problem), 2 * len(problem.f_lst)
    x = np.random.default_rng(0).random((4, problem.hypercube.dimension))
    rpu_config = problem.evaluation_rpu_config()
    rpu_config.noise_model = NumberedNoiseModel(rpu_config.noise_model, n_devices)
    # Already checked, the times would be tried on a single device.
    on_tile = ReferenceEngine(replace(problem, t_steps=[1.0]))
    object.__setattr__(on_tile.problem, "rpu_config", rpu_config)
    object.__setattr__(on_tile.problem, "t_steps", problem.t_steps)
    expected = on_tile.tnmse(x)
    assert np.isfinite(expected).all()

    def normal(noise: object, key: object, shape: tuple[int, ...], device: object) -> Tensor:
        return NUMBERS[:n_devices].expand(1, *shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CommonNoise, "normal", normal)
        np.testing.assert_allclose(engine.tnmse(x), expected, rtol=rtol)
        conductance = engine.conductance(x)
    assert (conductance > 0).all()
    np.testing.assert_allclose(conductance, on_tile.conductance(x), rtol=1e-5)


HARDWARE = list(product(DEVICES, COMPENSATIONS))
# Every kind of device and of compensation is in every run.
NOT_ALWAYS = [h for place, h in enumerate(HARDWARE) if place % 3]


@pytest.mark.parametrize(
    ("devices", "compensation"),
    [pytest.param(*h, marks=[pytest.mark.slow] * (h in NOT_ALWAYS)) for h in HARDWARE],
)
def test_with_the_same_noise_every_hardware_gives_aihwkits_value(
    devices: str, compensation: str
) -> None:
    place = HARDWARE.index((devices, compensation))
    n_pairs, symmetric, perfect = 1 + place % 3, place % 2 == 0, {"is_perfect": True}
    problem = comparison_problem(devices, compensation, n_pairs, symmetric, perfect)
    assert_same_draw(problem, rtol=1e-4)


# Every compensation, number of pairs and symmetry in some cell.
SPREAD = (
    ("PCM", "global", 2, True),
    ("ReRAM of Wan", "exact reference", 3, True),
    ("ReRAM CMO", "none", 2, False),
    ("PCM with a drift model", "per column", 1, False),
)


def test_a_spread_of_hardware_agrees_with_aihwkit() -> None:
    # 4 cells of 4 strategies, 40 draws each; false-alarm rate 10^-4. Torch's noise is seeded on
    # both sides, that of the reference's compiled tile is not: the rate is one of repeated runs.
    compared: list[Compared] = []
    for seed, (devices, compensation, n_pairs, symmetric) in enumerate(SPREAD):
        problem = comparison_problem(devices, compensation, n_pairs, symmetric)
        label = f"{devices}, {compensation}, {n_pairs} pairs"
        compared += compare(problem, good_and_bad_converters(problem, 1), 40, label, seed)
    assert len(compared) == 16
    assert_means_agree(compared)


class UnknownConverter(DualPairConductanceConverter):
    """A converter of the user's own, which splits weights evenly over its two pairs."""

    def convert_to_conductances(self, weights: Tensor) -> tuple[list[Tensor], dict[str, Any]]:
        scale = 2 * (self.g_max - self.g_min) / weights.abs().max()
        half = weights * scale / 2
        pair = [half.clamp(min=0) + self.g_min, (-half).clamp(min=0) + self.g_min]
        return [*pair, *pair], {"scale_ratio": scale, "f_lst": self.f_lst}


CONVERTERS: dict[str, BaseConductanceConverter] = {
    "three pairs": NPairConductanceConverter([0.5, 1.0, 3.0], g_max=20.0, g_min=2.0),
    "curves": CustomPairConductanceConverter(
        [1.0], [[0.0, 0.0, 8.0, 25.0], [25.0, 8.0, 0.0, 0.0]], 25.0, 0.0, invertibility_test=False
    ),
    "one device": SingleDeviceConductanceConverter(g_max=25.0, g_min=5.0),
    "of the user's own": UnknownConverter([1.0, 1.0], g_max=25.0),
}


class UsualSubclass(PCMLikeNoiseModel):
    """Draws in the usual way, changes what it drew, and clips its targets in place."""

    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        g_target.clamp_(max=24.0)
        return (g_target + torch.randn_like(g_target).mul_(0.5)).clamp_(min=0)

    def generate_drift_coefficients(self, g_target: Tensor) -> Tensor:
        return 0.001 * g_target + torch.randn_like(g_target).mul_(0.01) + 0.05


def test_converters_models_and_tiles_of_all_kinds_agree_with_aihwkit() -> None:
    # 11 comparisons of 100 draws; false-alarm rate 10^-4.
    compared: list[Compared] = []
    for seed, (name, converter) in enumerate(CONVERTERS.items()):
        problem = comparison_problem(t_steps=[3600.0])
        compared += compare(problem, [converter], 100, name, seed)
    # Each of several tiles scales, reads out and compensates for itself.
    tiles = small_rpu_config(max_input_size=32, max_output_size=4, **PERIPHERY)
    own_model = small_rpu_config(UsualSubclass(), max_input_size=32, **PERIPHERY)
    problems = {
        "tiles": (comparison_problem(rpu_config=tiles), 1),
        "own model": (comparison_problem(rpu_config=own_model), 2),
        # So strong that a fifth of the outputs is lost.
        "IR drop": (comparison_problem(periphery=PERIPHERY | {"ir_drop": 2e4}), 1),
    }
    # Bound management repeats all inputs together, in some of the draws.
    tight = TORCH_PERIPHERY | {"out_bound": 0.7}
    for name, tile in TORCH_TILES.items():
        problems[name] = comparison_problem(periphery=tight, tile=tile, t_steps=[DAY]), 1
    for name, (problem, n) in problems.items():
        strategies = problem.hypercube.decode(
            np.random.default_rng(0).random((n, problem.hypercube.dimension))
        )
        compared += compare(problem, [s.to_converter() for s in strategies], 100, name, 9)
    assert_means_agree(compared)


# Changes of the reference problem's periphery, strong enough to change the loss.
PERIPHERIES: dict[str, dict[str, Any]] = {
    "coarse ADC": {"out_res": 15, "out_bound": 1.5},
    "tight bound, managed": {"out_bound": 0.3},
    "tight bound, clipped": {"out_bound": 0.3, "bound_management": BoundManagementType.NONE},
    "large PCM read noise": {"w_noise": 0.3},
    "large additive noise": {"w_noise": 0.2, "w_noise_type": WeightNoiseType.ADDITIVE_CONSTANT},
    "input noise": {"inp_noise": 0.05},
    "scaled": {"out_noise": 0.2, "out_scale": 1.5},
    "IR drop, input noise": {"ir_drop": 1e4, "inp_noise": 0.05},
}


@pytest.mark.slow
def test_other_peripheries_agree_with_aihwkit() -> None:
    # 8 peripheries, 4 strategies of 30 draws each; false-alarm rate 10^-4.
    compared: list[Compared] = []
    for seed, (name, changes) in enumerate(PERIPHERIES.items()):
        compensation = ("global", "per column")[seed % 2]
        problem = comparison_problem(
            "state-independent", compensation, periphery=PERIPHERY | changes, t_steps=[DAY]
        )
        label = f"{name}, {compensation}"
        compared += compare(problem, good_and_bad_converters(problem, 1), 30, label, 100 + seed)
    assert_means_agree(compared)
