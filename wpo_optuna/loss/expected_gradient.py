"""Derivatives of the expected loss, compiled: the kernel's formulas run backwards.

Every function here is the adjoint of the one of the same name in
:mod:`wpo_optuna.loss.expected_kernel`: given the derivatives of the loss in that function's
results (``in_...``, the loss differentiated *in* that quantity), it adds those in its arguments.
Costs about three evaluations, whatever the number of coordinates.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wpo_optuna.loss import expected_kernel as forward
from wpo_optuna.loss.compiled import compiled
from wpo_optuna.loss.expected_error import mean_squared_error
from wpo_optuna.loss.expected_error_gradient import differentiate_mean_squared_error
from wpo_optuna.loss.expected_kernel import Drifting, Programmed, Work
from wpo_optuna.loss.expected_tables import DeviceTables, ExpectedTables, Places, Rule
from wpo_optuna.loss.expected_torch import SMALLEST_VARIANCE, SPAN_POINTS

FloatArray = NDArray[np.float64]


class Gradient(NamedTuple):
    """Derivatives in a strategy, and in what the kernel makes of it; shapes as there.

    Attributes:
        coefficients: ``(D,)``.
        curves: ``(D, K)``.
        nodes: in targets, mean and variance of the nodes.
        extremes: in those of the extremes.
        slope: in the slope of the reference read-out ``(Q,)``.
        by_target: in the factors of a node's targets ``(D, T, 2R)``.
        given: in the cumulants given the programmed weight, of one node ``(H, T, 4)``.
        moments: in the moments of the weights in time ``(Q, T, 5)``.
    """

    coefficients: FloatArray
    curves: FloatArray
    nodes: Programmed
    extremes: Programmed
    slope: FloatArray
    by_target: FloatArray
    given: FloatArray
    moments: FloatArray


@compiled
def expected_tnmse_and_gradient(
    coefficients: FloatArray, curves: FloatArray, tables: ExpectedTables
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Expected TNMSE of strategies and its derivatives.

    Args:
        coefficients: signed factor of each device in the weight, ``(n, D)``.
        curves: conductances in µS at the knots, ``(n, D, K)``.
        tables: tables of the tile.

    Returns:
        TNMSE ``(n,)``, its derivatives in the coefficients ``(n, D)`` and in the curves
        ``(n, D, K)``.
    """
    values = np.empty(len(curves))
    in_coefficients, in_curves = np.zeros(coefficients.shape), np.zeros(curves.shape)
    work = forward.allocate(curves.shape[1], tables)
    gradient = _allocate(curves.shape[1], curves.shape[2], tables)
    for n in range(len(curves)):
        values[n] = _differentiate(coefficients[n], curves[n], tables, work, gradient)
        in_coefficients[n] = gradient.coefficients
        in_curves[n] = gradient.curves
    return values, in_coefficients, in_curves


@compiled
def _allocate(n_devices: int, n_knots: int, tables: ExpectedTables) -> Gradient:
    n_nodes, n_extremes = len(tables.nodes.weights), len(tables.extremes.weights)
    _, n_times, n_factors = tables.devices.target.shape
    return Gradient(
        np.empty(n_devices),
        np.empty((n_devices, n_knots)),
        Programmed(np.empty((n_nodes, n_devices)), np.empty(n_nodes), np.empty(n_nodes)),
        Programmed(np.empty((n_extremes, n_devices)), np.empty(n_extremes), np.empty(n_extremes)),
        np.empty(n_nodes),
        np.empty((n_devices, n_times, n_factors)),
        np.empty((len(tables.programming.nodes), n_times, 4)),
        np.empty((n_nodes, n_times, 5)),
    )


