"""The expected loss, stated once: the formulas of docs/expected_loss.md in JAX.

Shapes: devices D, knots K, nodes Q of the target weight and H of the programmed weight, entries J
for the largest programmed weight, times T, terms R, cells C of a table. Strategies n come last, so
that each is a lane of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import stop_gradient
from jax.typing import ArrayLike
from numpy.polynomial import Chebyshev, Polynomial
from scipy.special import erfcx

from wpo_optuna.loss.expected.device_moments import DeviceMoments
from wpo_optuna.loss.expected.readout_table import (
    HALF_SCALE,
    Z_LARGEST,
    ReadoutTable,
    gamma_excess_table,
)
from wpo_optuna.loss.expected.weight_nodes import WeightNodes

# Nodes for the weight after programming.
HERMITE_NODES = 3

# Places in the trapezoidal rule for the largest programmed weight, and how many standard
# deviations it reaches below and above the extremes.
SPAN_POINTS = 24
SPAN_BELOW, SPAN_ABOVE = 4.5, 6.0

# aihwkit's lower bound of a drift read-out.
SMALLEST_READOUT = 1e-4

# Below these, a variance counts as zero, and a distribution as normal.
SMALLEST_VARIANCE = 1e-30
SMALLEST_RELATIVE_CUMULANT = 1e-6

# A cell of a table, and the place in it from 0 to 1.
Cells = tuple[Array, Array]


class Kind(NamedTuple):
    """Which drift compensation there is; each kind is compiled for itself.

    Attributes:
        compensates: whether there is any; if not, the factor α is 1.
        reads_reference: whether the reference is read through the tile after programming;
            otherwise it is exact.
    """

    compensates: bool
    reads_reference: bool


class Tables(NamedTuple):
    """What the expected loss of one tile is computed from, beside the strategy.

    Attributes:
        nodes: the tile's target weights.
        devices: moments of a single device.
        readout: the averaged read-out.
        scale: what the tile's mean square error counts in the TNMSE.
        n_rows, n_columns: read-outs that are averaged, a tile's or those of a single column.
    """

    nodes: WeightNodes
    devices: DeviceMoments
    readout: ReadoutTable
    scale: np.float64
    n_rows: np.float64
    n_columns: np.float64


class Programmed(NamedTuple):
    """Strategies after programming.

    Attributes:
        scale: signed factor of each device over the largest weight in µS ``(D, n)``.
        curves: conductances in µS at the knots ``(D, K, n)``.
        targets: cells of the target conductances ``(D, Q, n)``.
        mean, variance: of the programmed weight ``(Q, n)``.
    """

    scale: Array
    curves: Array
    targets: Cells
    mean: Array
    variance: Array


class Readout(NamedTuple):
    """A drift read-out: mean, variance of a single one ``(n,)``; slope at the nodes ``(Q, n)``."""

    mean: Array
    variance: Array
    slope: Array


class Moments(NamedTuple):
    """Moments of the weights at a time ``(Q, n)``: E w, E w², Cov(ŵ, w), two cumulants."""

    mean: Array
    square: Array
    covariance: Array
    third: Array
    fourth: Array


def expected_tnmse(a: Array, g: Array, t: Tables, kind: Kind) -> Array:
    """What one tile adds to the TNMSE ``(n,)`` of strategies.

    Args:
        a: signed factor of each device in the weight ``(D, n)``.
        g: conductances in µS at the knots ``(D, K, n)``.
        t: tables of the tile.
        kind: which drift compensation there is.
    """
    nodes = t.nodes
    strategies, span, deviation = programmed_strategies(a, g, t)
    reference = reference_readout(strategies, t, kind)
    # Drift compensation makes up for a span that is wide or narrow by chance.
    error = sum(
        share * error_given_span(strategies, span + node * deviation, reference, t, kind)
        for node, share in hermite_rule(1 if kind.compensates else 2)
    )
    return (error + (nodes.shares * nodes.weights**2).sum()) * t.scale


def programmed_strategies(a: Array, g: Array, t: Tables) -> tuple[Programmed, Array, Array]:
    """Strategies after programming; mean and standard deviation ``(n,)`` of m'."""
    scale = a / jnp.abs((a[:, None] * g).sum(0)).max(0)
    targets, extremes = target_cells(g, t.nodes.weights, t), target_cells(g, t.nodes.extremes, t)
    programmed = after_programming(scale, extremes, t)
    return (
        Programmed(scale, g, targets, *after_programming(scale, targets, t)),
        *largest_programmed(*programmed, t.nodes.counts),
    )


