"""What users write about their hardware, and what it stands for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from aihwkit.inference import (
    CustomDriftPCMLikeNoiseModel,
    DualPairConductanceConverter,
    NPairConductanceConverter,
    PCMLikeNoiseModel,
    ReRamCMONoiseModel,
    ReRamWan2022NoiseModel,
    SinglePairConductanceConverter,
)
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import InferenceRPUConfig
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.hardware import (
    NAMED_RPU_CONFIGS,
    conductance_range,
    format_duration,
    named_rpu_config,
    parse_converter,
    parse_durations,
    rpu_config,
)
from wpo_optuna.strategy import ProgrammingStrategy

DAY = 86400.0
CURVES = ((20.0, 5.0, 1.0), (1.0, 5.0, 20.0))


@pytest.mark.parametrize("name", NAMED_RPU_CONFIGS)
def test_the_range_of_conductance_is_the_one_the_noise_model_was_fitted_to(name: str) -> None:
    named, noise_model = named_rpu_config(name), rpu_config(name).noise_model
    assert noise_model.g_converter.g_min == named.g_min
    assert noise_model.g_converter.g_max == pytest.approx(named.g_max)
    assert noise_model.g_max == pytest.approx(named.g_max)
    baseline = named.baseline()
    assert (baseline.g_min, baseline.g_max, baseline.f_lst) == (named.g_min, named.g_max, [1.0] * 2)


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
        ("return 3", "returned int"),
        ("return Hardware(noise_model=None)", "noise_model is NoneType"),
        ("raise KeyError('g_max')", "KeyError: 'g_max'"),
    ],
)
def test_a_function_that_gives_no_inference_configuration_is_named(
    tmp_path: Path, body: str, expected: str
) -> None:
    path = tmp_path / "hardware.py"
    imported = "from aihwkit.simulator.configs import InferenceRPUConfig as Hardware"
    path.write_text(f"{imported}\ndef chip():\n    {body}\n")
    with pytest.raises(InvalidArgument) as raised:
        rpu_config(f"{path}:chip")
    message = str(raised.value)
    assert f"{path}:chip" in message
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("noise_model", "expected"),
    [
        (PCMLikeNoiseModel(), (0.0, 25.0)),
        (ReRamWan2022NoiseModel(g_max=40.0), (0.0, 40.0)),
        (ReRamCMONoiseModel(g_min=9.0, g_max=88.2), (9.0, 88.2)),
        (
            CustomDriftPCMLikeNoiseModel(
                {"g_lst": [2.0, 20.0], "nu_mean_lst": [0.1, 0.05], "nu_std_lst": [0.02, 0.01]},
                g_converter=SinglePairConductanceConverter(g_min=2.0, g_max=20.0),
            ),
            (2.0, 20.0),
        ),
        (BaseNoiseModel(), (0.0, float("inf"))),
    ],
)
def test_the_range_of_a_noise_model_is_what_it_says_about_it(
    noise_model: BaseNoiseModel, expected: tuple[float, float]
) -> None:
    assert conductance_range(noise_model) == expected


def test_single_dual_and_npair_become_aihwkits_converters_with_the_range_given() -> None:
    single = parse_converter("single", 1.0, 20.0, "baseline")
    dual = parse_converter("dual:1,1", 0.0, 25.0, "baseline")
    npair = parse_converter(" NPair: 1, 2,4", 0.0, 25.0, "baseline")
    assert isinstance(single, SinglePairConductanceConverter)
    assert (single.g_min, single.g_max) == (1.0, 20.0)
    assert isinstance(dual, DualPairConductanceConverter)
    assert dual.f_lst == [1.0, 1.0]
    assert isinstance(npair, NPairConductanceConverter)
    assert npair.f_lst == [1.0, 2.0, 4.0]
    assert (npair.g_min, npair.g_max) == (0.0, 25.0)


def test_a_strategy_file_programs_as_the_strategy_with_the_devices_range(tmp_path: Path) -> None:
    strategy = ProgrammingStrategy((1.5,), CURVES, 0.0, 20.0)
    path = strategy.save(tmp_path / "strategy.json")
    converter = parse_converter(str(path), 0.0, 25.0, "baseline")
    weights = torch.linspace(-0.3, 0.3, 17)
    programmed, _ = converter.convert_to_conductances(weights)
    expected, _ = strategy.to_converter().convert_to_conductances(weights)
    assert all(torch.equal(a, b) for a, b in zip(programmed, expected, strict=True))
    assert (converter.g_min, converter.g_max) == (0.0, 25.0)


def test_a_strategy_that_leaves_the_range_of_the_devices_is_refused(tmp_path: Path) -> None:
    path = ProgrammingStrategy((1.0,), CURVES, 0.0, 20.0).save(tmp_path / "strategy.json")
    with pytest.raises(InvalidArgument, match="1 to 20 µS, leave the range of the devices, 2 to"):
        parse_converter(str(path), 2.0, 25.0, "baseline")
    with pytest.raises(InvalidArgument, match="leave the range of the devices, 0 to 15 µS"):
        parse_converter(str(path), 0.0, 15.0, "baseline")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("duall:1,1", r"strategy.json is needed \(did you mean 'dual'\?\)\.$"),
        *((text, "single, dual:F,F or npair:F,F,... with positive significance factors") for text in
          ("", "single:1", "dual", "dual:1,2,3", "dual:1,x", "npair:1,-2", "npair:1,inf")),
        ("no/such/strategy.json", "cannot be read: No such file"),
    ],
)  # fmt: skip
def test_other_texts_are_refused_in_one_sentence_naming_the_argument(
    text: str, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message) as refused:
        parse_converter(text, 0.0, 25.0, "--baseline")
    assert str(refused.value).startswith("--baseline = ")


@given(
    st.lists(
        st.one_of(
            st.floats(min_value=0, max_value=1e12, allow_subnormal=False),
            st.integers(0, 100_000).map(lambda n: n * 60.0),
            st.integers(0, 1000).map(lambda n: n * 86400.0),
        ),
        min_size=1,
        max_size=6,
        unique=True,
    )
)
def test_formatted_durations_read_back_exactly(seconds: list[float]) -> None:
    times = tuple(sorted(seconds))
    assert parse_durations(",".join(map(format_duration, times)), "t") == times


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (1, "1s"), (90, "90s"), (3600, "1h"), (360 * 86400, "360d"), (31536000, "1y")],
)
def test_durations_are_written_in_the_largest_whole_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("text", ["", "1s,,1h", "1m", "1 month", "-1s", "s", "1h30min", "nan"])
def test_what_is_no_duration_is_refused_with_the_argument_and_the_entry(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"--t-steps = .* contains .* 1s,1min,1h,1d,30d,1y"):
        parse_durations(text, "--t-steps")


@pytest.mark.parametrize("text", ["1h,1min", "60s,1min"])
def test_times_that_do_not_ascend_are_refused_and_sorted_ones_proposed(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"must ascend, each one once, e\.g\. 1min"):
        parse_durations(text, "t")
