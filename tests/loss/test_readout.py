"""The batched read-out against the outputs of aihwkit's compiled tile and its torch tile.

Without noise a tile is deterministic, and the outputs must be the same. With noise, whose
generator in the compiled tile cannot be seeded, means and standard deviations are compared.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.configs import (
    InferenceRPUConfig,
    QuantizedTorchInferenceRPUConfig,
    TorchInferenceRPUConfig,
    TorchInferenceRPUConfigIRDropT,
)
from aihwkit.simulator.parameters import IOParameters
from aihwkit.simulator.parameters.enums import (
    AnalogMVType,
    BoundManagementType,
    NoiseManagementType,
    WeightNoiseType,
)
from aihwkit.simulator.tiles import TorchInferenceTile
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.noise import CommonNoise
from wpo_optuna.loss.readout import AnalogReadout

TILES = (InferenceRPUConfig, TorchInferenceRPUConfig, QuantizedTorchInferenceRPUConfig)


def tile_outputs(weights: Tensor, rpu_config: InferenceRPUConfig) -> Tensor:
    """Outputs (out, in) of a new tile of aihwkit's for all unit vectors."""
    n_outputs, n_inputs = weights.shape
    layer = AnalogLinear(n_inputs, n_outputs, bias=False, rpu_config=rpu_config).eval()
    tile = next(layer.analog_tiles())
    tile.tile.set_weights(weights)
    with torch.no_grad():
        return tile.tile.forward(torch.eye(n_inputs), False, False, False, True, False).T


def batched_outputs(weights: Tensor, rpu_config: InferenceRPUConfig, n_draws: int = 1) -> Tensor:
    """Outputs (R, out, in) of the batched read-out in R draws."""
    noise, readout = CommonNoise(0, range(n_draws)), AnalogReadout.of_tile(rpu_config)
    return readout.outputs(weights.expand(n_draws, -1, -1), noise, (1,))


def some_weights(n_outputs: int, n_inputs: int) -> Tensor:
    generator = torch.Generator().manual_seed(n_outputs * 1000 + n_inputs)
    return torch.randn(n_outputs, n_inputs, generator=generator)


NOISELESS_SETTINGS = st.fixed_dictionaries(
    {
        "out_noise": st.just(0.0),
        "bound_management": st.sampled_from(
            [BoundManagementType.NONE, BoundManagementType.ITERATIVE]
        ),
        "noise_management": st.sampled_from(
            [t for t in NoiseManagementType if t != NoiseManagementType.ABS_MAX_NP_SUM]
        ),
        "ir_drop": st.sampled_from([0.0, 1.0, 1e4]),
        "is_perfect": st.sampled_from([False] * 9 + [True]),
        "nm_thres": st.sampled_from([0.0, 0.3, 0.7, 3.0]),
        "inp_res": st.sampled_from([-1.0, 1 / 254, 256, 5, 0.21]),
        "out_res": st.sampled_from([-1.0, 1 / 254, 256, 16, 0.1]),
        # A bound that is not positive is none.
        "out_bound": st.sampled_from([10.0, 0.9, 0.45, 0.31, 0.1, 0.0, -1.0]),
        "out_scale": st.sampled_from([1.0, 1.7]),
        "max_bm_factor": st.sampled_from([1000, 4]),
        "max_bm_res": st.sampled_from([0.25, 1.0]),
    }
)


@settings(max_examples=200)
@given(tile=st.sampled_from(TILES), settings=NOISELESS_SETTINGS, scale=st.sampled_from([0.05, 0.6]))
def test_without_noise_the_outputs_are_those_of_the_tile(
    tile: type[InferenceRPUConfig], settings: dict[str, Any], scale: float
) -> None:
    if tile is not InferenceRPUConfig:
        assume(settings["ir_drop"] == 0)  # the torch tile refuses these itself
        assume(settings["noise_management"] != NoiseManagementType.AVERAGE_ABS_MAX)
        assume(settings["out_bound"] > 0)
    rpu_config, weights = tile(forward=IOParameters(**settings)), scale * some_weights(5, 17)
    of_batch, of_tile = batched_outputs(weights, rpu_config)[0], tile_outputs(weights, rpu_config)
    torch.testing.assert_close(of_batch, of_tile, rtol=1e-5, atol=1e-6, equal_nan=True)


