"""From a strategy to the point of the hypercube that decodes to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.hypercube import LOWEST_FRACTION, FloatArray, Hypercube

if TYPE_CHECKING:
    from wpo_optuna.strategy import ProgrammingStrategy

# Two numbers count as the same within this fraction; two weights within a larger one, since the
# hypercube holds them in single precision.
_SAME = 1e-9
_SAME_WEIGHT = 1e-6


def encode(hypercube: Hypercube, strategy: ProgrammingStrategy) -> FloatArray:
    """See :meth:`Hypercube.encode`.

    Raises:
        InvalidArgument: the strategy is not in this hypercube; the message says why.
    """
    f = np.asarray(strategy.f_lst, dtype=np.float64)
    x_f = _factor_coordinates(hypercube, f)
    g_plus, g_minus = _free_curves(hypercube, strategy)

    delta_g = g_plus - g_minus
    least, most = _intended_interval_us(hypercube, delta_g, g_minus)
    x_k_w, targets = _k_w_coordinate(hypercube, f, f @ least, f @ most)
    missing = targets - f @ delta_g
    room = np.where(missing > 0, most - delta_g, least - delta_g)
    used = _ratio(missing, f @ room, where_zero=0.0)

    x_shares, delta_g = _share_coordinates(hypercube, f, targets, delta_g + used * room)
    x_places = _place(g_plus, *hypercube.g_plus_interval_us(delta_g))
    blocks = np.empty((2 * hypercube.n_pairs - 1, hypercube.n_free_knots))
    blocks[0::2], blocks[1::2] = x_places, x_shares
    return np.concatenate([x_f, x_k_w, blocks.ravel()])


def _factor_coordinates(hypercube: Hypercube, f: FloatArray) -> FloatArray:
    """Coordinates of the free factors, of all factors (P,)."""
    given = f"strategy has f_lst = {f.tolist()}"
    if len(f) != hypercube.n_pairs:
        raise InvalidArgument(
            f"{given}, {len(f)} pairs of conductances: this hypercube has {hypercube.n_pairs}."
        )
    for pair, fixed in enumerate(hypercube.f_lst):
        low, high = (hypercube.f_min, hypercube.f_max) if fixed is None else (fixed, fixed)
        if low * (1 - _SAME) <= f[pair] <= high * (1 + _SAME):
            continue
        accepted = f"between f_min = {low} and f_max = {high}" if fixed is None else f"{fixed}"
        raise InvalidArgument(
            f"{given}: the factor of pair {pair} must be {accepted} in this hypercube."
        )
    return _place(f[list(hypercube.free_pairs)], hypercube.f_min, hypercube.f_max)


def _free_curves(
    hypercube: Hypercube, strategy: ProgrammingStrategy
) -> tuple[FloatArray, FloatArray]:
    """Curves g+ and g- at the free knots, each (P, free knots), before mirroring."""
    g = np.asarray(strategy.g_lst, dtype=np.float64)
    if g.shape[1] != hypercube.n_knots:
        raise InvalidArgument(
            f"strategy has g_lst with {g.shape[1]} conductances a curve: this hypercube has "
            f"{hypercube.n_knots} knots (nbins = {hypercube.nbins})."
        )
    near = _SAME * hypercube.g_max
    if g.min() < hypercube.g_min - near or g.max() > hypercube.g_max + near:
        raise InvalidArgument(
            f"strategy has g_lst from {g.min()} to {g.max()} µS: in this hypercube conductances "
            f"lie between g_min = {hypercube.g_min} and g_max = {hypercube.g_max}."
        )
    g_plus, g_minus = g[0::2], g[1::2]
    if not hypercube.symmetric:
        return g_plus, g_minus
    zero = hypercube.nbins - 1
    asymmetry = np.abs(g_plus - g_minus[:, ::-1])[:, :zero].max()
    if asymmetry > near:
        raise InvalidArgument(
            f"strategy has g_lst whose g+ of a weight and g- of the opposite weight differ by up "
            f"to {asymmetry:.6g} µS: this hypercube has symmetric strategies only."
        )
    # At zero weight, which is its own mirror image, the decoder exchanges g+ and g-.
    return (
        np.column_stack([g_plus[:, :zero], g_minus[:, zero]]),
        np.column_stack([g_minus[:, :zero], g_plus[:, zero]]),
    )


def _intended_interval_us(
    hypercube: Hypercube, delta_g: FloatArray, g_minus: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Least and most g+ - g- (P, free knots) in µS that the decoder may have had in mind.

    It clips g-, so that with ``g_err`` a device at either end may stand for more than it holds.
    """
    full = hypercube.g_max - hypercube.g_min
    near, g_err_us = _SAME * full, hypercube.g_err * full
    least = delta_g - g_err_us * (g_minus >= hypercube.g_max - near)
    most = delta_g + g_err_us * (g_minus <= hypercube.g_min + near)
    return np.clip(least, -full, full), np.clip(most, -full, full)


