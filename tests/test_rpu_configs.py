from pathlib import Path

import numpy as np
import pytest
import torch
from aihwkit.inference import GlobalDriftCompensation, PCMLikeNoiseModel
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.parameters.enums import (
    BoundManagementType,
    NoiseManagementType,
    WeightNoiseType,
)
from aihwkit.simulator.presets import PresetIOParameters, StandardHWATrainingPreset
from torch import nn

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.reference import ReferenceEngine
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem
from wpo_optuna.rpu_configs import NAMED_RPU_CONFIGS, named_rpu_config, rpu_config

DAY = 86400.0


def test_the_named_configurations_are_those_documented() -> None:
    assert list(NAMED_RPU_CONFIGS) == ["pcm", "standard-hwa", "reram-wan", "reram-cmo", "hermes"]
    for name, config in NAMED_RPU_CONFIGS.items():
        assert config.name == name
        assert config.description
        assert "\n" not in config.description


def test_pcm_is_the_configuration_of_aihwkits_example_33() -> None:
    config = rpu_config("pcm")
    assert config.mapping.max_input_size == 512
    assert config.forward == PresetIOParameters(
        w_noise_type=WeightNoiseType.PCM_READ,
        w_noise=0.0175,
        inp_res=256,
        out_res=256,
        out_bound=10.0,
        out_noise=0.04,
        bound_management=BoundManagementType.ITERATIVE,
        noise_management=NoiseManagementType.ABS_MAX,
    )
    assert type(config.noise_model) is PCMLikeNoiseModel
    assert str(config.noise_model) == str(PCMLikeNoiseModel())
    assert isinstance(config.drift_compensation, GlobalDriftCompensation)


def test_standard_hwa_is_aihwkits_preset() -> None:
    assert type(rpu_config("standard-hwa")) is StandardHWATrainingPreset


@pytest.mark.parametrize("name", NAMED_RPU_CONFIGS)
def test_each_call_gives_a_configuration_of_its_own(name: str) -> None:
    first, second = rpu_config(name), rpu_config(name)
    first.noise_model.g_converter = None
    first.forward.out_noise = 9.0
    assert second.noise_model.g_converter is not None
    assert second.forward.out_noise < 1


@pytest.mark.parametrize("name", NAMED_RPU_CONFIGS)
def test_the_range_of_conductance_is_the_one_the_noise_model_was_fitted_to(name: str) -> None:
    named, noise_model = named_rpu_config(name), rpu_config(name).noise_model
    assert noise_model.g_converter.g_min == named.g_min
    assert noise_model.g_converter.g_max == pytest.approx(named.g_max)
    assert noise_model.g_max == pytest.approx(named.g_max)
    baseline = named.baseline()
    assert (baseline.g_min, baseline.g_max, baseline.f_lst) == (named.g_min, named.g_max, [1.0] * 2)


@pytest.mark.parametrize("name", NAMED_RPU_CONFIGS)
def test_the_baseline_of_each_configuration_can_be_scored_at_its_times(name: str) -> None:
    named = named_rpu_config(name)
    torch.manual_seed(0)
    problem = WeightProgrammingProblem(
        0.2 * torch.randn(5000), [1.0, None], named.build(), named.t_steps, named.baseline()
    )
    tnmse = ReferenceEngine(problem).tnmse_of(problem.g_converter_baseline, repeats=2)
    # 100 times the squared error relative to the largest weight: errors of 0.3 % to 14 %.
    assert np.all((tnmse > 0.001) & (tnmse < 2.0))


def test_the_times_of_the_measured_reram_are_the_only_ones_it_knows() -> None:
    wan = named_rpu_config("reram-wan")
    assert wan.only_these_times
    assert wan.t_steps == (1.0, DAY, 2 * DAY)
    assert set(wan.t_steps) == set(wan.build().noise_model.coeff_dic)
    assert not named_rpu_config("pcm").only_these_times


@pytest.mark.parametrize("name", NAMED_RPU_CONFIGS)
def test_a_network_converts_with_each_configuration(name: str) -> None:
    torch.manual_seed(0)
    named = named_rpu_config(name)
    config = named.build()
    config.noise_model.g_converter = named.baseline()
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5))
    analog = convert_to_analog(model, config).eval()
    inputs = torch.rand(50, 30)
    analog.program_analog_weights()
    analog.drift_analog_weights(named.t_steps[-1])
    correlation = np.corrcoef(
        analog(inputs).detach().numpy().ravel(), model(inputs).detach().numpy().ravel()
    )[0, 1]
    assert correlation > 0.9


def my_hardware() -> InferenceRPUConfig:
    return InferenceRPUConfig(noise_model=PCMLikeNoiseModel(g_max=30.0))


def test_a_users_function_gives_its_own_configuration() -> None:
    assert rpu_config(f"{__file__}:my_hardware").noise_model.g_max == 30.0


@pytest.mark.parametrize(
    ("name", "meant"), [("pmc", "pcm"), ("reram", "reram-"), ("standard_hwa", "standard-hwa")]
)
def test_an_unknown_name_is_answered_with_the_nearest_and_all_others(name: str, meant: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        rpu_config(name)
    message = str(raised.value)
    assert repr(name) in message
    assert f"did you mean '{meant}" in message
    assert all(known in message for known in NAMED_RPU_CONFIGS)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return 3", "int"),
        (
            "from aihwkit.simulator.configs import FloatingPointRPUConfig as C; return C()",
            "Floating",
        ),
        (
            "from aihwkit.simulator.configs import InferenceRPUConfig as C; "
            "return C(noise_model=None)",
            "NoneType",
        ),
        ("raise KeyError('g_max')", "KeyError: 'g_max'"),
    ],
)
def test_a_function_that_gives_no_inference_configuration_is_named(
    tmp_path: Path, body: str, expected: str
) -> None:
    path = tmp_path / "hardware.py"
    path.write_text(f"def chip():\n    {body}\n")
    with pytest.raises(InvalidArgument) as raised:
        rpu_config(f"{path}:chip")
    message = str(raised.value)
    assert f"{path}:chip" in message
    assert expected in message
    assert "\n" not in message
