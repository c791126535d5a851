"""The expected loss in torch: the formulas of docs/expected_loss.md, batched and differentiable.

This is the readable statement of what :mod:`wpo_optuna.loss.expected_kernel` computes, and what it
is tested against; the kernel is two orders of magnitude faster. Shapes: candidates n, devices D,
knots K, nodes Q, nodes of the programmed weight H, times T, terms R.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wpo_optuna.loss.expected_tables import ExpectedTables

# Places in the trapezoidal rule for the largest programmed weight, and how many standard
# deviations it reaches below and above the extremes.
SPAN_POINTS = 20
SPAN_BELOW, SPAN_ABOVE = 3.5, 5.5

# aihwkit's lower bound of a drift read-out.
SMALLEST_READOUT = 1e-4


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
    for node, share in zip(tables.span_nodes, tables.span_shares, strict=True):
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
        return _at_nodes(self.curves, self.tables.segments, self.tables.fractions)

    @cached_property
    def programmed(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the weight after programming at the nodes, (n, Q) each."""
        return self._programmed_from(self.targets)

    @cached_property
    def _span_moments(self) -> tuple[Tensor, Tensor]:
        tables = self.tables
        targets = _at_nodes(self.curves, tables.extreme_segments, tables.extreme_fractions)
        mean, variance = self._programmed_from(targets)
        return _moments_of_largest(mean, variance, torch.from_numpy(tables.counts))

    @property
    def span_mean(self) -> Tensor:
        """Mean of m', the largest absolute programmed weight, (n,)."""
        return self._span_moments[0]

    @property
    def span_deviation(self) -> Tensor:
        """Standard deviation of m', (n,)."""
        mean, mean_square = self._span_moments
        return (mean_square - mean**2).clamp(min=1e-30).sqrt()

    def _programmed_from(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        moments = _interpolated(self.tables.programmed, self.tables.g_us, targets)
        scale = (self.tables.largest / self.max_weight_us)[:, None]
        a = self.coefficients[:, :, None]
        mean = (a * moments[..., 0]).sum(dim=1) * scale
        return mean, (a**2 * moments[..., 1]).sum(dim=1) * scale**2


@dataclass
class _Moments:
    """Moments at the nodes, for the weights in time (n, Q, T).

    Attributes:
        mean: E w_t.
        mean_square: E w_t².
        covariance: Cov(ŵ, w_t).
    """

    mean: Tensor
    mean_square: Tensor
    covariance: Tensor
    third_cumulant: Tensor
    fourth_cumulant: Tensor

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
    reference, drifted = _read(strategies, moments)
    factor = reference.mean / drifted.mean
    error = _error_before_fluctuations(moments, factor, tables)
    return (error + _effect_of_fluctuations(moments, reference, drifted, tables)).mean(dim=1)


def _moments_in_time(strategies: _Strategies, span: Tensor) -> _Moments:
    tables = strategies.tables
    mean, variance = strategies.programmed
    deviation = variance.clamp(min=1e-30).sqrt()
    nodes = torch.from_numpy(tables.hermite_nodes)
    shares = torch.from_numpy(tables.hermite_shares)[:, None]
    programmed = mean[:, :, None] + deviation[:, :, None] * nodes

    present = _at_weights(strategies.curves, programmed / span[:, None, None])
    n_terms = tables.target.shape[1] // 2
    times = slice(0, tables.n_times)
    by_target = _interpolated(tables.target[..., times], tables.g_us, strategies.targets)
    by_present = _interpolated(tables.present[..., times], tables.g_us, present)
    terms = by_target[:, :, :, None] * by_present  # (n, D, Q, H, 2R, T)
    device_mean = terms[..., :n_terms, :].sum(dim=-2)
    excess = terms[..., n_terms:, :].sum(dim=-2) - 1
    device_variance = device_mean**2 * excess

    scale = (span / strategies.max_weight_us)[:, None, None, None]
    a = strategies.coefficients[:, :, None, None, None]
    given = (a * device_mean).sum(dim=1) * scale
    spread = (a**2 * device_variance).sum(dim=1) * scale**2
    offset = (deviation[:, :, None] * nodes)[..., None]
    mu = a * device_mean * scale[:, None]
    dv = a**2 * device_variance * scale[:, None] ** 2
    tt = mu * excess
    k3h = (2 * dv * tt).sum(dim=1)
    k4h = (6 * dv * tt**2).sum(dim=1)
    mm = (shares * given).sum(dim=2, keepdim=True)
    dl = given - mm
    k3 = (shares * (k3h + 3 * spread * dl + dl**3)).sum(dim=2)
    mu4 = (shares * (k4h + 3 * spread**2 + 4 * k3h * dl + 6 * spread * dl**2 + dl**4)).sum(dim=2)
    vv = (shares * (spread + dl**2)).sum(dim=2)
    k4 = (mu4 - 3 * vv**2).clamp(min=0)
    return _Moments(
        mean=(shares * given).sum(dim=2),
        mean_square=(shares * (spread + given**2)).sum(dim=2),
        covariance=(shares * offset * given).sum(dim=2),
        third_cumulant=k3, fourth_cumulant=k4,
    )


@dataclass
class _Readout:
    """A drift read-out: its mean over the nodes, and per node what makes it fluctuate.

    Attributes:
        mean: E r, (n, T) or (n, 1).
        slope: derivative of each node's expected read-out in its weight, (n, Q, T) or (n, Q, 1).
        variance: variance of each node's read-out, same shape.
    """

    mean: Tensor
    slope: Tensor
    variance: Tensor


def _read(strategies: _Strategies, moments: _Moments) -> tuple[_Readout, _Readout]:
    tables = strategies.tables
    drifted = _read_weights(moments.mean, moments.variance, moments.mean_square, tables, moments.third_cumulant, moments.fourth_cumulant)
    if tables.compensation.measures_reference:
        mean, variance = (x[:, :, None] for x in strategies.programmed)
        return _read_weights(mean, variance, mean**2 + variance, tables), drifted
    exact = torch.full_like(drifted.mean[:, :1], tables.compensation.exact_reference)
    nothing = torch.zeros_like(drifted.slope[:, :, :1])
    return _Readout(exact.clamp(min=SMALLEST_READOUT), nothing, nothing), drifted


def _read_weights(
    mean: Tensor, variance: Tensor, mean_square: Tensor, tables: ExpectedTables, k3=None, k4=None
) -> _Readout:
    shares = torch.from_numpy(tables.shares)[:, None]
    of_inputs = (shares * mean_square).sum(dim=1, keepdim=True)
    added = tables.readout_variance_per_square * of_inputs + tables.readout_added_variance
    values = _bilinear(mean, variance + added, tables)
    response, slope, second_moment = values.unbind(dim=-1)
    if k3 is not None:
        response = response + _excess(mean, (second_moment - mean**2).clamp(min=1e-12), k3, k4)
    return _Readout(
        mean=(shares * response).sum(dim=1).clamp(min=SMALLEST_READOUT),
        slope=slope,
        variance=second_moment - response**2,
    )


def _error_before_fluctuations(moments: _Moments, factor: Tensor, tables: ExpectedTables) -> Tensor:
    """E (α w_t - W)², (n, T), as if the factor α were its expectation."""
    shares, weights = _node_columns(tables)
    cross = (shares * weights * moments.mean).sum(dim=1)
    square = (shares * moments.mean_square).sum(dim=1)
    target_square = float(tables.shares @ tables.weights**2)
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

    # Covariance of the read-outs with w_t, and with its square.
    follows = reference.slope * moments.covariance / r0[:, None]
    follows = follows - drifted.slope * moments.variance / r[:, None]
    sensitivity = 2 * factor[:, None] ** 2 * moments.mean - factor[:, None] * weights
    correlated = (shares * sensitivity * follows).sum(dim=1)

    added = variance * factor**2 * square + 2 * bias * (factor**2 * square - factor * cross)
    return (added + 2 * correlated) / tables.compensation.group_size


def _node_columns(tables: ExpectedTables) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(tables.shares)[:, None], torch.from_numpy(tables.weights)[:, None]


def _at_nodes(curves: Tensor, segments: object, fractions: object) -> Tensor:
    """Curves (n, D, K) at fixed places, (n, D, N)."""
    left = torch.as_tensor(segments)
    part = torch.as_tensor(fractions)
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


def _interpolated(table: object, grid: object, g: Tensor) -> Tensor:
    """Table (G, ...) at conductances of any shape, (*g.shape, ...)."""
    values, knots = torch.as_tensor(table), torch.as_tensor(grid)
    n_grid = len(knots)
    low, high = float(knots[0]), float(knots[-1])
    relative = ((g.detach() - low) / (high - low)).clamp(min=0)
    left = (relative.sqrt() * (n_grid - 1)).floor().clamp(0, n_grid - 2).long()
    part = (g - knots[left]) / (knots[left + 1] - knots[left])
    part = part.reshape(*g.shape, *(1,) * (values.ndim - 1))
    return values[left] * (1 - part) + values[left + 1] * part


def _bilinear(mean: Tensor, variance: Tensor, tables: ExpectedTables) -> Tensor:
    """Read-out table at means and variances of any shape, (*shape, 3).

    Beyond the table, its outermost cells are continued.
    """
    values = torch.from_numpy(tables.readout)
    n_means, n_variances = values.shape[:2]
    largest = tables.readout_largest_mean
    position = (mean / largest + 1) * ((n_means - 1) / 2)
    row = position.detach().floor().clamp(0, n_means - 2).long()
    largest_deviation = tables.readout_largest_deviation
    relative = variance.detach().clamp(min=0).sqrt() / largest_deviation
    n_cells = n_variances - 1
    column = (relative.sqrt() * n_cells).floor().clamp(0, n_cells - 1).long()
    lower, upper = ((largest_deviation * ((column + k) / n_cells) ** 2) ** 2 for k in (0, 1))
    x = (position - row)[..., None]
    y = ((variance - lower) / (upper - lower))[..., None]
    below = values[row, column] * (1 - x) + values[row + 1, column] * x
    above = values[row, column + 1] * (1 - x) + values[row + 1, column + 1] * x
    return below * (1 - y) + above * y


def _moments_of_largest(mean: Tensor, variance: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square (n,) of the largest absolute value of normal variables.

    From the product of their distribution functions, by the trapezoidal rule.

    Args:
        mean: means (n, J).
        variance: variances (n, J).
        counts: how many variables share each mean and variance (J,).
    """
    deviation = variance.clamp(min=1e-30).sqrt()
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
    return first, lowest**2 + 2 * step * (beyond * x).sum(dim=1)


def _excess(mean, variance, k3, k4):
    from wpo_optuna.loss.gamma_excess import gamma_excess_table, HALF_SCALE, Z_LARGEST, Z_POINTS, ASYMMETRY_POINTS, SCALE_POINTS
    T = torch.tensor(gamma_excess_table())
    sd = variance.sqrt()
    z = (mean.abs() / sd).clamp(max=Z_LARGEST)
    sc = (k4 / 6).clamp(min=1e-30).sqrt() / variance
    asym = (torch.sign(mean) * k3 / sd**3 / (2 * sc)).clamp(-1, 1)
    p = [z / Z_LARGEST * (Z_POINTS - 1), (asym + 1) / 2 * (ASYMMETRY_POINTS - 1), (sc / (sc + HALF_SCALE) * SCALE_POINTS).clamp(max=SCALE_POINTS - 1)]
    i = [q.detach().floor().clamp(0, n - 2).long() for q, n in zip(p, T.shape)]
    f = [q - k for q, k in zip(p, i)]
    out = 0
    for a in (0, 1):
        for b in (0, 1):
            for c in (0, 1):
                w = (f[0] if a else 1 - f[0]) * (f[1] if b else 1 - f[1]) * (f[2] if c else 1 - f[2])
                out = out + w * T[i[0] + a, i[1] + b, i[2] + c]
    return sd * out
