"""Decoding points of the hypercube so that gradients reach the coordinates.

The same steps as :meth:`wpo_optuna.hypercube.Hypercube.decode_arrays`, in float64 throughout: the
result agrees with that to the single precision in which the reference holds weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wpo_optuna.hypercube import LOWEST_FRACTION, Hypercube

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class _Pair:
    """How one pair was decoded, arrays (n, free knots); letters as in the code below."""

    place: FloatArray
    share: FloatArray
    low: FloatArray
    high: FloatArray
    low_is_rest: NDArray[np.bool_]
    high_is_rest: NDArray[np.bool_]
    delta_g: FloatArray
    line: FloatArray
    g_plus: FloatArray
    g_minus: FloatArray


class DecodedForGradient:
    """Strategies of points of the hypercube, and the way back from their derivatives.

    Args:
        hypercube: the search space.
        x: points ``(n, d)``.

    Attributes:
        f: significance factors ``(n, P)``.
        curves: conductances in µS ``(n, 2P, K)``.
    """

    def __init__(self, hypercube: Hypercube, x: FloatArray) -> None:
        self._hypercube = hypercube
        n_free, n_pairs = len(hypercube.free_pairs), hypercube.n_pairs
        self._range_us = hypercube.g_max - hypercube.g_min
        self.f = np.array([[1.0 if f is None else f for f in hypercube.f_lst]] * len(x))
        scaled = x[:, :n_free] * (hypercube.f_max - hypercube.f_min) + hypercube.f_min
        self.f[:, list(hypercube.free_pairs)] = scaled

        rest = x[:, n_free:]
        self._fraction = np.ones(len(x))
        if not hypercube.use_max_kw:
            self._fraction = rest[:, 0] * (1 - LOWEST_FRACTION) + LOWEST_FRACTION
            rest = rest[:, 1:]
        self._span = self.f * self._range_us
        self._knots = np.linspace(-1, 1, hypercube.n_knots)[: hypercube.n_free_knots]
        blocks = rest.reshape(len(x), 2 * n_pairs - 1, hypercube.n_free_knots)
        remainder = (self._fraction * self._span.sum(axis=1))[:, None] * self._knots
        self._pairs: list[_Pair] = []
        for pair in range(n_pairs):
            is_last = pair == n_pairs - 1
            share = np.ones_like(remainder) if is_last else blocks[:, 2 * pair + 1]
            decoded, carried = self._decode_pair(pair, blocks[:, 2 * pair], share, remainder)
            remainder = remainder - carried
            self._pairs.append(decoded)
        self.curves = np.stack([curve for p in self._pairs for curve in self._whole(p)], axis=1)

    def pull_back(self, in_f: FloatArray, in_curves: FloatArray) -> FloatArray:
        """Derivatives in the coordinates ``(n, d)``.

        Args:
            in_f: derivatives in the significance factors ``(n, P)``.
            in_curves: derivatives in the curves ``(n, 2P, K)``.
        """
        hypercube, n_pairs = self._hypercube, self._hypercube.n_pairs
        in_f, in_span = in_f.copy(), np.zeros_like(self._span)
        in_remainder = np.zeros((len(in_f), len(self._knots)))
        in_blocks: list[FloatArray] = []
        for pair in reversed(range(n_pairs)):
            p, f = self._pairs[pair], self.f[:, pair, None]
            in_place, in_delta_g = self._pull_back_curves(
                p, in_curves[:, 2 * pair], in_curves[:, 2 * pair + 1]
            )
            in_carried = in_delta_g / f - in_remainder
            in_f[:, pair] -= (in_delta_g * p.delta_g / f).sum(axis=1)
            in_low, in_high = in_carried * (1 - p.share), in_carried * p.share
            of_low, of_high = in_low * p.low_is_rest, in_high * p.high_is_rest
            in_remainder = in_remainder + of_low + of_high
            in_span[:, pair] += (in_high - of_high - in_low + of_low).sum(axis=1)
            in_span[:, pair + 1 :] += (of_high - of_low).sum(axis=1)[:, None]
            in_share = in_carried * (p.high - p.low)
            in_blocks = [in_place, *([] if pair == n_pairs - 1 else [in_share]), *in_blocks]
        in_programmed = (in_remainder * self._knots).sum(axis=1)
        in_span += (in_programmed * self._fraction)[:, None]
        in_f += in_span * self._range_us
        in_x = [in_f[:, list(hypercube.free_pairs)] * (hypercube.f_max - hypercube.f_min)]
        if not hypercube.use_max_kw:
            largest = self._span.sum(axis=1)
            in_x.append((in_programmed * largest * (1 - LOWEST_FRACTION))[:, None])
        return np.concatenate(in_x + in_blocks, axis=1)

    def _decode_pair(
        self, pair: int, place: FloatArray, share: FloatArray, remainder: FloatArray
    ) -> tuple[_Pair, FloatArray]:
        """One pair, and the weight in µS that it carries of the remainder (n, free knots)."""
        cube = self._hypercube
        rest, own = self._span[:, pair + 1 :].sum(axis=1)[:, None], self._span[:, pair, None]
        low, high = np.maximum(remainder - rest, -own), np.minimum(remainder + rest, own)
        carried = share * (high - low) + low
        delta_g = carried / self.f[:, pair, None]
        lowest, highest = self._ends_of_line(delta_g)
        line = highest - lowest
        g_plus = place * line + lowest
        g_minus = np.clip(g_plus, cube.g_min, cube.g_max) - delta_g
        low_is_rest, high_is_rest = low == remainder - rest, high == remainder + rest
        decoded = _Pair(
            place, share, low, high, low_is_rest, high_is_rest, delta_g, line, g_plus, g_minus
        )
        return decoded, carried

    def _ends_of_line(self, delta_g: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Lowest and highest g+ for which g+ - g- = delta_g, in µS, before clipping."""
        cube = self._hypercube
        g_err_us = cube.g_err * self._range_us
        return (
            cube.g_min + np.maximum(delta_g, 0) - g_err_us,
            cube.g_max + np.minimum(delta_g, 0) + g_err_us,
        )

    def _whole(self, p: _Pair) -> tuple[FloatArray, FloatArray]:
        """Curves of g+ and g- (n, K); symmetric ones mirror each other."""
        cube = self._hypercube
        g_plus = np.clip(p.g_plus, cube.g_min, cube.g_max)
        g_minus = np.clip(p.g_minus, cube.g_min, cube.g_max)
        if not cube.symmetric:
            return g_plus, g_minus
        inner = slice(0, cube.nbins - 1)
        return (
            np.concatenate([g_plus[:, inner], g_minus[:, ::-1]], axis=1),
            np.concatenate([g_minus[:, inner], g_plus[:, ::-1]], axis=1),
        )

    def _pull_back_curves(
        self, p: _Pair, in_plus: FloatArray, in_minus: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Derivatives in place and delta_g (n, free knots), given those in both curves (n, K)."""
        cube = self._hypercube
        if cube.symmetric:
            inner = cube.nbins - 1
            left_plus, left_minus = in_plus[:, :inner], in_minus[:, :inner]
            in_plus, in_minus = in_minus[:, : inner - 1 : -1], in_plus[:, : inner - 1 : -1]
            in_plus, in_minus = in_plus.copy(), in_minus.copy()
            in_plus[:, :inner] += left_plus
            in_minus[:, :inner] += left_minus
        in_minus = in_minus * self._is_inside(p.g_minus)
        in_line = (in_plus + in_minus) * self._is_inside(p.g_plus)
        in_delta_g = in_line * np.where(p.delta_g > 0, 1 - p.place, p.place) - in_minus
        return in_line * p.line, in_delta_g

    def _is_inside(self, g: FloatArray) -> NDArray[np.bool_]:
        """Where clipping leaves a conductance as it is."""
        return (g >= self._hypercube.g_min) & (g <= self._hypercube.g_max)
