"""The averaged drift read-out of one weight, compiled; used by the expected loss and its gradient.

See :mod:`wpo_optuna.loss.readout_table` and :mod:`wpo_optuna.loss.gamma_excess` for the tables.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from wpo_optuna.loss.compiled import compiled
from wpo_optuna.loss.expected_tables import ReadoutTables
from wpo_optuna.loss.expected_torch import SMALLEST_RELATIVE_CUMULANT, SMALLEST_VARIANCE
from wpo_optuna.loss.gamma_excess import (
    ASYMMETRY_POINTS,
    HALF_SCALE,
    SCALE_POINTS,
    Z_LARGEST,
    Z_POINTS,
)

FloatArray = NDArray[np.float64]


@compiled
def read(
    mean: float, variance: float, third: float, fourth: float, readout: ReadoutTables
) -> tuple[float, float, float]:
    """Expected read-out of a weight, its slope, and the variance of the read-out.

    Args:
        mean: mean of the weight.
        variance: its variance, with what input noise adds.
        third: its third cumulant.
        fourth: its fourth cumulant.
        readout: the tables.
    """
    size, shrunk = beyond_table(mean, variance, readout)
    i, j, x, y = place_of(mean * shrunk, variance * shrunk**2, readout)
    response = size * bilinear(readout.values, i, j, x, y, 0)
    slope = bilinear(readout.values, i, j, x, y, 1)
    second_moment = size**2 * bilinear(readout.values, i, j, x, y, 2)
    total = max(second_moment - mean**2, SMALLEST_VARIANCE)
    if fourth > SMALLEST_RELATIVE_CUMULANT * total**2:
        z, asymmetry, scale = shape_of(mean, total, third, fourth)
        if z < Z_LARGEST:
            response += math.sqrt(total) * excess(z, asymmetry, scale, readout.gamma_excess)[0]
    return response, slope, second_moment - response**2


@compiled
def slope_of(mean: float, variance: float, readout: ReadoutTables) -> float:
    """The slope alone, as :func:`read` gives it."""
    _, shrunk = beyond_table(mean, variance, readout)
    i, j, x, y = place_of(mean * shrunk, variance * shrunk**2, readout)
    return bilinear(readout.values, i, j, x, y, 1)


@compiled
def beyond_table(mean: float, variance: float, readout: ReadoutTables) -> tuple[float, float]:
    """How many times larger a weight is than what is tabulated, and its inverse.

    Both are 1 within the table.
    """
    if abs(mean) <= readout.largest_mean and variance <= readout.largest_deviation**2:
        return 1.0, 1.0
    deviation = math.sqrt(max(variance, SMALLEST_VARIANCE))
    size = max(abs(mean) / readout.largest_mean, deviation / readout.largest_deviation)
    return size, 1 / size


@compiled
def place_of(mean: float, variance: float, readout: ReadoutTables) -> tuple[int, int, float, float]:
    """Cell of the table for mean and variance, and place in it."""
    n_rows, n_columns = readout.values.shape[0] - 1, readout.values.shape[1] - 1
    position = (mean / readout.largest_mean + 1) * (n_rows * 0.5)
    i = min(max(int(position), 0), n_rows - 1)
    # Variances are tabulated at the fourth powers of whole numbers.
    fourth_power = max(variance, 0.0) * (n_columns**4 / readout.largest_deviation**2)
    j = min(max(int(math.sqrt(math.sqrt(fourth_power))), 0), n_columns - 1)
    return i, j, position - i, (fourth_power - float(j) ** 4) / _cell_height(j)


@compiled
def _cell_height(j: int) -> float:
    """Difference of the fourth powers of j and j + 1."""
    return 4.0 * j**3 + 6.0 * j**2 + 4.0 * j + 1.0


@compiled
def bilinear(table: FloatArray, i: int, j: int, x: float, y: float, channel: int) -> float:
    """Interpolates one channel of a table."""
    below = table[i, j, channel] * (1 - x) + table[i + 1, j, channel] * x
    above = table[i, j + 1, channel] * (1 - x) + table[i + 1, j + 1, channel] * x
    return below * (1 - y) + above * y


@compiled
def shape_of(
    mean: float, variance: float, third: float, fourth: float
) -> tuple[float, float, float]:
    """|μ|/√v, asymmetry and scale, as :mod:`wpo_optuna.loss.gamma_excess` defines them."""
    deviation, width = math.sqrt(variance), math.sqrt(fourth / 6)
    asymmetry = math.copysign(1.0, mean) * third / (2 * deviation * width)
    return abs(mean) / deviation, min(max(asymmetry, -1.0), 1.0), width / variance


@compiled
def excess(
    z: float, asymmetry: float, scale: float, table: FloatArray
) -> tuple[float, float, float, float]:
    """The tabulated excess for z below Z_LARGEST, and its derivatives in the three arguments."""
    per_z, per_asymmetry = (Z_POINTS - 1) / Z_LARGEST, (ASYMMETRY_POINTS - 1) / 2
    relative = scale / (scale + HALF_SCALE) * SCALE_POINTS
    slope = HALF_SCALE / (scale + HALF_SCALE) ** 2 * SCALE_POINTS
    if relative >= SCALE_POINTS - 1:
        relative, slope = SCALE_POINTS - 1.0, 0.0
    i = min(max(int(z * per_z), 0), Z_POINTS - 2)
    j = min(max(int((asymmetry + 1) * per_asymmetry), 0), ASYMMETRY_POINTS - 2)
    k = min(max(int(relative), 0), SCALE_POINTS - 2)
    x, y, w = z * per_z - i, (asymmetry + 1) * per_asymmetry - j, relative - k

    a, b = table[i, j], table[i, j + 1]
    c, d = table[i + 1, j], table[i + 1, j + 1]
    a0, b0 = a[k] * (1 - w) + a[k + 1] * w, b[k] * (1 - w) + b[k + 1] * w
    c0, d0 = c[k] * (1 - w) + c[k + 1] * w, d[k] * (1 - w) + d[k + 1] * w
    low, high = a0 * (1 - y) + b0 * y, c0 * (1 - y) + d0 * y
    in_scale = (1 - x) * ((a[k + 1] - a[k]) * (1 - y) + (b[k + 1] - b[k]) * y) + x * (
        (c[k + 1] - c[k]) * (1 - y) + (d[k + 1] - d[k]) * y
    )
    in_asymmetry = (b0 - a0) * (1 - x) + (d0 - c0) * x
    return (
        low * (1 - x) + high * x,
        (high - low) * per_z,
        in_asymmetry * per_asymmetry,
        in_scale * slope,
    )


@compiled
def read_adjoint(
    mean: float,
    variance: float,
    third: float,
    fourth: float,
    in_response: float,
    in_slope: float,
    in_spread: float,
    readout: ReadoutTables,
) -> tuple[float, float, float, float]:
    """Derivatives in the arguments of :func:`read`, given those in its three results."""
    size, shrunk = beyond_table(mean, variance, readout)
    i, j, x, y = place_of(mean * shrunk, variance * shrunk**2, readout)
    relative_response = bilinear(readout.values, i, j, x, y, 0)
    relative_second_moment = bilinear(readout.values, i, j, x, y, 2)
    response, second_moment = size * relative_response, size**2 * relative_second_moment
    total = max(second_moment - mean**2, SMALLEST_VARIANCE)
    in_mean, in_third, in_fourth, in_total = 0.0, 0.0, 0.0, 0.0
    if fourth > SMALLEST_RELATIVE_CUMULANT * total**2:
        z, asymmetry, scale = shape_of(mean, total, third, fourth)
        if z < Z_LARGEST:
            deviation = math.sqrt(total)
            value, per_z, per_asymmetry, per_scale = excess(
                z, asymmetry, scale, readout.gamma_excess
            )
            response += deviation * value
            in_response -= 2 * response * in_spread
            in_z = in_response * deviation * per_z
            in_scale = in_response * deviation * per_scale
            in_mean += math.copysign(1.0, mean) * in_z / deviation
            in_total += in_response * value / (2 * deviation)
            in_total -= in_z * z / (2 * total) + in_scale * scale / total
            in_fourth += in_scale * scale / (2 * fourth)
            if abs(asymmetry) < 1:
                in_asymmetry = in_response * deviation * per_asymmetry
                width = math.sqrt(fourth / 6)
                in_third += math.copysign(1.0, mean) * in_asymmetry / (2 * deviation * width)
                in_total -= in_asymmetry * asymmetry / (2 * total)
                in_fourth -= in_asymmetry * asymmetry / (2 * fourth)
        else:
            in_response -= 2 * response * in_spread
    else:
        in_response -= 2 * response * in_spread
    in_mean -= 2 * mean * in_total
    in_second = in_spread + in_total
    per_x, per_y = _gradient_in_cell(
        readout.values, i, j, x, y, size * in_response, in_slope, size**2 * in_second
    )
    per_mean = per_x * (readout.values.shape[0] - 1) * 0.5 / readout.largest_mean
    n_columns = readout.values.shape[1] - 1
    per_variance = per_y / _cell_height(j) * n_columns**4 / readout.largest_deviation**2
    in_mean += per_mean / size
    in_variance = per_variance / size**2
    if size > 1:
        in_size = in_response * relative_response + 2 * size * in_second * relative_second_moment
        in_size -= per_mean * mean / size**2 + 2 * per_variance * variance / size**3
        by_mean = abs(mean) / readout.largest_mean
        if by_mean**2 * readout.largest_deviation**2 >= variance:
            in_mean += math.copysign(1.0, mean) * in_size / readout.largest_mean
        else:
            in_variance += in_size / (2 * size * readout.largest_deviation**2)
    return in_mean, in_variance, in_third, in_fourth


@compiled
def _gradient_in_cell(
    table: FloatArray,
    i: int,
    j: int,
    x: float,
    y: float,
    in_response: float,
    in_slope: float,
    in_second: float,
) -> tuple[float, float]:
    """Derivatives in the place in a cell, given those in the three channels."""
    per_x, per_y = 0.0, 0.0
    for channel in range(3):
        a, b = table[i, j, channel], table[i, j + 1, channel]
        c, d = table[i + 1, j, channel], table[i + 1, j + 1, channel]
        given = in_response if channel == 0 else in_slope if channel == 1 else in_second
        per_x += given * ((c - a) * (1 - y) + (d - b) * y)
        per_y += given * ((b - a) * (1 - x) + (d - c) * x)
    return per_x, per_y
