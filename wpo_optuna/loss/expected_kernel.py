"""The expected loss, compiled: candidate by candidate, with all tables in the processor's cache.

The same formulas, in the same order, as :mod:`wpo_optuna.loss.expected_torch`, which explains
them; this module gives the value, :mod:`wpo_optuna.loss.expected_gradient` the derivatives. numba
compiles on first use and keeps the result on disk. Letters: Q nodes, D devices, K knots, H nodes of
the programmed weight, T times, J extremes, R terms.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr
from scipy.stats import norm

from wpo_optuna.loss.compiled import compiled
from wpo_optuna.loss.expected_error import mean_squared_error
from wpo_optuna.loss.expected_tables import (
    DeviceTables,
    ExpectedTables,
    Places,
    Rule,
)
from wpo_optuna.loss.expected_torch import (
    SMALLEST_VARIANCE,
    SPAN_ABOVE,
    SPAN_BELOW,
    SPAN_POINTS,
)

FloatArray = NDArray[np.float64]

# log Φ(z) and its derivative from _Z_LOW to _Z_HIGH; above both are 0.
_Z_LOW, _Z_HIGH, _Z_CELLS_PER_UNIT = -12, 8, 16
_Z = np.linspace(_Z_LOW, _Z_HIGH, (_Z_HIGH - _Z_LOW) * _Z_CELLS_PER_UNIT + 1)
_LOG_NDTR = np.stack([log_ndtr(_Z), np.exp(norm.logpdf(_Z) - log_ndtr(_Z))], axis=1)


class Programmed(NamedTuple):
    """What programming makes of N target weights.

    Attributes:
        targets: target conductances ``(N, D)`` in µS.
        mean: mean programmed weights ``(N,)``.
        variance: their variances ``(N,)``.
    """

    targets: FloatArray
    mean: FloatArray
    variance: FloatArray


class Drifting(NamedTuple):
    """The devices of one weight while they drift.

    Attributes:
        by_target: factors of their moments that depend on the target ``(D, T, 2R)``.
        cells: cell of the grid that each present conductance lies in ``(D,)``.
        places: place in that cell ``(D,)``.
    """

    by_target: FloatArray
    cells: NDArray[np.int64]
    places: FloatArray


class Work(NamedTuple):
    """Memory for one candidate, used again for the next.

    Attributes:
        nodes: the programmed nodes, ``N = Q``.
        extremes: the programmed extremes, ``N = J``.
        slope: slope of the reference read-out ``(Q,)``.
        drifting: the devices of a node.
        given: cumulants 1 to 4 of the weights in time, given the programmed weight
            ``(Q, H, T, 4)``.
        moments: E w_t, E w_t², Cov(ŵ, w_t), cumulants 3 and 4 of w_t ``(Q, T, 5)``.
    """

    nodes: Programmed
    extremes: Programmed
    slope: FloatArray
    drifting: Drifting
    given: FloatArray
    moments: FloatArray


@compiled
def expected_tnmse(
    coefficients: FloatArray, curves: FloatArray, tables: ExpectedTables
) -> FloatArray:
    """Expected TNMSE of strategies.

    Args:
        coefficients: signed factor of each device in the weight, ``(n, D)``.
        curves: conductances in µS at the knots, ``(n, D, K)``.
        tables: tables of the tile.

    Returns:
        TNMSE ``(n,)``; NaN where it is undefined.
    """
    values = np.empty(len(curves))
    work = allocate(curves.shape[1], tables)
    for n in range(len(curves)):
        a, g = coefficients[n], curves[n]
        max_weight_us = abs(largest_at_knots(a, g)[0])
        scale = tables.largest / max_weight_us
        program(a, g, scale, tables.nodes, tables.devices, work.nodes)
        program(a, g, scale, tables.extremes, tables.devices, work.extremes)
        span_mean, span_deviation = largest_programmed(tables.extremes.shares, work.extremes)
        total = 0.0
        for k in range(len(tables.span.nodes)):
            span = span_mean + tables.span.nodes[k] * span_deviation
            moments_in_time(a, g, span, max_weight_us, tables.devices, tables.programming, work)
            total += tables.span.shares[k] * mean_squared_error(tables, work)
        values[n] = total * 100 / tables.normalisation**2
    return values


@compiled
def allocate(n_devices: int, tables: ExpectedTables) -> Work:
    """Memory for strategies of so many devices."""
    n_nodes, n_extremes = len(tables.nodes.weights), len(tables.extremes.weights)
    _, n_times, n_factors = tables.devices.target.shape
    return Work(
        Programmed(np.empty((n_nodes, n_devices)), np.empty(n_nodes), np.empty(n_nodes)),
        Programmed(np.empty((n_extremes, n_devices)), np.empty(n_extremes), np.empty(n_extremes)),
        np.zeros(n_nodes),
        Drifting(
            np.empty((n_devices, n_times, n_factors)),
            np.empty(n_devices, np.int64),
            np.empty(n_devices),
        ),
        np.empty((n_nodes, len(tables.programming.nodes), n_times, 4)),
        np.empty((n_nodes, n_times, 5)),
    )


@compiled
def largest_at_knots(a: FloatArray, curves: FloatArray) -> tuple[float, int]:
    """The weight at a knot that is largest in size, in µS with its sign, and the knot."""
    largest, knot = 0.0, 0
    for k in range(curves.shape[1]):
        weight = 0.0
        for d in range(len(a)):
            weight += a[d] * curves[d, k]
        if abs(weight) > abs(largest):
            largest, knot = weight, k
    return largest, knot


@compiled
def program(
    a: FloatArray,
    curves: FloatArray,
    scale: float,
    places: Places,
    devices: DeviceTables,
    programmed: Programmed,
) -> None:
    """Target conductances, means and variances after programming; scale in weight per µS."""
    table = devices.programmed
    for q in range(len(places.segments)):
        k, x = places.segments[q], places.fractions[q]
        mean, variance = 0.0, 0.0
        for d in range(len(a)):
            g = curves[d, k] * (1 - x) + curves[d, k + 1] * x
            programmed.targets[q, d] = g
            i, y = locate(g, devices.g_us)
            mean += a[d] * (table[i, 0] * (1 - y) + table[i + 1, 0] * y)
            variance += a[d] ** 2 * (table[i, 1] * (1 - y) + table[i + 1, 1] * y)
        programmed.mean[q] = mean * scale
        programmed.variance[q] = variance * scale**2


@compiled
def locate(g: float, grid: FloatArray) -> tuple[int, float]:
    """Cell of the grid of conductances, and place in it from 0 to 1."""
    n_cells = len(grid) - 1
    relative = max((g - grid[0]) / (grid[n_cells] - grid[0]), 0.0)
    i = min(max(int(math.sqrt(relative) * n_cells), 0), n_cells - 1)
    return i, (g - grid[i]) / (grid[i + 1] - grid[i])


@compiled
def largest_programmed(counts: FloatArray, extremes: Programmed) -> tuple[float, float]:
    """Mean and standard deviation of m', the largest absolute programmed weight."""
    lowest, step = span_range(extremes)
    mean, mean_square = lowest, lowest**2 + step**2 / 6
    for k in range(SPAN_POINTS):
        x = lowest + k * step
        beyond = 1 - math.exp(log_probability_within(x, counts, extremes))
        if k == 0 or k == SPAN_POINTS - 1:
            beyond *= 0.5
        mean += step * beyond
        mean_square += 2 * step * beyond * x
    return mean, math.sqrt(max(mean_square - mean**2, SMALLEST_VARIANCE))