def _k_w_coordinate(
    hypercube: Hypercube, f: FloatArray, least: FloatArray, most: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Coordinate of k_w, (1,) or with use_max_kw (0,), and the weights in µS that it means.

    Args:
        hypercube: the hypercube.
        f: factors (P,).
        least: smallest weight in µS that each free knot may stand for.
        most: largest one.
    """
    largest = float(f.sum()) * (hypercube.g_max - hypercube.g_min)
    lowest = largest if hypercube.use_max_kw else LOWEST_FRACTION * largest
    # Where all devices are at their ends, rounding may have put the target beyond them.
    slack, near = _SAME_WEIGHT * largest, _SAME * largest
    least = np.where(least <= near - largest, least - slack, least)
    most = np.where(most >= largest - near, most + slack, most)

    weights = hypercube.knot_weights[: hypercube.n_free_knots].double().numpy()
    weights = weights / hypercube.max_abs_weight
    not_zero = np.abs(weights) > 0.5 / hypercube.nbins
    ends = np.stack([least, most])[:, not_zero] / weights[not_zero]
    # The weight in µS at the largest weight: the middle of what all knots allow.
    at_largest = (ends.min(axis=0).max() + ends.max(axis=0).min()) / 2
    # Of the neighbouring numbers of single precision, the one whose weights fit best.
    nearest = np.float32(np.clip(at_largest, lowest, largest)).view(np.int32)
    near_by = (nearest + np.arange(-8, 9, dtype=np.int32)).view(np.float32).astype(np.float64)
    x_k_w = np.ones(1) if hypercube.use_max_kw else _place(near_by, lowest, largest)
    _, targets = hypercube.target_weights_us(np.tile(f, (len(x_k_w), 1)), x_k_w)
    misfits = np.maximum(np.maximum(least - targets, targets - most), 0).max(axis=1)
    best = int(misfits.argmin())
    if misfits[best] > slack:
        raise InvalidArgument(
            f"strategy has curves whose weights miss k_w times the weight at the knot by up to "
            f"{misfits[best]:.6g} µS: in this hypercube they are proportional, and the largest is "
            + (
                f"{largest:.6g} µS."
                if hypercube.use_max_kw
                else f"{lowest:.6g} to {largest:.6g} µS."
            )
        )
    return (x_k_w[:0] if hypercube.use_max_kw else x_k_w[[best]]), targets[best]


def _share_coordinates(
    hypercube: Hypercube, f: FloatArray, targets: FloatArray, delta_g: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Coordinates of the shares (P - 1, free knots), and g+ - g- in µS as they decode exactly.

    Args:
        hypercube: the hypercube.
        f: factors (P,).
        targets: weight (free knots,) in µS at each knot.
        delta_g: g+ - g- (P, free knots) in µS, which adds up to the targets but for rounding.
    """
    shares, decoded = np.ones_like(delta_g), np.empty_like(delta_g)
    remainder = targets
    for pair in range(hypercube.n_pairs):
        low, high = hypercube.carried_interval_us(f[None], remainder[None], pair)
        if pair < hypercube.n_pairs - 1:
            shares[pair] = _place(f[pair] * delta_g[pair], low[0], high[0])
        carried = shares[pair] * (high[0] - low[0]) + low[0]
        remainder = remainder - carried
        decoded[pair] = carried / f[pair]
    return shares[:-1], decoded


def _place(value: FloatArray, low: FloatArray | float, high: FloatArray | float) -> FloatArray:
    """Where values lie in intervals, from 0 to 1; 0.5 where an interval is empty."""
    return _ratio(value - low, np.subtract(high, low), where_zero=0.5)


def _ratio(part: FloatArray, whole: ArrayLike, where_zero: float) -> FloatArray:
    """Part of the whole, from 0 to 1."""
    whole = np.broadcast_to(whole, part.shape)
    ratio = np.divide(part, whole, out=np.full(part.shape, where_zero), where=whole != 0)
    return np.clip(ratio, 0.0, 1.0) + 0.0  # no -0.0
