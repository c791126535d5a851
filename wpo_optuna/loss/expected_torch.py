"""The expected loss in torch: the formulas of docs/expected_loss.md, batched and differentiable.

This is the readable statement of what :mod:`wpo_optuna.loss.expected_kernel` computes, and what it
is tested against; the kernel is two orders of magnitude faster. Shapes: candidates n, devices D,
knots K, nodes Q, nodes of the programmed weight H, times T, terms R.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from wpo_optuna.loss.expected_tables import ExpectedTables, Places, ReadoutTables
from wpo_optuna.loss.gamma_excess import (
    ASYMMETRY_POINTS,
    HALF_SCALE,
    SCALE_POINTS,
    Z_LARGEST,
    Z_POINTS,
)

# Places in the trapezoidal rule for the largest programmed weight, and how many standard
# deviations it reaches below and above the extremes.
SPAN_POINTS = 32
SPAN_BELOW, SPAN_ABOVE = 4.5, 6.0

# aihwkit's lower bound of a drift read-out.
SMALLEST_READOUT = 1e-4

# Below these, a variance counts as zero, and a distribution as normal.
SMALLEST_VARIANCE = 1e-30
SMALLEST_RELATIVE_CUMULANT = 1e-6


def expected_tnmse(coefficients: Tensor, curves: Tensor, tables: ExpectedTables) -> Tensor:
    """Expected TNMSE of strategies.

    Args:
        coefficients: signed factor of each device in the weight, ``(n, D)``.
        curves: conductances in µS at the knots, ``(n, D, K)``.
        tables: tables of the tile.

    Returns:
        TNMSE ``(n,)``, differentiable in the coefficients and curves.
    """
    strategies = _Strategies(coefficients, curves, tables)
    total = torch.zeros((), dtype=torch.float64)
    for node, share in zip(*tables.span, strict=True):
        span = strategies.span_mean + float(node) * strategies.span_deviation
        total = total + float(share) * _mean_squared_error(strategies, span)
    return total * (100 / tables.normalisation**2)


@dataclass
class _Strategies:
    """What programming makes of the strategies."""

    coefficients: Tensor
    curves: Tensor
    tables: ExpectedTables

    @cached_property
    def max_weight_us(self) -> Tensor:
        """s: the largest weight the curves reach at a knot, (n,) in µS."""
        return (self.coefficients[:, :, None] * self.curves).sum(dim=1).abs().amax(dim=1)

    @cached_property
    def targets(self) -> Tensor:
        """Target conductances at the nodes, (n, D, Q)."""
        return _at_nodes(self.curves, self.tables.nodes)

    @cached_property
    def programmed(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the weight after programming at the nodes, (n, Q) each."""
        return self._programmed_from(self.targets)

    @cached_property
    def _span_moments(self) -> tuple[Tensor, Tensor]:
        tables = self.tables
        targets = _at_nodes(self.curves, tables.extremes)
        mean, variance = self._programmed_from(targets)
        return _moments_of_largest(mean, variance, torch.from_numpy(tables.extremes.shares))

    @property
    def span_mean(self) -> Tensor:
        """Mean of m', the largest absolute programmed weight, (n,)."""
        return self._span_moments[0]

    @property
    def span_deviation(self) -> Tensor:
        """Standard deviation of m', (n,)."""
        mean, mean_square = self._span_moments
        return (mean_square - mean**2).clamp(min=SMALLEST_VARIANCE).sqrt()

    def _programmed_from(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        devices = self.tables.devices
        moments = _interpolated(devices.programmed, devices.g_us, targets)
        scale = (self.tables.largest / self.max_weight_us)[:, None]
        a = self.coefficients[:, :, None]
        mean = (a * moments[..., 0]).sum(dim=1) * scale
        return mean, (a**2 * moments[..., 1]).sum(dim=1) * scale**2


def _moments_of_largest(mean: Tensor, variance: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square (n,) of the largest absolute value of normal variables.

    From the product of their distribution functions, by the trapezoidal rule.

    Args:
        mean: means (n, J).
        variance: variances (n, J).
        counts: how many variables share each mean and variance (J,).
    """
    deviation = variance.clamp(min=SMALLEST_VARIANCE).sqrt()
    size = mean.abs()
    lowest = (size - SPAN_BELOW * deviation).amax(dim=1).clamp(min=0).detach()
    highest = (size + SPAN_ABOVE * deviation).amax(dim=1).detach()
    step = (highest - lowest) / (SPAN_POINTS - 1)
    x = lowest[:, None] + step[:, None] * torch.arange(SPAN_POINTS, dtype=torch.float64)
    within = sum(
        torch.special.log_ndtr((x[:, :, None] + sign * size[:, None]) / deviation[:, None])
        for sign in (-1.0, 1.0)
    )
    beyond = 1 - torch.exp((counts * within).sum(dim=2))
    ends = torch.ones(SPAN_POINTS, dtype=torch.float64)
    ends[0] = ends[-1] = 0.5
    beyond = beyond * ends
    first = lowest + step * beyond.sum(dim=1)
    # The integrand of the mean square has a slope of 2 at the lower end (Euler and Maclaurin).
    return first, lowest**2 + 2 * step * (beyond * x).sum(dim=1) + step**2 / 6


@dataclass
class _Moments:
    """Moments at the nodes, for the weights in time (n, Q, T).

    Attributes:
        mean: E w_t.
        mean_square: E w_t².
        covariance: Cov(ŵ, w_t).
        third: third cumulant of w_t.
        fourth: fourth cumulant of w_t.
    """

    mean: Tensor
    mean_square: Tensor
    covariance: Tensor
    third: Tensor
    fourth: Tensor

    @property
    def variance(self) -> Tensor:
        return self.mean_square - self.mean**2


def _mean_squared_error(strategies: _Strategies, span: Tensor) -> Tensor:
    """Mean squared error over all times and nodes (n,), given the span of the curves (n,)."""
    tables = strategies.tables
    moments = _moments_in_time(strategies, span)
    if not tables.compensation.is_on:
        compensated = torch.ones((), dtype=torch.float64)
        return _error_before_fluctuations(moments, compensated, tables).mean(dim=1)
    reference, drifted = _read_both(strategies, moments)
    factor = reference.mean / drifted.mean
    error = _error_before_fluctuations(moments, factor, tables)
    return (error + _effect_of_fluctuations(moments, reference, drifted, tables)).mean(dim=1)


def _moments_in_time(strategies: _Strategies, span: Tensor) -> _Moments:
    """Moments of the weights in time, averaged over the programmed weight."""
    mean, variance = strategies.programmed
    deviation = variance.clamp(min=SMALLEST_VARIANCE).sqrt()
    nodes = torch.from_numpy(strategies.tables.programming.nodes)
    shares = torch.from_numpy(strategies.tables.programming.shares)[:, None]
    programmed = mean[:, :, None] + deviation[:, :, None] * nodes
    c1, c2, c3, c4 = _cumulants_given(strategies, programmed, span)

    total = (shares * c1).sum(dim=2)
    square = (shares * (c2 + c1**2)).sum(dim=2)
    d = c1 - total[:, :, None]
    third = (shares * (c3 + 3 * c2 * d + d**3)).sum(dim=2)
    fourth = (shares * (c4 + 3 * c2**2 + 4 * c3 * d + 6 * c2 * d**2 + d**4)).sum(dim=2)
    offset = (deviation[:, :, None] * nodes)[..., None]
    return _Moments(
        mean=total,
        mean_square=square,
        covariance=(shares * offset * c1).sum(dim=2),
        third=third,
        fourth=(fourth - 3 * (square - total**2) ** 2).clamp(min=0),
    )


def _cumulants_given(
    strategies: _Strategies, programmed: Tensor, span: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First four cumulants of the weights in time (n, Q, H, T), given the programmed weights.

    Devices are independent then; for the third and fourth, they are gamma variables.
    """
    devices = strategies.tables.devices
    present = _at_weights(strategies.curves, programmed / span[:, None, None])
    by_target = _interpolated(devices.target, devices.g_us, strategies.targets)
    by_present = _interpolated(devices.present, devices.g_us, present)
    terms = by_target[:, :, :, None] * by_present  # (n, D, Q, H, T, 2R)
    n_terms = terms.shape[-1] // 2
    scale = (span / strategies.max_weight_us)[:, None] * strategies.coefficients
    mean = scale[:, :, None, None, None] * terms[..., :n_terms].sum(dim=-1)
    ratio = mean * (terms[..., n_terms:].sum(dim=-1) - 1)  # variance over mean
    return (
        mean.sum(dim=1),
        (mean * ratio).sum(dim=1),
        (2 * mean * ratio**2).sum(dim=1),
        (6 * mean * ratio**3).sum(dim=1),
    )


@dataclass
class _Readout:
    """A drift read-out: its mean over the nodes, and per node what makes it fluctuate.

    Attributes:
        mean: E r, (n, T) or (n, 1).
        slope: derivative of each node's expected read-out in its weight, (n, Q, T) or (n, Q, 1).
        variance: what each node contributes to the variance of r, times the number of read-outs
            that are averaged, same shape.
    """

    mean: Tensor
    slope: Tensor
    variance: Tensor


def _read_both(strategies: _Strategies, moments: _Moments) -> tuple[_Readout, _Readout]:
    """The reference read-out, and that of the weights in time."""
    tables = strategies.tables
    drifted = _read(moments, tables)
    if not tables.compensation.measures_reference:
        exact = torch.full_like(drifted.mean[:, :1], tables.compensation.exact_reference)
        nothing = torch.zeros_like(drifted.slope[:, :, :1])
        return _Readout(exact.clamp(min=SMALLEST_READOUT), nothing, nothing), drifted
    mean, variance = (moment[:, :, None] for moment in strategies.programmed)
    normal = torch.zeros_like(mean)
    return _read(_Moments(mean, mean**2 + variance, variance, normal, normal), tables), drifted


def _read(moments: _Moments, tables: ExpectedTables) -> _Readout:
    shares, _ = _node_columns(tables)
    of_inputs = (shares * moments.mean_square).sum(dim=1, keepdim=True)
    readout = tables.readout
    added = readout.variance_per_square * of_inputs + readout.added_variance
    values = _bilinear(moments.mean, moments.variance + added, readout)
    response, slope, second_moment = values.unbind(dim=-1)
    total = (second_moment - moments.mean**2).clamp(min=SMALLEST_VARIANCE)
    response = response + _gamma_excess(moments, total, readout)
    shared = (tables.compensation.n_columns - 1) * added * slope**2
    return _Readout(
        mean=(shares * response).sum(dim=1).clamp(min=SMALLEST_READOUT),
        slope=slope,
        variance=second_moment - response**2 + shared,
    )


def _error_before_fluctuations(moments: _Moments, factor: Tensor, tables: ExpectedTables) -> Tensor:
    """E (α w_t - W)², (n, T), as if the factor α were its expectation."""
    shares, weights = _node_columns(tables)
    cross = (shares * weights * moments.mean).sum(dim=1)
    square = (shares * moments.mean_square).sum(dim=1)
    target_square = float(tables.nodes.shares @ tables.nodes.weights**2)
    return factor**2 * square - 2 * factor * cross + target_square


def _effect_of_fluctuations(
    moments: _Moments, reference: _Readout, drifted: _Readout, tables: ExpectedTables
) -> Tensor:
    """What α fluctuating, and following the errors it compensates, adds to the error, (n, T)."""
    shares, weights = _node_columns(tables)
    r0, r = reference.mean, drifted.mean
    factor = r0 / r
    cross = (shares * weights * moments.mean).sum(dim=1)
    square = (shares * moments.mean_square).sum(dim=1)

    of_reference = (shares * reference.variance).sum(dim=1) / r0**2
    of_drifted = (shares * drifted.variance).sum(dim=1) / r**2
    common = shares * reference.slope * drifted.slope * moments.covariance
    of_both = common.sum(dim=1) / (r0 * r)
    variance = of_reference + of_drifted - 2 * of_both
    bias = of_drifted - of_both

    # Covariance of the relative read-outs with w_t; with its square, 2 E w_t times that.
    follows = reference.slope * moments.covariance / r0[:, None]
    follows = follows - drifted.slope * moments.variance / r[:, None]
    sensitivity = 2 * factor[:, None] ** 2 * moments.mean - factor[:, None] * weights
    correlated = (shares * sensitivity * follows).sum(dim=1)

    added = variance * factor**2 * square + 2 * bias * (factor**2 * square - factor * cross)
    return (added + 2 * correlated) / tables.compensation.group_size


def _node_columns(tables: ExpectedTables) -> tuple[Tensor, Tensor]:
    nodes = tables.nodes
    return torch.from_numpy(nodes.shares)[:, None], torch.from_numpy(nodes.weights)[:, None]


def _at_nodes(curves: Tensor, places: Places) -> Tensor:
    """Curves (n, D, K) at fixed places, (n, D, N)."""
    left, part = torch.from_numpy(places.segments), torch.from_numpy(places.fractions)
    return curves[:, :, left] * (1 - part) + curves[:, :, left + 1] * part


def _at_weights(curves: Tensor, relative: Tensor) -> Tensor:
    """Curves (n, D, K) at weights (n, Q, H) relative to the span, (n, D, Q, H)."""
    n, n_devices, n_knots = curves.shape
    position = ((relative + 1) * ((n_knots - 1) / 2)).clamp(0, n_knots - 1)
    left = position.detach().floor().clamp(0, n_knots - 2).long()
    part = (position - left).reshape(n, 1, -1)
    index = left.reshape(n, 1, -1).expand(-1, n_devices, -1)
    below, above = torch.gather(curves, 2, index), torch.gather(curves, 2, index + 1)
    return (below * (1 - part) + above * part).unflatten(2, relative.shape[1:])


def _interpolated(table: ArrayLike, grid: ArrayLike, g: Tensor) -> Tensor:
    """Table (G, ...) at conductances of any shape, (*g.shape, ...)."""
    values, knots = torch.as_tensor(table), torch.as_tensor(grid)
    n_cells = len(knots) - 1
    relative = ((g.detach() - knots[0]) / (knots[-1] - knots[0])).clamp(min=0)
    left = (relative.sqrt() * n_cells).floor().clamp(0, n_cells - 1).long()
    part = (g - knots[left]) / (knots[left + 1] - knots[left])
    part = part.reshape(*g.shape, *(1,) * (values.ndim - 1))
    return values[left] * (1 - part) + values[left + 1] * part


def _bilinear(mean: Tensor, variance: Tensor, readout: ReadoutTables) -> Tensor:
    """Read-out table at means and variances of any shape, (*shape, 3).

    Beyond the table, weights are so large that the read-out's own scale no longer counts: what is
    λ times as large is read λ times as large.
    """
    values = torch.from_numpy(readout.values)
    n_rows, n_columns = values.shape[0] - 1, values.shape[1] - 1
    deviation = variance.clamp(min=SMALLEST_VARIANCE).sqrt()
    excess = torch.maximum(
        mean.abs() / readout.largest_mean, deviation / readout.largest_deviation
    ).clamp(min=1)
    mean, variance = mean / excess, variance / excess**2
    position = (mean / readout.largest_mean + 1) * (n_rows / 2)
    row = position.detach().floor().clamp(0, n_rows - 1).long()
    largest = readout.largest_deviation
    relative = variance.detach().clamp(min=0).sqrt() / largest
    column = (relative.sqrt() * n_columns).floor().clamp(0, n_columns - 1).long()
    lower, upper = ((largest * ((column + k) / n_columns) ** 2) ** 2 for k in (0, 1))
    x = (position - row)[..., None]
    y = ((variance - lower) / (upper - lower))[..., None]
    below = values[row, column] * (1 - x) + values[row + 1, column] * x
    above = values[row, column + 1] * (1 - x) + values[row + 1, column + 1] * x
    response, slope, second_moment = (below * (1 - y) + above * y).unbind(dim=-1)
    return torch.stack([excess * response, slope, excess**2 * second_moment], dim=-1)


def _gamma_excess(moments: _Moments, variance: Tensor, readout: ReadoutTables) -> Tensor:
    """What the read-out of a skewed, peaked weight has more than a normal one's.

    Args:
        moments: of the weights.
        variance: of the outputs, noise of the read-out included.
        readout: holds the table of the excess.
    """
    is_normal = moments.fourth <= SMALLEST_RELATIVE_CUMULANT * variance**2
    fourth = torch.where(is_normal, torch.ones_like(variance), moments.fourth)
    deviation = variance.sqrt()
    z = moments.mean.abs() / deviation
    widths = (fourth / 6).sqrt()
    asymmetry = moments.mean.sign() * moments.third / (2 * deviation * widths)
    scale = widths / variance

    values = torch.from_numpy(readout.gamma_excess)
    positions = (
        (z / Z_LARGEST).clamp(max=1) * (Z_POINTS - 1),
        (asymmetry.clamp(-1, 1) + 1) * ((ASYMMETRY_POINTS - 1) / 2),
        (scale / (scale + HALF_SCALE) * SCALE_POINTS).clamp(max=SCALE_POINTS - 1),
    )
    cells = [
        p.detach().nan_to_num().floor().clamp(0, n - 2).long()
        for p, n in zip(positions, values.shape, strict=True)
    ]
    x, y, w = (p - c for p, c in zip(positions, cells, strict=True))
    i, j, k = cells
    total = torch.zeros_like(z)
    for p in (0, 1):
        for q in (0, 1):
            weight = (x if p else 1 - x) * (y if q else 1 - y)
            low, high = values[i + p, j + q, k], values[i + p, j + q, k + 1]
            total = total + weight * (low * (1 - w) + high * w)
    return torch.where(is_normal, torch.zeros_like(total), deviation * total)
