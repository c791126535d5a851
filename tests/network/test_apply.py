"""Strategies on the tiles of real networks."""

from __future__ import annotations

import re
from copy import deepcopy

import pytest
import torch
from aihwkit.inference import (
    PCMLikeNoiseModel,
    ReRamCMONoiseModel,
    SinglePairConductanceConverter,
)
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import (
    InferenceRPUConfig,
    SingleRPUConfig,
    TorchInferenceRPUConfig,
)
from torch import nn

from wpo_optuna import apply_strategy
from wpo_optuna.errors import InvalidArgument
from wpo_optuna.network.apply import analog_tiles
from wpo_optuna.strategy import ProgrammingStrategy

STRATEGY = ProgrammingStrategy(
    (1.0, 2.0),
    ((2.0, 4.0, 9.0), (9.0, 4.0, 2.0), (1.0, 5.0, 20.0), (20.0, 5.0, 1.0)),
    g_min=0.0,
    g_max=25.0,
)
OTHER = ProgrammingStrategy((3.0,), ((0.0, 10.0, 20.0), (20.0, 10.0, 0.0)), 0.0, 25.0)


class DeterministicDevices(PCMLikeNoiseModel):
    """Devices without any noise that note what they were programmed to."""

    def apply_programming_noise_to_conductance(self, g_target: torch.Tensor) -> torch.Tensor:
        self.targets = [*getattr(self, "targets", []), g_target.clone()]
        return g_target


def _hardware(noise_model: BaseNoiseModel | None = None) -> InferenceRPUConfig:
    rpu_config = InferenceRPUConfig(noise_model=noise_model or PCMLikeNoiseModel())
    rpu_config.mapping.max_input_size = 4
    return rpu_config


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Linear(9, 6), nn.ReLU()), nn.Linear(6, 3), nn.BatchNorm1d(3)
    )


def _converters(model: nn.Module) -> dict[str, list[float] | None]:
    return {
        tile.name: getattr(tile.tile.rpu_config.noise_model.g_converter, "f_lst", None)
        for tile in analog_tiles(model)
    }


def test_every_tile_of_a_converted_network_programs_with_the_strategy() -> None:
    model = convert_to_analog(_network(), _hardware(DeterministicDevices())).eval()
    applied = apply_strategy(model, STRATEGY)
    # 9 inputs on tiles of at most 4 are three tiles, 6 inputs two.
    assert len(applied.tiles) == 5
    assert applied.untouched == ()

    model.program_analog_weights()
    for tile in analog_tiles(model):
        weights = tile.tile.reference_combined_weights
        expected, _ = STRATEGY.to_converter().convert_to_conductances(weights)
        targets = tile.tile.rpu_config.noise_model.targets
        assert len(targets) == 4
        assert all(torch.equal(a, b) for a, b in zip(targets, expected, strict=True))


@pytest.mark.parametrize("rpu_config_class", [InferenceRPUConfig, TorchInferenceRPUConfig])
def test_networks_converted_with_a_configuration_program_with_its_strategy(
    rpu_config_class: type,
) -> None:
    noise_model = PCMLikeNoiseModel()
    rpu_config = rpu_config_class(noise_model=noise_model)
    assert apply_strategy(rpu_config, STRATEGY).tiles == ()
    model = convert_to_analog(_network(), rpu_config)
    assert set(map(str, _converters(model).values())) == {"[1.0, 2.0]"}
    # The noise model may be part of other configurations.
    assert isinstance(noise_model.g_converter, SinglePairConductanceConverter)
    assert rpu_config.noise_model is not noise_model


def test_a_noise_model_shared_by_all_tiles_and_another_network_is_left_alone() -> None:
    shared = PCMLikeNoiseModel()
    model = convert_to_analog(_network(), _hardware()).eval()
    model.program_analog_weights(noise_model=shared)  # aihwkit hands this object to every tile
    bystander = deepcopy(model)
    for tile in [*analog_tiles(model), *analog_tiles(bystander)]:
        tile.tile.rpu_config.noise_model = shared

    apply_strategy(model, {"1": STRATEGY})
    converters = _converters(model)
    assert {name for name, f_lst in converters.items() if f_lst} == {
        "1.analog_module.array.0.0", "1.analog_module.array.1.0",
    }  # fmt: skip
    assert set(_converters(bystander).values()) == {None}
    assert isinstance(shared.g_converter, SinglePairConductanceConverter)


def test_strategies_by_layer_exact_name_before_first_matching_pattern() -> None:
    model = convert_to_analog(_network(), _hardware())
    applied = apply_strategy(model, {"*": OTHER, "1": STRATEGY})
    assert applied.untouched == ()
    assert _converters(model) == {
        name: [1.0, 2.0] if name.startswith("1.") else [3.0] for name in applied.tiles
    }


def test_a_network_programmed_before_is_programmed_anew_when_it_drifts() -> None:
    model = convert_to_analog(_network(), _hardware(DeterministicDevices())).eval()
    model.program_analog_weights()
    weights = [tile.tile.reference_combined_weights.clone() for tile in analog_tiles(model)]
    apply_strategy(model, STRATEGY)
    # Drift coefficients of 2 devices a weight, kept, would silently drop two of the four.
    model.drift_analog_weights(3600.0)
    for tile, reference in zip(analog_tiles(model), weights, strict=True):
        assert len(tile.tile.drift_noise_parameters) == 4
        assert torch.equal(tile.tile.reference_combined_weights, reference)


@pytest.mark.parametrize(
    "noise_model", [PCMLikeNoiseModel(g_max=20.0), ReRamCMONoiseModel(g_min=9.0, g_max=88.2)]
)
def test_a_strategy_for_wider_devices_is_refused_and_nothing_changed(
    noise_model: BaseNoiseModel,
) -> None:
    model = convert_to_analog(_network(), _hardware(noise_model))
    before = _converters(model)
    with pytest.raises(InvalidArgument, match=r"range g_min = 0 to g_max = 25 µS: the .*Model"):
        apply_strategy(model, STRATEGY)
    assert _converters(model) == before
    with pytest.raises(InvalidArgument, match=r"describes devices of"):
        apply_strategy(_hardware(noise_model), STRATEGY)


def test_what_cannot_be_programmed_is_refused_in_one_sentence() -> None:
    analog = convert_to_analog(_network(), _hardware())
    training = convert_to_analog(_network(), SingleRPUConfig())
    cases: list[tuple[object, object, str]] = [
        (_network(), STRATEGY, "target is a Sequential without analog tiles"),
        (training, STRATEGY, "tile '0.0.analog_module' has no noise model"),
        (SingleRPUConfig(), STRATEGY, "target is a SingleRPUConfig"),
        ("model.pt", STRATEGY, "target is a str"),
        (analog, "strategy.json", "read a file with ProgrammingStrategy.load"),
        (analog, {}, "strategy is empty"),
        (analog, {"1": "strategy.json"}, "strategy of layer '1' is a str"),
        (analog, {"1.0": STRATEGY}, "no analog layer matches '1.0' (did you mean '0.0'?)"),
        (analog, {"fc*": STRATEGY}, "no analog layer matches 'fc*'; there are 0.0, 1."),
        (_hardware(), {"1": STRATEGY}, "strategies by layer need a network"),
    ]
    for target, strategy, message in cases:
        with pytest.raises(InvalidArgument, match=re.escape(message)):
            apply_strategy(target, strategy)  # type: ignore[arg-type]