def target_cells(g: Array, weights: ArrayLike, t: Tables) -> Cells:
    """Cells of the conductances ``(D, N, n)`` that target weights ``(N,)`` become."""
    shares = passed(jnp.asarray(weights) / t.nodes.largest, t)
    targets = g[:, :1] + jnp.einsum("dkn,kq->dqn", jnp.diff(g, axis=1), shares)
    return cells_of(targets, t.devices)


def passed(u: Array, t: Tables) -> Array:
    """Share of each piece between knots that lies below u, ``(K - 1, *u.shape)``."""
    knots = jnp.asarray(t.nodes.knots).reshape(-1, *(1,) * u.ndim)
    return jnp.clip((u - knots[:-1]) / jnp.diff(knots, axis=0), 0, 1)


def after_programming(scale: Array, targets: Cells, t: Tables) -> tuple[Array, Array]:
    """Mean and variance ``(N, n)`` of the weight after programming to targets ``(D, N, n)``."""
    mean, variance = (looked_up(table, targets) for table in t.devices.programmed)
    mean, variance = sums(scale[:, None] * mean, scale[:, None] ** 2 * variance)
    return mean * t.nodes.largest, variance * t.nodes.largest**2


def largest_programmed(mean: Array, variance: Array, counts: ArrayLike) -> tuple[Array, Array]:
    """Mean and standard deviation ``(n,)`` of m', from moments ``(J, n)`` and numbers ``(J,)``."""
    deviation, size = jnp.sqrt(jnp.maximum(variance, SMALLEST_VARIANCE)), jnp.abs(mean)
    lowest = jnp.maximum((size - SPAN_BELOW * deviation).max(0), 0)
    highest = (size + SPAN_ABOVE * deviation).max(0)
    step = (highest - lowest) / (SPAN_POINTS - 1)
    x = lowest + step * jnp.arange(SPAN_POINTS)[:, None]
    z, at = size / deviation, x[:, None] / deviation
    # x is nowhere more than SPAN_BELOW deviations below a size: no product vanishes.
    within = jnp.log(normal_cdf(at - z) * normal_cdf(at + z))
    ends = np.ones((SPAN_POINTS, 1))
    ends[[0, -1]] = 0.5
    exceeded = (1 - jnp.exp((jnp.asarray(counts)[:, None] * within).sum(1))) * ends
    of_one, of_x = sums(exceeded, exceeded * x)
    first = lowest + step * of_one
    # The integrand of the mean square has a slope of 2 at the lower end (Euler and Maclaurin).
    square = lowest**2 + 2 * step * of_x + step**2 / 6
    return first, jnp.sqrt(jnp.maximum(square - first**2, SMALLEST_VARIANCE))


def error_given_span(
    p: Programmed, span: Array, reference: Readout, t: Tables, kind: Kind
) -> Array:
    """E (α w - W)² less W², averaged over nodes and times ``(n,)``, given m' ``(n,)``."""
    present, offset = conductances_again(p, span, t)
    cells = cells_of(present, t.devices)
    scale = (p.scale * span)[:, None, None]

    # One time after the other: what each needs stays in the cache, and is computed anew when
    # gradients come back.
    @jax.checkpoint
    def add_time(total: Array, factors: tuple[Array, Array]) -> tuple[Array, None]:
        moments = moments_in_time(scale, p.targets, cells, offset, *factors)
        return total + error_in_time(moments, reference, t, kind), None

    factors = t.devices.target, t.devices.present
    total, _ = jax.lax.scan(add_time, jnp.zeros_like(span), factors)
    return total / len(t.devices.target)