@compiled
def span_range(extremes: Programmed) -> tuple[float, float]:
    """Lowest place and step of the rule for the largest programmed weight."""
    lowest, highest = 0.0, 0.0
    for j in range(len(extremes.mean)):
        deviation = math.sqrt(max(extremes.variance[j], SMALLEST_VARIANCE))
        size = abs(extremes.mean[j])
        lowest = max(lowest, size - SPAN_BELOW * deviation)
        highest = max(highest, size + SPAN_ABOVE * deviation)
    return lowest, (highest - lowest) / (SPAN_POINTS - 1)


@compiled
def log_probability_within(x: float, counts: FloatArray, extremes: Programmed) -> float:
    """Logarithm of the probability that no programmed weight exceeds x in size."""
    logarithm = 0.0
    for j in range(len(counts)):
        deviation = math.sqrt(max(extremes.variance[j], SMALLEST_VARIANCE))
        size = abs(extremes.mean[j])
        if x - size < _Z_HIGH * deviation:
            within = tabulated_log_ndtr((x - size) / deviation)[0]
            logarithm += counts[j] * (within + tabulated_log_ndtr((x + size) / deviation)[0])
    return logarithm


@compiled
def tabulated_log_ndtr(z: float) -> tuple[float, float]:
    """log Φ(z) and its derivative, by cubic interpolation."""
    if z >= _Z_HIGH:
        return 0.0, 0.0
    if z <= _Z_LOW:
        return _LOG_NDTR[0, 0] - (z**2 - _Z_LOW**2) / 2, -z
    place = (z - _Z_LOW) * _Z_CELLS_PER_UNIT
    i = min(int(place), len(_LOG_NDTR) - 2)
    x, width = place - i, 1 / _Z_CELLS_PER_UNIT
    value, rise = _LOG_NDTR[i, 0], _LOG_NDTR[i + 1, 0] - _LOG_NDTR[i, 0]
    first, last = _LOG_NDTR[i, 1] * width, _LOG_NDTR[i + 1, 1] * width
    square, cube = 3 * rise - 2 * first - last, first + last - 2 * rise
    value += x * (first + x * (square + x * cube))
    return value, (first + x * (2 * square + 3 * x * cube)) / width


