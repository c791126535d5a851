"""A metric over time: what is drawn anew and what is not, and what is written down."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aihwkit.inference import (
    CustomDriftPCMLikeNoiseModel,
    DualPairConductanceConverter,
    PCMLikeNoiseModel,
    ReRamWan2022NoiseModel,
)
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.presets import StandardHWATrainingPreset
from torch import nn

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.evaluate.accuracy import OPTIMISED, NetworkSetup, accuracy, compare_over_time
from wpo_optuna.evaluate.metric_over_time import MetricOverTime
from wpo_optuna.network.apply import analog_tiles
from wpo_optuna.network.conversion import NetworkForms
from wpo_optuna.strategy import ProgrammingStrategy

ONE_PAIR = ProgrammingStrategy((1.0,), ((0.0, 10.0, 20.0), (20.0, 10.0, 0.0)), 0.0, 25.0)
BASELINE = DualPairConductanceConverter([1.0, 1.0], g_min=0.0, g_max=25.0)
NOISELESS = {"prog_noise_scale": 0.0, "read_noise_scale": 0.0, "drift_scale": 0.0}
T_STEPS = (1.0, 3600.0, 86400.0)


def _hardware(noise_model: BaseNoiseModel) -> InferenceRPUConfig:
    """Hardware whose forward pass is exact, so that the devices alone make a difference."""
    rpu_config = InferenceRPUConfig(noise_model=noise_model, drift_compensation=None)
    rpu_config.forward.is_perfect = True
    return rpu_config


def _classifier() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def _batches(network: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs that the network itself classifies, so that it is always right."""
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    return [(part, network(part).argmax(dim=1)) for part in inputs.split(16)]


def _output(network: nn.Module, batches: Iterable[Any]) -> float:
    return float(sum(network(inputs).double().sum() for inputs, _ in batches))


def _devices(network: nn.Module, _: Iterable[Any]) -> float:
    """Devices for a weight of each layer, as digits of a number; 0 for a digital network."""
    counts = [len(tile.tile.drift_noise_parameters) for tile in analog_tiles(network)]
    return sum(count * 10**place for place, count in enumerate(reversed(counts)))


def _compare(network: NetworkForms, strategy: Any, metric: Any, **options: Any) -> MetricOverTime:
    data = options.pop("data", [(torch.zeros(1, 6), torch.zeros(1, dtype=torch.int64))])
    setup = NetworkSetup(network, "that of the test", data, metric, "metric")
    t_steps = options.pop("t_steps", T_STEPS)
    return compare_over_time(setup, {OPTIMISED: strategy}, BASELINE, t_steps, **options)


def test_without_noise_the_analog_network_is_the_digital_one_at_all_times() -> None:
    digital = _classifier().eval()
    network = NetworkForms.of(digital, _hardware(PCMLikeNoiseModel(**NOISELESS)))
    batches = _batches(digital)
    result = _compare(network, ONE_PAIR, accuracy, data=batches, repeats=2)
    assert result.ideal == 1.0
    assert all((values == 1.0).all() for values in result.curves.values())
    outputs = _compare(network, ONE_PAIR, _output, data=batches, repeats=1)
    for values in outputs.curves.values():
        assert values == pytest.approx(outputs.ideal, rel=1e-5)


def test_conductances_decay_with_the_drift_models_power_of_time() -> None:
    drift = {"g_lst": [0.0, 25.0], "nu_mean_lst": [0.05, 0.05], "nu_std_lst": [0.0, 0.0]}
    noise_model = CustomDriftPCMLikeNoiseModel(
        drift, prog_noise_scale=0.0, read_noise_scale=0.0, t_0=20.0
    )
    network = NetworkForms.of(nn.Linear(6, 3, bias=False), _hardware(noise_model))
    times, data = (0.0, 1e3, 1e6), [(torch.rand(4, 6), None)]
    result = _compare(network, ONE_PAIR, _output, data=data, t_steps=times, repeats=1)
    assert result.ideal is not None
    expected = [result.ideal * ((t + 20) / 20) ** -0.05 for t in times]
    for values in result.curves.values():
        assert values[0] == pytest.approx(expected, rel=1e-5)


def test_a_repeat_is_one_programming_followed_through_time() -> None:
    hardware = _hardware(PCMLikeNoiseModel(read_noise_scale=0.0, drift_scale=0.0))
    network, data = NetworkForms.of(_classifier(), hardware), _batches(_classifier())
    for values in _compare(network, ONE_PAIR, _output, data=data, repeats=3).curves.values():
        # Programming errors stay the same over time, and differ from one programming to the next.
        assert np.ptp(values, axis=1) == pytest.approx(0, abs=1e-5 * np.abs(values).max())
        assert len(np.unique(values[:, 0])) == 3