def conductances_again(
    p: Programmed, span: Array, t: Tables, n_nodes: int = HERMITE_NODES
) -> tuple[Array, Array]:
    """Conductances ``(D, H, Q, n)`` that programmed weights stand for, these less their mean."""
    nodes = np.array([node for node, _ in hermite_rule(n_nodes)])
    offset = jnp.sqrt(jnp.maximum(p.variance, SMALLEST_VARIANCE)) * nodes[:, None, None]
    rises = jnp.diff(p.curves, axis=1)[:, :, None, None]
    shares = passed((p.mean + offset) / span, t)
    return p.curves[:, :1, None] + (rises * shares).sum(1), offset


def moments_in_time(
    scale: Array, targets: Cells, present: Cells, offset: Array, of_target: Array, of_present: Array
) -> Moments:
    """Moments at one time, averaged over the programmed weight.

    Given that weight devices are independent; for the third and fourth cumulant, gamma variables.

    Args:
        scale: factor of each device ``(D, 1, 1, n)``.
        targets: cells of the targets ``(D, Q, n)``.
        present: cells of the present conductances ``(D, H, Q, n)``.
        offset: programmed weight less its mean ``(H, Q, n)``.
        of_target, of_present: factors of the moments at this time ``(2, R, C + 1)``.
    """
    mean, relative_square = (
        summed_products(*terms, targets, present)
        for terms in zip(of_target, of_present, strict=True)
    )
    mean = scale * mean
    ratio = mean * (relative_square - 1)  # variance over mean
    c2 = mean * ratio
    c1, c2, c3, c4 = sums(mean, c2, 2 * c2 * ratio, 6 * c2 * ratio**2)
    shares = np.array([share for _, share in hermite_rule(HERMITE_NODES)])[:, None, None]
    total, square, covariance = sums(shares * c1, shares * (c2 + c1**2), shares * offset * c1)
    d = c1 - total
    third, fourth = sums(
        shares * (c3 + 3 * c2 * d + d**3),
        shares * (c4 + 3 * c2**2 + 4 * c3 * d + 6 * c2 * d**2 + d**4),
    )
    fourth = jnp.maximum(fourth - 3 * (square - total**2) ** 2, 0)
    return Moments(total, square, covariance, third, fourth)


def summed_products(of_target: Array, of_present: Array, targets: Cells, present: Cells) -> Array:
    """A moment ``(D, H, Q, n)`` from its factors ``(R, C + 1)``."""
    terms = [
        looked_up(one, targets)[:, None] * looked_up(other, present)
        for one, other in zip(of_target, of_present, strict=True)
    ]
    return sum(terms[1:], start=terms[0])


def reference_readout(p: Programmed, t: Tables, kind: Kind) -> Readout:
    """The reference, read after programming unless it is exact."""
    if not kind.reads_reference:
        exact = jnp.maximum(t.nodes.mean_absolute, SMALLEST_READOUT)
        return Readout(exact, jnp.zeros(()), jnp.zeros(()))
    shares = t.nodes.shares[:, None]
    added = added_variance((shares * (p.mean**2 + p.variance)).sum(0), t)
    response, slope, square = readout_of_normal(p.mean, p.variance + added, t.readout)
    mean, variance = sums(
        shares * response, shares * variance_of_readout(response, slope, square, added, t)
    )
    return Readout(jnp.maximum(mean, SMALLEST_READOUT), variance, slope)