@compiled
def _differentiate(
    a: FloatArray, curves: FloatArray, tables: ExpectedTables, work: Work, gradient: Gradient
) -> float:
    """Fills the gradient of one strategy and returns its value."""
    _clear(gradient)
    devices = tables.devices
    peak, peak_knot = forward.largest_at_knots(a, curves)
    max_weight_us = abs(peak)
    scale = tables.largest / max_weight_us
    forward.program(a, curves, scale, tables.nodes, devices, work.nodes)
    forward.program(a, curves, scale, tables.extremes, devices, work.extremes)
    counts = tables.extremes.shares
    span_mean, span_deviation = forward.largest_programmed(counts, work.extremes)

    value, in_span_mean, in_span_deviation, in_max_weight = 0.0, 0.0, 0.0, 0.0
    for k in range(len(tables.span.nodes)):
        span = span_mean + tables.span.nodes[k] * span_deviation
        rule = tables.programming
        forward.moments_in_time(a, curves, span, max_weight_us, devices, rule, work)
        given = tables.span.shares[k] * 100 / tables.normalisation**2
        value += given * mean_squared_error(tables, work)
        differentiate_mean_squared_error(given, tables, work, gradient)
        in_span, in_max = _moments_in_time(
            a, curves, span, max_weight_us, devices, rule, work, gradient
        )
        in_span_mean += in_span
        in_span_deviation += tables.span.nodes[k] * in_span
        in_max_weight += in_max

    _largest_programmed(
        in_span_mean, in_span_deviation, span_mean, span_deviation, counts,
        work.extremes, gradient.extremes,
    )  # fmt: skip
    in_scale = _program(a, scale, tables.nodes, devices, work.nodes, gradient.nodes, gradient)
    in_scale += _program(
        a, scale, tables.extremes, devices, work.extremes, gradient.extremes, gradient
    )
    in_max_weight -= in_scale * scale / max_weight_us
    in_peak = in_max_weight if peak >= 0 else -in_max_weight
    for d in range(len(a)):
        gradient.coefficients[d] += in_peak * curves[d, peak_knot]
        gradient.curves[d, peak_knot] += in_peak * a[d]
    return value


@compiled
def _clear(gradient: Gradient) -> None:
    """Sets everything that is added to, rather than filled, to zero."""
    gradient.coefficients[:] = 0
    gradient.curves[:] = 0
    gradient.nodes.targets[:] = 0
    gradient.nodes.mean[:] = 0
    gradient.nodes.variance[:] = 0
    gradient.extremes.targets[:] = 0
    gradient.extremes.mean[:] = 0
    gradient.extremes.variance[:] = 0


@compiled
def _moments_in_time(
    a: FloatArray,
    curves: FloatArray,
    span: float,
    max_weight_us: float,
    devices: DeviceTables,
    programming: Rule,
    work: Work,
    gradient: Gradient,
) -> tuple[float, float]:
    """Adds to the gradient; returns the derivatives in span and largest weight."""
    scale, drifting, nodes = span / max_weight_us, work.drifting, work.nodes
    in_span, in_scale = 0.0, 0.0
    for q in range(len(nodes.mean)):
        variance = max(nodes.variance[q], SMALLEST_VARIANCE)
        deviation = math.sqrt(variance)
        in_deviation = _mix(
            deviation, programming, work.given[q], work.moments[q], gradient.moments[q],
            gradient.given,
        )  # fmt: skip
        forward.factors_of_targets(nodes.targets[q], devices.target, devices.g_us, drifting)
        gradient.by_target[:] = 0
        for h in range(len(programming.nodes)):
            weight = nodes.mean[q] + deviation * programming.nodes[h]
            k, x = forward.knot_place(weight / span, curves.shape[1])
            in_place = 0.0
            for d in range(len(a)):
                g = curves[d, k] * (1 - x) + curves[d, k + 1] * x
                drifting.cells[d], drifting.places[d] = forward.locate(g, devices.g_us)
                in_g, of_scale = _given_programmed(
                    d, a, scale, devices, drifting, gradient.given[h], gradient
                )
                in_scale += of_scale
                gradient.curves[d, k] += in_g * (1 - x)
                gradient.curves[d, k + 1] += in_g * x
                in_place += in_g * (curves[d, k + 1] - curves[d, k])
            if abs(weight) < span:
                in_relative = in_place * (curves.shape[1] - 1) * 0.5
                gradient.nodes.mean[q] += in_relative / span
                in_deviation += programming.nodes[h] * in_relative / span
                in_span -= in_relative * weight / span**2
        if variance > SMALLEST_VARIANCE:
            gradient.nodes.variance[q] += in_deviation / (2 * deviation)
        _factors_of_targets(nodes.targets[q], devices, gradient.by_target, gradient.nodes, q)
    return in_span + in_scale / max_weight_us, -in_scale * scale / max_weight_us