def test_device_noise_repeats_with_the_seed_whatever_else_draws_random_numbers() -> None:
    network = NetworkForms.of(_classifier(), _hardware(PCMLikeNoiseModel()))
    options: dict[str, Any] = {"data": _batches(_classifier()), "repeats": 2}

    def drawing(network: nn.Module, batches: Iterable[Any]) -> float:
        torch.rand(7)
        return _output(network, batches)

    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = _compare(network, ONE_PAIR, _output, seed=3, **options).curves
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    again = _compare(network, ONE_PAIR, drawing, seed=3, **options).curves
    other = _compare(network, ONE_PAIR, _output, seed=4, **options).curves
    for name, values in first.items():
        assert np.array_equal(again[name], values)
        assert not (other[name] == values).any()


@pytest.mark.parametrize(("strategy", "optimised"), [(ONE_PAIR, 22), ({"2": ONE_PAIR}, 42)])
def test_layers_without_a_strategy_are_programmed_like_the_baseline(
    strategy: Any, optimised: int
) -> None:
    network = NetworkForms.of(_classifier(), _hardware(PCMLikeNoiseModel()))
    result = _compare(network, strategy, _devices, repeats=2)
    assert result.ideal == 0
    assert {name: set(values.ravel()) for name, values in result.curves.items()} == {
        "baseline": {44.0}, "optimised": {float(optimised)},
    }  # fmt: skip


def test_what_cannot_be_compared_is_refused_before_the_first_measurement() -> None:
    def never(network: nn.Module, data: Iterable[Any]) -> float:
        raise AssertionError("measured")

    pcm = NetworkForms.of(_classifier(), _hardware(PCMLikeNoiseModel()))
    with pytest.raises(InvalidArgument, match="repeats = 0"):
        _compare(pcm, ONE_PAIR, never, repeats=0)
    with pytest.raises(InvalidArgument, match="no analog layer matches 'fc1'"):
        _compare(pcm, {"fc1": ONE_PAIR}, never)
    reram = NetworkForms.of(_classifier(), _hardware(ReRamWan2022NoiseModel(g_max=40.0)))
    with pytest.raises(InvalidArgument, match="t_steps contains 3600 s, which ReRamWan"):
        _compare(reram, ONE_PAIR, never)


def _verdict(baseline: Any, optimised: Any, higher_is_better: bool | None = True) -> str:
    """The sentence on two curves whose last values, one for each repeat, are these."""
    ends = {"baseline": baseline, "optimised": optimised}
    curves = {name: np.array([[0.5, value] for value in values]) for name, values in ends.items()}
    return MetricOverTime("accuracy", (1.0, 86400.0), 0.98, curves, higher_is_better).verdict()


CHIPS = np.linspace(0.90, 0.96, 12)  # chips differ more than the ways to program them
LUCK = np.array([0.001, -0.001] * 6)


@pytest.mark.parametrize(
    ("by", "higher_is_better", "found"),
    [
        (0.01, True, "better than"),
        (-0.01, True, "worse than"),
        (-0.01, False, "better than"),
        (0.01, None, "higher than"),
        (0.0005, True, "not distinguishable from"),
    ],
)
def test_the_verdict_is_on_differences_paired_by_repeat_beyond_two_standard_errors(
    by: float, higher_is_better: bool | None, found: str
) -> None:
    told = _verdict(CHIPS, CHIPS + by + LUCK, higher_is_better)
    assert told.startswith(
        f"After 1d, optimised is {found} baseline: accuracy differs by {by:+.5f}"
    )
    # sqrt(12/11) * 0.001 / sqrt(12)
    assert "standard error 0.00030, in 12 repeats paired by seed" in told
    assert ("more repeats show smaller differences" in told) == ("not" in found)


@pytest.mark.parametrize(
    ("baseline", "optimised", "told"),
    [
        (CHIPS[:3], CHIPS[1:4], "with fewer than 10 the error itself is uncertain"),
        (CHIPS[:1], CHIPS[1:2], "not distinguishable from baseline"),
        (CHIPS[:1], CHIPS[1:2], "in a single repeat, which has no standard error"),
        (CHIPS, CHIPS, "not distinguishable from baseline: accuracy differs by +0,"),
        ([0.5] * 12, [0.75] * 12, "better than baseline: accuracy differs by +0.25, standard err"),
    ],
)
def test_the_verdict_says_where_repeats_are_too_few_or_all_equal(
    baseline: Any, optimised: Any, told: str
) -> None:
    assert told in _verdict(baseline, optimised)