def error_in_time(m: Moments, reference: Readout, t: Tables, kind: Kind) -> Array:
    """E (α w - W)² less W², averaged over the nodes ``(n,)``, with the fluctuation of α."""
    shares, weights = t.nodes.shares[:, None], t.nodes.weights[:, None]
    square, cross = sums(shares * m.square, shares * weights * m.mean)
    if not kind.compensates:
        return square - 2 * cross
    variance, added = m.square - m.mean**2, added_variance(square, t)
    response, slope, output_square = readout_of_normal(m.mean, variance + added, t.readout)
    output_variance = jnp.maximum(output_square - m.mean**2, SMALLEST_VARIANCE)
    response += gamma_excess(m, output_variance)
    # How the reference, and the read-out, follow the weight.
    follows0, follows = shares * reference.slope * m.covariance, shares * slope * variance
    r, of_one, of_both, mean0, weight0, mean1, weight1 = sums(
        shares * response,
        shares * variance_of_readout(response, slope, output_square, added, t),
        slope * follows0,
        m.mean * follows0,
        weights * follows0,
        m.mean * follows,
        weights * follows,
    )
    r0, r = reference.mean, jnp.maximum(r, SMALLEST_READOUT)
    factor = r0 / r
    squared, crossed = factor**2 * square, factor * cross
    of_one, of_both = of_one / r**2, of_both / (r0 * r)
    relative_variance = reference.variance / r0**2 + of_one - 2 * of_both
    correlated = (2 * factor**2 * mean0 - factor * weight0) / r0
    correlated -= (2 * factor**2 * mean1 - factor * weight1) / r
    fluctuation = relative_variance * squared + 2 * (of_one - of_both) * (squared - crossed)
    return squared - 2 * crossed + (fluctuation + 2 * correlated) / (t.n_rows * t.n_columns)


def added_variance(mean_square: Array, t: Tables) -> Array:
    """Variance that input noise adds to each output."""
    return t.readout.variance_per_square * mean_square + t.readout.added_variance


def variance_of_readout(
    response: Array, slope: Array, square: Array, added: Array, t: Tables
) -> Array:
    """Variance of |y|, and what the columns' common input noise makes of it."""
    return square - response**2 + (t.n_columns - 1) * added * slope**2


def readout_of_normal(
    mean: Array, variance: Array, table: ReadoutTable
) -> tuple[Array, Array, Array]:
    """Response, slope and mean square of the output for normal weights.

    Beyond the table, weights are so large that the read-out's own scale no longer counts: what is
    λ times as large is read λ times as large.
    """
    deviation = jnp.sqrt(jnp.maximum(variance, SMALLEST_VARIANCE))
    size = jnp.maximum(jnp.abs(mean) / table.largest_mean, deviation / table.largest_deviation)
    size = jnp.maximum(size, 1)
    mean, variance = mean / size, variance / size**2
    position = (mean / table.largest_mean + 1) * (table.mean_cells / 2)
    # Variances are tabulated at the fourth powers of whole numbers.
    power = variance * (table.variance_cells**4 / table.largest_deviation**2)
    i = cell(position, table.mean_cells)
    j = cell(jnp.sqrt(jnp.sqrt(jnp.maximum(stop_gradient(power), 0))), table.variance_cells)
    low = j.astype(float)
    y = (power - low**4) / (((4 * low + 6) * low + 4) * low + 1)
    n_variances = table.variance_cells + 1
    corner, steps, places = i * n_variances + j, (1, n_variances), (y, position - i)
    response, slope, square = (
        interpolated(entries, corner, steps, places)
        for entries in (table.response, table.slope, table.second_moment)
    )
    return size * response, slope, size**2 * square


def gamma_excess(m: Moments, variance: Array) -> Array:
    """What the read-out of a skewed, peaked weight has more than a normal one's ``(Q, n)``.

    Args:
        m: moments of the weights.
        variance: of the outputs, noise of the read-out included ``(Q, n)``.
    """
    is_normal = m.fourth <= SMALLEST_RELATIVE_CUMULANT * variance**2
    deviation, width = jnp.sqrt(variance), jnp.sqrt(jnp.where(is_normal, 1.0, m.fourth) / 6)
    asymmetry = jnp.sign(m.mean) * m.third / (2 * deviation * width)
    scale = width / variance
    table = gamma_excess_table()
    last_z, last_asymmetry, last_scale = (n - 1 for n in table.shape)
    positions = (
        jnp.minimum(jnp.abs(m.mean) / deviation / Z_LARGEST, 1) * last_z,
        (jnp.clip(asymmetry, -1, 1) + 1) * (last_asymmetry / 2),
        jnp.minimum(scale / (scale + HALF_SCALE) * (last_scale + 1), last_scale),
    )
    cells = [cell(position, n - 1) for position, n in zip(positions, table.shape, strict=True)]
    places = [position - i for position, i in zip(positions, cells, strict=True)]
    steps = table.shape[1] * table.shape[2], table.shape[2], 1
    corner = sum(i * step for i, step in zip(cells, steps, strict=True))
    excess = interpolated(table.ravel(), corner, steps, places)
    return jnp.where(is_normal, 0.0, deviation * excess)


