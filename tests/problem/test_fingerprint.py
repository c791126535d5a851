"""A fingerprint tells problems apart by what changes their loss, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import aihwkit
import pytest
import torch
from aihwkit.inference import (
    DualPairConductanceConverter,
    NPairConductanceConverter,
    PCMLikeNoiseModel,
    ReRamCMONoiseModel,
    ReRamWan2022NoiseModel,
    SinglePairConductanceConverter,
)
from aihwkit.inference.compensation.drift import PerColumnDriftCompensation
from aihwkit.inference.converter.conductance import CustomPairConductanceConverter
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
from aihwkit.simulator.parameters.enums import WeightNoiseType
from small_problems import ROWS, gaussian_weights, small_problem, small_rpu_config

from wpo_optuna.problem.fingerprint import differences, fingerprint

Change = Callable[[InferenceRPUConfig], object]


def dual_pair(g_max: float = 25.0, **options: Any) -> DualPairConductanceConverter:
    return DualPairConductanceConverter([1.0, 1.0], g_min=0.0, g_max=g_max, **options)


def custom_pair(middle: float) -> CustomPairConductanceConverter:
    curves = [[0.0, middle, 25.0], [25.0, middle, 0.0]]
    return CustomPairConductanceConverter([1.0], curves, g_min=0.0, g_max=25.0)


def with_rpu_config(*changes: Change) -> str:
    """Fingerprint of the small problem on a changed configuration."""
    rpu_config = small_rpu_config()
    for change in changes:
        change(rpu_config)
    return small_problem(rpu_config=rpu_config).fingerprint


def setting(path: str, value: object) -> Change:
    """Sets an attribute of an RPU configuration, given by its dotted path."""

    def change(rpu_config: InferenceRPUConfig) -> None:
        *parents, name = path.split(".")
        target: Any = rpu_config
        for parent in parents:
            target = getattr(target, parent)
        assert getattr(target, name) != value
        setattr(target, name, value)

    return change


def test_fingerprints_stay_what_they_were_in_the_studies_of_earlier_releases() -> None:
    assert fingerprint({"b": "2", "a": "1"}) == "0e09eeab5bdeab40"
    if aihwkit.__version__ == "1.1.0":  # another release has other settings
        weights = torch.linspace(-0.5, 0.5, 64)
        assert small_problem(weights=weights).fingerprint == "2aeeaa7ebb0f7e29"


def test_each_option_changes_the_fingerprint() -> None:
    options: list[dict[str, Any]] = [
        {"weights": gaussian_weights(seed=1)},
        {"f_lst": [1.0, 2.0]},
        {"t_steps": [1.0, 3601.0]},
        {"g_converter_baseline": SinglePairConductanceConverter(g_min=0.0, g_max=25.0)},
        {"g_converter_baseline": DualPairConductanceConverter([1.0, 2.0], 25.0, 0.0)},
        {"g_converter_baseline": NPairConductanceConverter([1.0, 1.0], 25.0, 0.0)},
        {"g_converter_baseline": custom_pair(0.0)},
        {"symmetric": False},
        {"nbins": 5},
        {"test_out_features": 9},
        {"g_err": 0.01},
        {"f_min": 0.2},
        {"f_max": 4.0},
        {"use_max_kw": True},
        {"loss_margin": 0.1},
        {"baseline_iterations": 99},
        {"seed": 101},
    ]
    fingerprints = {small_problem(**option).fingerprint for option in [{}, *options]}
    assert len(fingerprints) == 1 + len(options)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("forward.out_bound", 9.0),
        ("forward.w_noise_type", WeightNoiseType.PCM_READ),
        ("forward.is_perfect", True),
        ("noise_model", ReRamCMONoiseModel(g_max=25.0, g_min=9.0)),
        ("noise_model.prog_noise_scale", 0.9),
        ("noise_model.prog_coeff", [0.26348, 1.965, -1.17]),
        ("drift_compensation", None),
        ("drift_compensation", PerColumnDriftCompensation()),
        ("mapping.max_input_size", ROWS + 1),
        ("tile_class", TorchInferenceRPUConfig().tile_class),
    ],
)
def test_each_setting_of_the_hardware_changes_the_fingerprint(path: str, value: object) -> None:
    assert with_rpu_config(setting(path, value)) != with_rpu_config()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("noise_model.g_converter", dual_pair(g_max=40.0)),
        ("backward.out_noise", 0.3),
        # The evaluation switches these off.
        ("mapping.weight_scaling_omega", 0.5),
        ("mapping.weight_scaling_columnwise", False),
        ("mapping.learn_out_scaling", False),
        ("mapping.out_scaling_columnwise", False),
    ],
)
def test_what_does_not_act_on_the_loss_does_not_change_the_fingerprint(
    path: str, value: object
) -> None:
    assert with_rpu_config(setting(path, value)) == with_rpu_config()


def test_the_order_and_shape_of_the_weights_do_not_matter() -> None:
    weights = gaussian_weights()
    shuffled = weights[torch.randperm(400, generator=torch.Generator().manual_seed(1))]
    expected = small_problem(weights=weights).fingerprint
    assert small_problem(weights=shuffled.reshape(20, 20)).fingerprint == expected
    assert small_problem(weights=weights.double().requires_grad_()).fingerprint == expected


@pytest.mark.parametrize(
    ("whole", "fractional"),
    [
        ({"t_steps": [1, 60]}, {"t_steps": (1.0, 60.0)}),
        ({"f_lst": (1, None)}, {"f_lst": [1.0, None]}),
        ({"g_err": 0}, {"g_err": -0.0}),
        (
            {"g_converter_baseline": DualPairConductanceConverter([1, 1], g_max=25, g_min=0)},
            {"g_converter_baseline": dual_pair()},
        ),
        (
            {"rpu_config": small_rpu_config(ReRamWan2022NoiseModel({1: [1, 2]})), "t_steps": [1]},
            {
                "rpu_config": small_rpu_config(ReRamWan2022NoiseModel({1.0: [1.0, 2.0]})),
                "t_steps": [1],
            },
        ),
    ],
)
def test_whole_numbers_and_their_fractional_equals_give_the_same_fingerprint(
    whole: dict[str, Any], fractional: dict[str, Any]
) -> None:
    assert small_problem(**whole).fingerprint == small_problem(**fractional).fingerprint


def test_differences_name_the_setting_and_both_values() -> None:
    stored = small_problem().description
    changed = small_rpu_config(PCMLikeNoiseModel(drift_scale=0.5), compensation=None)
    current = small_problem(rpu_config=changed, nbins=7).description
    assert differences(stored, stored) == []
    assert differences(stored, current) == [
        "nbins was 4, now 7",
        "rpu_config.drift_compensation was GlobalDriftCompensation, now None",
        "rpu_config.noise_model.drift_scale was 1, now 0.5",
    ]


class NoiseOfOnesOwn(PCMLikeNoiseModel):
    """A noise model as a user writes it, with a parameter that is not public."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self._scale = scale


def test_a_private_parameter_of_a_users_noise_model_changes_the_fingerprint() -> None:
    one, two = (
        small_problem(rpu_config=small_rpu_config(NoiseOfOnesOwn(s))).fingerprint for s in (1, 2)
    )
    assert one != two
