"""What drift compensation reads from a weight on average, tabulated once from the forward pass.

Drift compensation averages |y|, where y is the tile's answer to a unit vector: the weight, with the
noise of the read-out, rounded by the converter. A weight that is itself normally distributed, with
mean μ and variance v, is read as

    response(μ, v) = E|y|,   slope(μ, v) = E d|y|/dw,   second_moment(μ, v) = E y²,

tabulated over μ and v. The table for v = 0 is a quasi-Monte Carlo average over the forward pass
itself (:class:`~wpo_optuna.loss.readout.AnalogReadout`); the others are its convolutions with
normal distributions. Noise of equal variance in place of the read-out would not do: where the
converter's step is not small against the weights, it is wrong by 5 % of the loss.

Weights in time are not normal, however: see :func:`gamma_excess_table`.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from aihwkit.simulator.parameters.enums import WeightNoiseType
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from scipy.stats import norm
from torch import Tensor

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.expected.low_discrepancy import LowDiscrepancyNoise
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
_MOST_ENTRIES = _MOST_MEANS * _MOST_DEVIATIONS

# How many standard deviations of the normal distributions are taken into account.
_REACH = 4.5
_SAMPLES = 1024

# The axes of the gamma variables' table: |μ|/√v from 0 to Z_LARGEST; asymmetry from -1 to 1; the
# common scale s (kurtosis = 6 s²) as s/(s + HALF_SCALE), by steps of 1/_SCALES from 0.
Z_LARGEST = 8.0
_PLACES = 41
_ASYMMETRIES = 9
_SCALES = 13
HALF_SCALE = 0.7

_LARGEST_FREQUENCY = 3e3
_FREQUENCIES = 2000


class ReadoutTable(NamedTuple):
    """The averaged read-out of normally distributed weights; bilinear in mean and variance.

    Attributes:
        response, slope, second_moment: at M means and V variances, axes in one, each filled up to
            ``(262208,)`` as JAX compiles anew for each shape.
        mean_cells, variance_cells: M - 1 and V - 1.
        largest_mean: means are tabulated from -largest_mean to largest_mean (unitless).
        largest_deviation: the j-th of V variances belongs to the standard deviation
            largest_deviation (j/(V-1))^2.
        variance_per_square: input noise adds to the variance at the output this multiple of the
            mean square of the tile's weights ...
        added_variance: ... and, by way of the weight noise, this.
    """

    response: FloatArray
    slope: FloatArray
    second_moment: FloatArray
    mean_cells: np.int32
    variance_cells: np.int32
    largest_mean: np.float64
    largest_deviation: np.float64
    variance_per_square: np.float64
    added_variance: np.float64


def tabulate_readout(readout: AnalogReadout, matrix: FloatArray) -> ReadoutTable:
    """Samples the read-out of the unit vectors.

    Args:
        readout: the read-out.
        matrix: the test matrix ``(rows, columns)``, unitless, which sets the table's range.

    Raises:
        InvalidArgument: bound management couples the weights of the tile.
    """
    io = readout.io
    sizes = np.abs(matrix.astype(np.float64))
    n_rows, largest_weight, mean_absolute = len(matrix), float(sizes.max()), float(sizes.mean())
    if readout.may_repeat_all(_LARGEST_MEAN * largest_weight):
        raise InvalidArgument(
            f"rpu_config.forward has out_bound = {io.out_bound}, which single weights, up to "
            f"{largest_weight:.3g}, and their noise can exceed: the torch tile then repeats all "
            'inputs, which the expected engine cannot foresee: use the engine "montecarlo".'
        )
    half = min(
        math.ceil(_LARGEST_MEAN / _MEAN_STEP * largest_weight / mean_absolute), _MOST_MEANS // 2
    )
    mean_step = _LARGEST_MEAN * largest_weight / half
    deviations = _deviations(largest_weight, mean_absolute)
    margin = math.ceil(_REACH * deviations[-1] / mean_step) + 2
    means = mean_step * np.arange(-half - margin, half + margin + 1)
    response, second_moment = _read(readout, n_rows, means)
    columns = []
    for deviation in deviations:
        kernel = _normal_weights(deviation / mean_step)
        smooth = fftconvolve(np.stack([response, second_moment]), kernel[None], "same", axes=1)
        slope = np.gradient(smooth[0], mean_step)
        columns.append(np.stack([smooth[0], slope, smooth[1]])[:, margin:-margin])
    values = np.stack(columns, axis=2).reshape(3, -1)
    values = np.pad(values, [(0, 0), (0, _MOST_ENTRIES - values.shape[1])])
    # Input noise is weighted with the weights, and their noise, of all rows.
    variance_per_square = n_rows * io.inp_noise**2
    is_constant = io.w_noise_type == WeightNoiseType.ADDITIVE_CONSTANT
    has_weight_noise = io.w_noise > 0 and io.w_noise_type != WeightNoiseType.NONE
    weight_noise = io.w_noise**2 * (1.0 if is_constant else mean_absolute) * has_weight_noise
    return ReadoutTable(
        response=values[0],
        slope=values[1],
        second_moment=values[2],
        mean_cells=np.int32(2 * half),
        variance_cells=np.int32(len(deviations) - 1),
        largest_mean=np.float64(_LARGEST_MEAN * largest_weight),
        largest_deviation=deviations[-1],
        variance_per_square=np.float64(variance_per_square),
        added_variance=np.float64(variance_per_square * weight_noise),
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


def _read(
    readout: AnalogReadout, n_rows: int, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Mean of |y| and of y² for each of the weights (N,)."""
    # Input noise, which mixes the weights of a tile, is accounted for as added variance. IR drop
    # depends on the row: the samples are spread over those of a tile with as long wires.
    readout = readout.with_settings(
        inp_noise=0.0, ir_drop_g_ratio=readout.io.ir_drop_g_ratio * _SAMPLES / n_rows
    )
    # One sample per input, so that bound management repeats each sample alone.
    tiles = torch.from_numpy(weights).to(torch.float32)[:, None, None]
    tiles = tiles.expand(-1, 1, _SAMPLES).contiguous()
    with LowDiscrepancyNoise(_SAMPLES):
        outputs = readout.outputs(tiles, _SpreadNoise(), (1,)).double()
    return outputs.abs().mean(dim=(1, 2)).numpy(), (outputs**2).mean(dim=(1, 2)).numpy()