@compiled
def _mix(
    deviation: float,
    programming: Rule,
    given: FloatArray,
    moments: FloatArray,
    in_moments: FloatArray,
    in_given: FloatArray,
) -> float:
    """Fills the derivatives in the cumulants; returns that in the deviation of the weight."""
    in_deviation = 0.0
    for t in range(given.shape[1]):
        mean, square, fourth = moments[t, 0], moments[t, 1], moments[t, 4]
        in_third = in_moments[t, 3]
        in_fourth = in_moments[t, 4] if fourth > 0 else 0.0
        in_variance = -6 * (square - mean**2) * in_fourth
        in_square = in_moments[t, 1] + in_variance
        in_mean = in_moments[t, 0] - 2 * mean * in_variance
        for h in range(given.shape[0]):
            d, v, c3 = given[h, t, 0] - mean, given[h, t, 1], given[h, t, 2]
            in_d = in_third * (3 * v + 3 * d**2)
            in_d += in_fourth * (4 * c3 + 12 * v * d + 4 * d**3)
            in_given[h, t, 0] = in_d
            in_mean -= programming.shares[h] * in_d
        for h in range(given.shape[0]):
            share, m, v = programming.shares[h], given[h, t, 0], given[h, t, 1]
            d = m - mean
            in_offset = programming.nodes[h] * in_moments[t, 2]
            in_deviation += share * m * in_offset
            in_given[h, t, 0] += in_mean + 2 * m * in_square + deviation * in_offset
            in_given[h, t, 0] *= share
            in_given[h, t, 1] = share * in_square
            in_given[h, t, 1] += share * (3 * d * in_third + (6 * v + 6 * d**2) * in_fourth)
            in_given[h, t, 2] = share * (in_third + 4 * d * in_fourth)
            in_given[h, t, 3] = share * in_fourth
    return in_deviation


@compiled
def _given_programmed(
    d: int,
    a: FloatArray,
    scale: float,
    devices: DeviceTables,
    drifting: Drifting,
    in_given: FloatArray,
    gradient: Gradient,
) -> tuple[float, float]:
    """Of one device: returns the derivatives in its present conductance and in the scale."""
    i, y = drifting.cells[d], drifting.places[d]
    present = devices.present
    n_terms = present.shape[2] // 2
    in_place, in_scale, in_coefficient = 0.0, 0.0, 0.0
    for t in range(present.shape[1]):
        conductance, excess = forward.device_moments(d, t, present, drifting)
        mean = conductance * a[d] * scale
        ratio = mean * excess
        in_mean = in_given[t, 0] + 2 * ratio * in_given[t, 1] + 6 * ratio**2 * in_given[t, 2]
        in_mean += 24 * ratio**3 * in_given[t, 3]
        in_excess = in_given[t, 1] + 4 * ratio * in_given[t, 2] + 18 * ratio**2 * in_given[t, 3]
        in_excess *= mean**2
        in_coefficient += in_mean * conductance * scale
        in_scale += in_mean * conductance * a[d]
        in_conductance = in_mean * a[d] * scale
        for r in range(2 * n_terms):
            given = in_conductance if r < n_terms else in_excess
            low, high = present[i, t, r], present[i + 1, t, r]
            gradient.by_target[d, t, r] += given * (low * (1 - y) + high * y)
            in_place += given * drifting.by_target[d, t, r] * (high - low)
    gradient.coefficients[d] += in_coefficient
    return in_place / (devices.g_us[i + 1] - devices.g_us[i]), in_scale


