"""The averaged read-out against the actual tile's, and the gamma excess against samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters, MappingParameter
from aihwkit.simulator.tiles.inference import InferenceTile
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_agreement import PERIPHERY
from numpy.typing import NDArray
from scipy.stats import norm

from wpo_optuna.loss.expected.gamma_excess import (
    ASYMMETRY_POINTS,
    HALF_SCALE,
    SCALE_POINTS,
    Z_LARGEST,
    Z_POINTS,
    gamma_excess_table,
)
from wpo_optuna.loss.expected.readout_table import ReadoutTable, tabulate_readout

FloatArray = NDArray[np.float64]

LARGEST, MEAN_ABSOLUTE = 0.9, 0.16


def tabulated(**forward: object) -> ReadoutTable:
    return tabulate_readout(IOParameters(**(PERIPHERY | forward)), LARGEST, MEAN_ABSOLUTE, 512)


REFERENCE = tabulated()


def looked_up(table: ReadoutTable, mean: float, deviation: float) -> FloatArray:
    """Response, slope and second moment, bilinear in mean and variance."""
    means = np.linspace(-table.largest_mean, table.largest_mean, len(table.values))
    n_cells = table.values.shape[1] - 1
    variances = (table.largest_deviation * np.linspace(0, 1, n_cells + 1) ** 2) ** 2
    at_mean = [
        [np.interp(mean, means, table.values[:, j, k]) for j in range(n_cells + 1)]
        for k in range(3)
    ]
    return np.array([np.interp(deviation**2, variances, row) for row in at_mean])


def outputs_of_tile(weights: FloatArray, repeats: int, **forward: object) -> FloatArray:
    """Outputs (repeats, N) of aihwkit's tile, each weight read alone."""
    rpu_config = InferenceRPUConfig(
        forward=IOParameters(**(PERIPHERY | forward)),
        mapping=MappingParameter(weight_scaling_omega=0.0),
    )
    tile = InferenceTile(1, len(weights), rpu_config).eval()
    tile.tile.set_weights(torch.from_numpy(weights[None]).float())
    inputs = torch.eye(len(weights))
    read = [tile.tile.forward(inputs, False, False, False, True, False) for _ in range(repeats)]
    return torch.stack(read)[:, :, 0].double().numpy()


@pytest.mark.parametrize(
    "forward",
    [{}, {"out_res": 1 / 62, "out_bound": 2.0}, {"out_bound": 0.4}, {"w_noise": 0.1}],
    ids=["reference", "coarse ADC", "tight bound", "weight noise"],
)
def test_read_out_of_single_weights_is_that_of_aihwkits_tile(forward: dict[str, float]) -> None:
    weights = np.array([-0.9, -0.3, -0.05, 0.0, 0.02, 0.1, 0.2, 0.35, 0.6, 0.9])
    table = tabulated(**forward)
    n = 10_000
    outputs = outputs_of_tile(np.repeat(weights, 200), n // 200, **forward)
    outputs = outputs.reshape(-1, len(weights), 200).transpose(1, 0, 2).reshape(len(weights), -1)
    for weight, sample in zip(weights, outputs, strict=True):
        response, _, square = looked_up(table, weight, 0.0)
        # 5 standard errors: 10 x 2 of them fail with a rate of 1e-5; interpolation adds 1e-4.
        absolute = np.abs(sample)
        assert abs(response - absolute.mean()) < 5 * absolute.std() / n**0.5 + 2e-4
        assert abs(square - (sample**2).mean()) < 5 * (sample**2).std() / n**0.5 + 2e-4


@settings(max_examples=40)
@given(st.floats(-0.5, 0.5), st.floats(0.0, 0.2))
def test_read_out_of_normal_weights_is_the_average_over_them(mean: float, deviation: float) -> None:
    table = REFERENCE
    means = np.linspace(-table.largest_mean, table.largest_mean, len(table.values))
    weights = mean + deviation * norm.ppf((np.arange(4000) + 0.5) / 4000)
    single = [np.interp(weights, means, table.values[:, 0, k]).mean() for k in range(3)]
    response, slope, square = looked_up(table, mean, deviation)
    assert response == pytest.approx(single[0], abs=1e-3)
    assert slope == pytest.approx(single[1], abs=0.02)
    assert square == pytest.approx(single[2], abs=1e-3)


def test_a_perfect_tile_reads_the_absolute_value() -> None:
    table = tabulated(is_perfect=True)
    for weight in (-0.7, -0.01, 0.0, 0.3, 1.2):
        response, slope, square = looked_up(table, weight, 0.0)
        assert response == pytest.approx(abs(weight), abs=1e-6)
        assert square == pytest.approx(weight**2, abs=1e-4)
        assert slope == pytest.approx(np.sign(weight), abs=1e-6)


def test_input_noise_adds_variance_in_proportion_to_the_tiles_weights() -> None:
    table = tabulated(inp_noise=0.01)
    quiet = tabulated()
    assert table.variance_per_square == pytest.approx(512 * 1e-4)
    assert quiet.variance_per_square == 0
    np.testing.assert_array_equal(table.values, quiet.values)


@pytest.mark.parametrize("asymmetry", [-1.0, -0.5, 0.0, 0.75, 1.0])
@pytest.mark.parametrize("scale_point", [3, 6, 9])
def test_gamma_excess_is_that_of_sampled_differences(asymmetry: float, scale_point: int) -> None:
    relative = scale_point / SCALE_POINTS
    scale = HALF_SCALE * relative / (1 - relative)
    shapes = [0.5 * (1 + sign * asymmetry) / scale**2 for sign in (1, -1)]
    rng = np.random.default_rng(0)
    n = 400_000
    gamma = [rng.gamma(shape, size=n) if shape > 0 else np.zeros(n) for shape in shapes]
    sample = scale * (gamma[0] - gamma[1] - (shapes[0] - shapes[1]))
    across = round((asymmetry + 1) * (ASYMMETRY_POINTS - 1) / 2)
    for along in (0, 5, 12):
        z = along * Z_LARGEST / (Z_POINTS - 1)
        normal = 2 * norm.pdf(z) + z * (1 - 2 * norm.cdf(-z))
        absolute = np.abs(z + sample)
        excess = gamma_excess_table()[along, across, scale_point]
        # 5 standard errors: 45 of them fail with a rate of 3e-5.
        assert abs(absolute.mean() - normal - excess) < 5 * absolute.std() / n**0.5