class _SpreadNoise:
    """A read-out's random numbers, from torch: each key comes but once."""

    def normal(self, key: Key, shape: tuple[int, ...], device: torch.device) -> Tensor:
        return torch.randn(_SAMPLES, device=device).reshape(shape)


@cache
def gamma_excess_table() -> FloatArray:
    """How much E|w| of a difference of positive quantities departs from that of a normal variable.

    docs/expected_loss.md says why a weight in time is one, and what cumulants it has. Of the
    variables with these, the difference of two gamma variables of one common scale is tabulated
    here (variance-gamma distribution; Madan, Carr and Chang, 1998):

        E|w| = E|N(μ, v)| + √v excess(μ/√v, skewness, kurtosis).

    Returns:
        The excess on its grid, ``(41, 9, 13)``; not to be changed.
        The asymmetry is the skewness over the largest one that the kurtosis admits, 2s, and
        positive where the tail is on the side of μ.
    """
    z = np.linspace(0, Z_LARGEST, _PLACES)
    asymmetries = np.linspace(-1, 1, _ASYMMETRIES)
    relative = np.arange(_SCALES) / _SCALES
    scales = HALF_SCALE * relative / (1 - relative)
    u, du = _frequencies()
    phases = np.exp(1j * np.outer(u, z))
    table = np.zeros((_PLACES, _ASYMMETRIES, _SCALES))
    for column, scale in enumerate(scales[1:], start=1):
        for row, asymmetry in enumerate(asymmetries):
            missing = np.exp(-(u**2) / 2) - _characteristic_function(u, asymmetry, scale)
            integrand = (missing * du / u**2)[:, None] * phases
            # A plain sum: a product of matrices would depend on the number of threads.
            table[:, row, column] = 2 / np.pi * integrand.sum(axis=0).real
    # Continuous where it ends.
    table[-1] = 0.0
    return table


def _frequencies() -> tuple[FloatArray, FloatArray]:
    """Nodes and weights for integrals over all positive frequencies: even steps of log(1 + u)."""
    steps = np.linspace(0, np.log1p(_LARGEST_FREQUENCY), _FREQUENCIES + 1)
    middle = (steps[1:] + steps[:-1]) / 2
    return np.expm1(middle), np.diff(np.expm1(steps))


def _characteristic_function(
    u: FloatArray, asymmetry: float, scale: float
) -> NDArray[np.complex128]:
    """That of scale (G⁺ - G⁻), with mean 0 and variance 1, where G± are gamma variables."""
    positive, negative = (0.5 * (1 + sign * asymmetry) / scale**2 for sign in (1, -1))
    mean = scale * (positive - negative)
    logarithm = -positive * np.log1p(-1j * scale * u) - negative * np.log1p(1j * scale * u)
    return np.exp(logarithm - 1j * u * mean)