@compiled
def _factors_of_targets(
    targets: FloatArray,
    devices: DeviceTables,
    in_factors: FloatArray,
    in_nodes: Programmed,
    q: int,
) -> None:
    for d in range(len(targets)):
        i, _ = forward.locate(targets[d], devices.g_us)
        total = 0.0
        for t in range(in_factors.shape[1]):
            for r in range(in_factors.shape[2]):
                rise = devices.target[i + 1, t, r] - devices.target[i, t, r]
                total += in_factors[d, t, r] * rise
        in_nodes.targets[q, d] += total / (devices.g_us[i + 1] - devices.g_us[i])


@compiled
def _largest_programmed(
    in_mean: float,
    in_deviation: float,
    mean: float,
    deviation: float,
    counts: FloatArray,
    extremes: Programmed,
    in_extremes: Programmed,
) -> None:
    in_mean_square = in_deviation / (2 * deviation)
    in_mean -= in_deviation * mean / deviation
    lowest, step = forward.span_range(extremes)
    for k in range(SPAN_POINTS):
        x = lowest + k * step
        within = math.exp(forward.log_probability_within(x, counts, extremes))
        in_logarithm = -step * within * (in_mean + 2 * x * in_mean_square)
        if k == 0 or k == SPAN_POINTS - 1:
            in_logarithm *= 0.5
        for j in range(len(counts)):
            variance = max(extremes.variance[j], SMALLEST_VARIANCE)
            sigma, size = math.sqrt(variance), abs(extremes.mean[j])
            low, high = (x - size) / sigma, (x + size) / sigma
            of_low = forward.tabulated_log_ndtr(low)[1]
            of_high = forward.tabulated_log_ndtr(high)[1]
            given = in_logarithm * counts[j] / sigma
            sign = 1.0 if extremes.mean[j] >= 0 else -1.0
            in_extremes.mean[j] += given * sign * (of_high - of_low)
            if variance > SMALLEST_VARIANCE:
                in_extremes.variance[j] -= given * (of_low * low + of_high * high) / (2 * sigma)


@compiled
def _program(
    a: FloatArray,
    scale: float,
    places: Places,
    devices: DeviceTables,
    programmed: Programmed,
    given: Programmed,
    gradient: Gradient,
) -> float:
    """Adds to the derivatives in coefficients and curves; returns that in the scale."""
    table, in_scale = devices.programmed, 0.0
    for q in range(len(places.segments)):
        k, x = places.segments[q], places.fractions[q]
        in_mean, in_variance = given.mean[q] * scale, given.variance[q] * scale**2
        in_scale += given.mean[q] * programmed.mean[q] / scale
        in_scale += 2 * given.variance[q] * programmed.variance[q] / scale
        for d in range(len(a)):
            i, y = forward.locate(programmed.targets[q, d], devices.g_us)
            width = devices.g_us[i + 1] - devices.g_us[i]
            mean = table[i, 0] * (1 - y) + table[i + 1, 0] * y
            variance = table[i, 1] * (1 - y) + table[i + 1, 1] * y
            gradient.coefficients[d] += in_mean * mean + 2 * a[d] * in_variance * variance
            in_g = in_mean * a[d] * (table[i + 1, 0] - table[i, 0]) / width
            in_g += in_variance * a[d] ** 2 * (table[i + 1, 1] - table[i, 1]) / width
            in_g += given.targets[q, d]
            gradient.curves[d, k] += in_g * (1 - x)
            gradient.curves[d, k + 1] += in_g * x
    return in_scale