PCM_READ, ADDITIVE = WeightNoiseType.PCM_READ, WeightNoiseType.ADDITIVE_CONSTANT
COMPILED, TORCH, _ = TILES
# Far above what the defaults of aihwkit are, so that a wrong term would show.
NOISY_SETTINGS: dict[str, tuple[type[InferenceRPUConfig], dict[str, Any]]] = {
    "output noise": (COMPILED, {"out_noise": 0.1}),
    "input, PCM read": (
        COMPILED,
        {"inp_noise": 0.2, "w_noise": 0.2, "w_noise_type": PCM_READ, "out_noise": 0.0},
    ),
    "input, additive, IR drop": (
        COMPILED,
        {
            "inp_noise": 0.2, "w_noise": 0.2, "w_noise_type": ADDITIVE, "out_noise": 0.0,
            "ir_drop": 1e4,
        },
    ),
    "tight bound, clipped": (
        COMPILED,
        {"out_bound": 0.4, "out_noise": 0.1, "bound_management": BoundManagementType.NONE},
    ),
    "tight bound, input noise, few passes": (
        COMPILED, {"out_bound": 0.4, "inp_noise": 0.1, "out_noise": 0.1, "max_bm_factor": 3},
    ),
    "torch, input noise": (TORCH, {"out_noise": 0.1, "inp_noise": 0.2}),
    # The largest weight exceeds it in some of the draws.
    "torch, tight bound": (TORCH, {"out_bound": 1.3, "out_noise": 0.1}),
}  # fmt: skip


@pytest.mark.parametrize("name", NOISY_SETTINGS)
def test_with_noise_means_and_deviations_are_those_of_the_tile(name: str) -> None:
    # Each comparison gives at most 105 p-values, one per output; the smallest one times their
    # number (Bonferroni) is below 10^-6 by chance once in 10^6 runs, so that the whole test of 7
    # settings and 4 comparisons fails falsely in fewer than 10^-4 of runs. The batch is seeded,
    # the tile is not.
    (kind, settings), n_draws = NOISY_SETTINGS[name], 250
    rpu_config = kind(forward=IOParameters(**settings))
    weights = 0.5 * some_weights(7, 15)
    tile = torch.stack([tile_outputs(weights, rpu_config) for _ in range(n_draws)])
    batch = batched_outputs(weights, rpu_config, n_draws)
    comparisons = {
        "mean of each output": (tile, batch),
        "spread of each output": (spread(tile), spread(batch)),
        "mean absolute output of each line": (tile.abs().mean(dim=2), batch.abs().mean(dim=2)),
        "spread of all": (spread(tile).mean(dim=(1, 2)), spread(batch).mean(dim=(1, 2))),
    }
    for compared, (of_tile, of_batch) in comparisons.items():
        p = p_values(of_tile, of_batch)
        assert p.min() * p.size > 1e-6, compared


def spread(outputs: Tensor) -> Tensor:
    return (outputs - outputs.median(dim=0).values).abs()


def p_values(one: Tensor, other: Tensor) -> NDArray[np.float64]:
    """p-values of equal means over the draws."""
    a, b = one.double().numpy(), other.double().numpy()
    error = np.sqrt((a.var(axis=0) + b.var(axis=0)) / len(a))
    # Outputs that no noise reaches are equal but for rounding.
    error = np.maximum(error, 1e-5 * abs(a).max())
    return 2 * stats.norm.sf(np.abs(a.mean(axis=0) - b.mean(axis=0)) / error)


class OwnTile(TorchInferenceTile):
    """Might do anything."""


def _compiled(**settings: Any) -> InferenceRPUConfig:
    return InferenceRPUConfig(forward=IOParameters(**settings))


@pytest.mark.parametrize(
    ("rpu_config", "named"),
    [
        (_compiled(out_noise_std=0.1), "out_noise_std = 0.1"),
        (_compiled(mv_type=AnalogMVType.POS_NEG_SEPARATE), "POS_NEG_SEPARATE"),
        (_compiled(bound_management=BoundManagementType.SHIFT), "SHIFT"),
        (_compiled(noise_management=NoiseManagementType.ABS_MAX_NP_SUM), "ABS_MAX_NP_SUM"),
        (TorchInferenceRPUConfigIRDropT(), "simulator_tile_class = TorchSimulatorTileIRDropT"),
        (TorchInferenceRPUConfig(tile_class=OwnTile), "tile_class = OwnTile"),
        (TorchInferenceRPUConfig(forward=IOParameters(out_bound=0.0)), "out_bound = 0.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_batched_is_refused(rpu_config: InferenceRPUConfig, named: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(named)) as refused:
        AnalogReadout.of_tile(rpu_config)
    assert 'use the engine "aihwkit"' in str(refused.value)


def test_without_drift_compensation_nothing_is_read_and_no_setting_matters() -> None:
    rpu_config = TorchInferenceRPUConfigIRDropT(drift_compensation=None)
    weights = some_weights(5, 17)
    assert torch.equal(batched_outputs(weights, rpu_config)[0], weights)