def cells_of(g: Array, devices: DeviceMoments) -> Cells:
    """Where conductances in µS lie on their grid, which is denser towards the lowest."""
    n_cells = devices.programmed.shape[-1] - 1
    u = (g - devices.g_low) * (n_cells**2 / (devices.g_high - devices.g_low))
    i = cell(jnp.sqrt(jnp.maximum(stop_gradient(u), 0)), n_cells)
    low = i.astype(float)
    return i, (u - low * low) / (2 * low + 1)


def looked_up(table: Array, cells: Cells) -> Array:
    """A table ``(C + 1,)`` of the grid of conductances at places of any shape."""
    i, place = cells
    return entry(table, i) + entry(jnp.diff(table), i) * place


def interpolated(
    table: ArrayLike, corner: Array, steps: Sequence[ArrayLike], places: Sequence[Array]
) -> Array:
    """Entries of a table, linear in each of its axes.

    Args:
        table: the entries, with the axes in one.
        corner: index of each cell's first entry.
        steps: how far entries lie apart, axis by axis.
        places: from 0 to 1 in the cell, axis by axis.
    """
    if not steps:
        return entry(table, corner)
    low = interpolated(table, corner, steps[1:], places[1:])
    high = interpolated(table, corner + steps[0], steps[1:], places[1:])
    return low * (1 - places[0]) + high * places[0]


def entry(table: ArrayLike, index: Array) -> Array:
    """Entries of a table with one axis, without the checks that indices do not need here."""
    return jnp.asarray(table).at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def cell(position: Array, n_cells: ArrayLike) -> Array:
    """Whole part of positions, from 0 to n_cells - 1."""
    # An index made of NaN would lie anywhere: it is an integer before it is bounded.
    return jnp.clip(stop_gradient(position).astype(jnp.int32), 0, jnp.subtract(n_cells, 1))


def hermite_rule(n_nodes: int) -> Iterator[tuple[float, float]]:
    """Nodes and shares of the Gauss rule of the standard normal distribution."""
    nodes, shares = np.polynomial.hermite_e.hermegauss(n_nodes)
    return zip(nodes, shares / shares.sum(), strict=True)


@jax.custom_vjp
def sums(*arrays: Array) -> tuple[Array, ...]:
    """Sums along the first axis, all in one pass over what the arrays are computed from.

    XLA would compute what they have in common once for each, or keep it in memory.
    """
    zeros = (np.zeros(()),) * len(arrays)
    return tuple(
        jax.lax.reduce(arrays, zeros, lambda x, y: tuple(map(jnp.add, x, y)), dimensions=(0,))
    )


def _sums_forward(*arrays: Array) -> tuple[tuple[Array, ...], int]:
    return sums(*arrays), len(arrays[0])


def _sums_backward(n: int, derivatives: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(jnp.broadcast_to(d, (n, *d.shape)) for d in derivatives)


sums.defvjp(_sums_forward, _sums_backward)


# Of log(erfcx(x)/t) in t = 1/(1 + x/2), for x from 0 to 7: exact to 4e-9.
_T = np.linspace(1 / 4.5, 1, 400)
_TAIL = Chebyshev.fit(_T, np.log(erfcx(2 / _T - 2) / _T), 10).convert(kind=Polynomial).coef


def normal_cdf(z: Array) -> Array:
    """Φ(z), in half the time that ``erfc`` takes.

    Source: W. Press et al., "Numerical Recipes", section 6.2, with more terms.
    """
    x = jnp.abs(z) * np.sqrt(0.5)
    t = 1 / (1 + x / 2)
    tail = 0.5 * t * jnp.exp(jnp.polyval(_TAIL[::-1], t) - x * x)
    return jnp.where(z < 0, tail, 1 - tail)