def test_the_table_has_the_digits_that_the_errors_leave_and_ends_with_the_verdict() -> None:
    curves = {
        "baseline": np.array([[0.951234, 1.0], [0.953456, 1.0]]),
        "optimised": np.array([[1234.5, 0.2], [1334.5, 0.9]]),
    }
    result = MetricOverTime("accuracy", (1.0, 86400.0), 0.98, curves)
    heading, _, head, first, second, _, verdict = result.table().splitlines()
    assert "mean ± standard deviation of 2 programmings" in heading
    assert head.split() == ["baseline", "optimised"]
    assert first.split("  ") == ["1s", "0.9523 ± 0.0016", "1284 ± 71"]
    assert [cell for cell in second.split("  ") if cell] == ["1d", "1 ± 0", "0.55 ± 0.49"]
    assert verdict == result.verdict()


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (accuracy, True),
        (lambda network, data: -1.0 * _is_digital(network), False),
        (lambda network, data: 1.0 * _is_digital(network), True),
    ],
)
def test_what_is_better_is_known_of_accuracy_and_else_read_off_the_digital_network(
    metric: Any, expected: bool
) -> None:
    network = NetworkForms.of(_classifier(), _hardware(PCMLikeNoiseModel()))
    data = _batches(_classifier())
    assert _compare(network, ONE_PAIR, metric, data=data, repeats=1).higher_is_better is expected


def _is_digital(network: nn.Module) -> bool:
    return not any(analog_tiles(network))


def test_accuracy_is_the_share_of_right_classes_over_all_batches() -> None:
    network = nn.Identity()
    scores = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    batches = [(scores[:2], torch.tensor([0, 1])), (scores[2:], torch.tensor([1]))]
    assert accuracy(network, batches) == pytest.approx(2 / 3)
    pixels = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)], dim=1)
    assert accuracy(network, [(pixels, torch.ones(1, 1, 4, 4)[0].long())]) == 1.0


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "there are no inputs"),
        ([{"input": torch.zeros(2, 3)}], "a batch is dict"),
        ([(torch.zeros(2, 3), [0, 1])], r"a batch is \[Tensor, list\]"),
        ([(torch.zeros(4), torch.zeros(4))], r"scores have shape \(4,\)"),
        ([(torch.zeros(2, 3), torch.zeros(2, 3))], r"shape \(2, 3\) and the targets \(2, 3\)"),
    ],
)
def test_data_that_are_no_classification_are_refused(batches: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        accuracy(nn.Identity(), batches)


def test_the_digital_form_of_a_programmed_analog_network_has_no_noise() -> None:
    digital = _classifier().eval()
    analog = convert_to_analog(digital, _hardware(PCMLikeNoiseModel())).eval()
    analog.drift_analog_weights(86400.0)
    inputs, _ = _batches(digital)[0]
    noisy = analog(inputs)
    forms = NetworkForms.of(analog, None)
    assert forms.digital is not None
    assert torch.allclose(forms.digital.eval()(inputs), digital(inputs), atol=1e-5)
    assert torch.equal(analog(inputs), noisy)
    assert not torch.allclose(noisy, digital(inputs), atol=1e-3)


def test_input_ranges_of_converted_networks_are_the_largest_inputs_and_others_are_kept() -> None:
    torch.manual_seed(0)
    digital = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)).eval()
    images = 7 * torch.randn(5, 1, 4, 4)
    forms = NetworkForms.of(digital, StandardHWATrainingPreset())
    with torch.no_grad(), forms.setting_input_ranges():
        digital(images[:2])
        digital(images[2:])
    with torch.no_grad():
        expected = [images.abs().max(), digital[0](images).abs().max()]
    ranges = [tile.tile.input_range.item() for tile in analog_tiles(forms.analog)]
    assert ranges == pytest.approx([float(e) for e in expected])
    assert not digital[0]._forward_pre_hooks

    again = NetworkForms.of(forms.analog, None)
    with again.setting_input_ranges():
        again.digital(torch.zeros(1, 1, 4, 4))
    assert [tile.tile.input_range.item() for tile in analog_tiles(again.analog)] == ranges


def test_files_hold_every_measurement_its_summary_and_a_readable_figure(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(0.8, 1.0, (2, 4, 3))
    curves = {"baseline": values[0], "optimised": values[1]}
    result = MetricOverTime("accuracy", T_STEPS, 0.98, curves)
    measurements, summary, png, svg = result.save(tmp_path / "new")
    with measurements.open() as file:
        ideal, *rows = csv.DictReader(file)
    assert (ideal["programming"], float(ideal["accuracy"])) == ("ideal", 0.98)
    assert [float(row["accuracy"]) for row in rows] == values.ravel().tolist()
    assert [float(row["t_s"]) for row in rows] == [*T_STEPS] * 8
    with summary.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["time"] for row in rows] == ["1s", "1h", "1d"] * 2
    expected = {
        "mean": values[1].mean(axis=0), "standard_deviation": values[1].std(axis=0, ddof=1),
        "lowest": values[1].min(axis=0), "highest": values[1].max(axis=0),
        "difference": (values[1] - values[0]).mean(axis=0),
        "standard_error_of_difference": (values[1] - values[0]).std(axis=0, ddof=1) / 2,
    }  # fmt: skip
    for column, numbers in expected.items():
        assert [float(row[column]) for row in rows[3:]] == pytest.approx(numbers.tolist())
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text(encoding="utf-8")
    for word in ("baseline", "optimised", "ideal", "1h", "accuracy", "4 programmings"):
        assert f">{word}" in text or f"{word}<" in text
