"""What drift compensation reads from a weight on average, tabulated once from the forward pass.

Drift compensation averages |y|, where y is the tile's answer to a unit vector: the weight, with the
noise of the read-out, rounded by the converter. A weight that is itself normally distributed, with
mean μ and variance v, is read as

    response(μ, v) = E|y|,   slope(μ, v) = E d|y|/dw,   second_moment(μ, v) = E y²,

tabulated over μ and v. The table for v = 0 is a quasi-Monte Carlo average over the forward pass
itself (:class:`~wpo_optuna.loss.readout.AnalogReadout`); the others are its convolutions with
normal distributions. Noise of equal variance in place of the read-out would not do: where the
converter's step is not small against the weights, it is wrong by 5 % of the loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from aihwkit.simulator.parameters.enums import WeightNoiseType
from aihwkit.simulator.parameters.io import IOParameters
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from scipy.stats import norm, qmc
from torch import Tensor

from wpo_optuna.loss.noise import Key
from wpo_optuna.loss.readout import AnalogReadout

FloatArray = NDArray[np.float64]

# The range of the table, in units of the largest absolute weight of the test matrix; beyond it,
# the outermost cells are continued.
_LARGEST_MEAN = 1.5
_LARGEST_DEVIATION = 0.6

# Its resolution, in units of the mean absolute weight, and the most points it takes.
_MEAN_STEP = 1 / 16
_SMALLEST_DEVIATION = 1 / 64
_MOST_MEANS = 4097
_MOST_DEVIATIONS = 64
MOST_ENTRIES = _MOST_MEANS * _MOST_DEVIATIONS

# How many standard deviations of the normal distributions are taken into account.
_REACH = 4.5
_LOG2_SAMPLES = 10
_COORDINATES = 16


@dataclass(frozen=True)
class ReadoutTable:
    """The averaged read-out of normally distributed weights; bilinear in mean and variance.

    Attributes:
        largest_mean: means are tabulated from -largest_mean to largest_mean (unitless).
        largest_deviation: the j-th of V variances belongs to the standard deviation
            largest_deviation (j/(V-1))^2.
        values: response, slope and second moment ``(M, V, 3)``.
        variance_per_square: input noise adds to the variance at the output this multiple of the
            mean square of the tile's weights ...
        added_variance: ... and, by way of the weight noise, this.
    """

    largest_mean: float
    largest_deviation: float
    values: FloatArray
    variance_per_square: float
    added_variance: float


def tabulate_readout(
    io: IOParameters, largest_weight: float, mean_absolute: float, n_rows: int
) -> ReadoutTable:
    """Samples the read-out of the unit vectors.

    Args:
        io: settings of the forward pass.
        largest_weight: largest absolute weight of the test matrix, which sets the table's range.
        mean_absolute: mean absolute weight of the test matrix.
        n_rows: inputs of the tile.

    Raises:
        InvalidArgument: the forward pass couples the weights of the tile (IR drop and the like).
    """
    half = min(
        math.ceil(_LARGEST_MEAN / _MEAN_STEP * largest_weight / mean_absolute), _MOST_MEANS // 2
    )
    mean_step = _LARGEST_MEAN * largest_weight / half
    deviations = _deviations(largest_weight, mean_absolute)
    margin = math.ceil(_REACH * deviations[-1] / mean_step) + 2
    response, second_moment = _read(io, mean_step * np.arange(-half - margin, half + margin + 1))
    columns = []
    for deviation in deviations:
        kernel = _normal_weights(deviation / mean_step)
        smooth = fftconvolve(np.stack([response, second_moment]), kernel[None], "same", axes=1)
        slope = np.gradient(smooth[0], mean_step)
        columns.append(np.stack([smooth[0], slope, smooth[1]], axis=1)[margin:-margin])
    return ReadoutTable(
        largest_mean=_LARGEST_MEAN * largest_weight,
        largest_deviation=float(deviations[-1]),
        values=np.ascontiguousarray(np.stack(columns, axis=1)),
        variance_per_square=n_rows * io.inp_noise**2,
        added_variance=n_rows * io.inp_noise**2 * _weight_noise_variance(io, mean_absolute),
    )


def _deviations(largest_weight: float, mean_absolute: float) -> FloatArray:
    """Standard deviations (V,), denser towards 0."""
    largest = _LARGEST_DEVIATION * largest_weight
    n_cells = math.ceil((largest / (_SMALLEST_DEVIATION * mean_absolute)) ** 0.5)
    return largest * np.linspace(0, 1, min(n_cells + 1, _MOST_DEVIATIONS)) ** 2


def _normal_weights(deviation: float) -> FloatArray:
    """Probabilities of a normal distribution on the integers, by cells, adding up to 1."""
    if deviation == 0:
        return np.ones(1)
    reach = math.ceil(_REACH * deviation)
    edges = np.arange(-reach, reach + 2) - 0.5
    # Cells add 1/12 to the variance of what they are taken from.
    narrowed = np.sqrt(max(deviation**2 - 1 / 12, 0.0625))
    weights = np.diff(norm.cdf(edges, scale=narrowed))
    return weights / weights.sum()


def _weight_noise_variance(io: IOParameters, mean_absolute: float) -> float:
    """Variance of the weight noise at an output, for one input of unit strength."""
    if io.w_noise <= 0 or io.w_noise_type == WeightNoiseType.NONE:
        return 0.0
    if io.w_noise_type == WeightNoiseType.ADDITIVE_CONSTANT:
        return io.w_noise**2
    return io.w_noise**2 * mean_absolute


def _read(io: IOParameters, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean of |y| and of y² for each of the weights (N,)."""
    readout = AnalogReadout(io)
    # Input noise, which mixes the weights of a tile, is accounted for as added variance.
    readout = AnalogReadout(replace(io, inp_noise=0.0)) if io.inp_noise > 0 else readout
    noise = _SpreadNoise(2**_LOG2_SAMPLES)
    # One sample per input, so that bound management repeats each sample alone.
    tiles = torch.from_numpy(weights).to(torch.float32)[:, None, None]
    tiles = tiles.expand(-1, 1, noise.n_samples).contiguous()
    outputs = readout.outputs(tiles, noise, (1,)).double()
    return outputs.abs().mean(dim=(1, 2)).numpy(), (outputs**2).mean(dim=(1, 2)).numpy()


class _SpreadNoise:
    """Stands in for random numbers, with one coordinate of a Sobol sequence per key."""

    def __init__(self, n_samples: int) -> None:
        self.n_samples = n_samples
        points = qmc.Sobol(_COORDINATES, rng=0).random(n_samples)
        normal = norm.ppf(np.clip(points, 0.5 / n_samples, 1 - 0.5 / n_samples))
        self._normal = torch.from_numpy((normal - normal.mean(0)) / normal.std(0)).float()
        self._coordinates: dict[Key, int] = {}

    def normal(self, key: Key, shape: tuple[int, ...], device: torch.device) -> Tensor:
        coordinate = self._coordinates.setdefault(key, len(self._coordinates) % _COORDINATES)
        return self._normal[:, coordinate].clone().reshape(shape)