@compiled
def moments_in_time(
    a: FloatArray,
    curves: FloatArray,
    span: float,
    max_weight_us: float,
    devices: DeviceTables,
    programming: Rule,
    work: Work,
) -> None:
    """Moments of the weights in time at all nodes, given the span m' of the curves."""
    scale = span / max_weight_us
    drifting = work.drifting
    for q in range(len(work.nodes.mean)):
        factors_of_targets(work.nodes.targets[q], devices.target, devices.g_us, drifting)
        deviation = math.sqrt(max(work.nodes.variance[q], SMALLEST_VARIANCE))
        for h in range(len(programming.nodes)):
            weight = work.nodes.mean[q] + deviation * programming.nodes[h]
            k, x = knot_place(weight / span, curves.shape[1])
            for d in range(len(a)):
                g = curves[d, k] * (1 - x) + curves[d, k + 1] * x
                drifting.cells[d], drifting.places[d] = locate(g, devices.g_us)
            _given_programmed(a, scale, devices.present, drifting, work.given[q, h])
        _mix(deviation, programming, work.given[q], work.moments[q])


@compiled
def factors_of_targets(
    targets: FloatArray, table: FloatArray, grid: FloatArray, drifting: Drifting
) -> None:
    """Fills ``drifting.by_target`` for the target conductances (D,) of a node."""
    by_target = drifting.by_target
    for d in range(len(targets)):
        i, y = locate(targets[d], grid)
        for t in range(by_target.shape[1]):
            for r in range(by_target.shape[2]):
                by_target[d, t, r] = table[i, t, r] * (1 - y) + table[i + 1, t, r] * y


@compiled
def knot_place(relative: float, n_knots: int) -> tuple[int, float]:
    """Knot on the left of a weight relative to the span, and place between it and the next."""
    position = min(max((relative + 1) * ((n_knots - 1) * 0.5), 0.0), n_knots - 1.0)
    k = min(max(int(position), 0), n_knots - 2)
    return k, position - k


@compiled
def _given_programmed(
    a: FloatArray, scale: float, present: FloatArray, drifting: Drifting, given: FloatArray
) -> None:
    """Cumulants (T, 4) of the weights in time, given the programmed weight."""
    for t in range(given.shape[0]):
        c1, c2, c3, c4 = 0.0, 0.0, 0.0, 0.0
        for d in range(len(a)):
            mean, excess = device_moments(d, t, present, drifting)
            mean *= a[d] * scale
            ratio = mean * excess  # variance over mean
            power = mean * ratio
            c1, c2 = c1 + mean, c2 + power
            power *= ratio
            c3, c4 = c3 + power, c4 + power * ratio
        given[t, 0], given[t, 1], given[t, 2], given[t, 3] = c1, c2, 2 * c3, 6 * c4


@compiled
def device_moments(d: int, t: int, present: FloatArray, drifting: Drifting) -> tuple[float, float]:
    """Mean, and relative second moment less 1, of a device's conductance at a time."""
    i, y, target = drifting.cells[d], drifting.places[d], drifting.by_target
    n_terms = present.shape[2] // 2
    if n_terms == 1:
        mean = target[d, t, 0] * (present[i, t, 0] * (1 - y) + present[i + 1, t, 0] * y)
        second = target[d, t, 1] * (present[i, t, 1] * (1 - y) + present[i + 1, t, 1] * y)
        return mean, second - 1
    mean, second = 0.0, 0.0
    for r in range(n_terms):
        s = n_terms + r
        mean += target[d, t, r] * (present[i, t, r] * (1 - y) + present[i + 1, t, r] * y)
        second += target[d, t, s] * (present[i, t, s] * (1 - y) + present[i + 1, t, s] * y)
    return mean, second - 1


@compiled
def _mix(deviation: float, programming: Rule, given: FloatArray, moments: FloatArray) -> None:
    """Moments (T, 5) from the cumulants (H, T, 4) given the programmed weight."""
    for t in range(given.shape[1]):
        mean, square, covariance = 0.0, 0.0, 0.0
        for h in range(given.shape[0]):
            share, m = programming.shares[h], given[h, t, 0]
            mean += share * m
            square += share * (given[h, t, 1] + m**2)
            covariance += share * deviation * programming.nodes[h] * m
        third, fourth = 0.0, 0.0
        for h in range(given.shape[0]):
            share, d = programming.shares[h], given[h, t, 0] - mean
            v, c3, c4 = given[h, t, 1], given[h, t, 2], given[h, t, 3]
            third += share * (c3 + 3 * v * d + d**3)
            fourth += share * (c4 + 3 * v**2 + 4 * c3 * d + 6 * v * d**2 + d**4)
        moments[t, 0], moments[t, 1], moments[t, 2] = mean, square, covariance
        moments[t, 3] = third
        moments[t, 4] = max(fourth - 3 * (square - mean**2) ** 2, 0.0)
