"""The hypercube of weight programming strategies: points x in [0, 1]^d and their meaning.

Every point decodes to a valid strategy, so that an optimiser needs no constraints: a coordinate
says where in the range that is still possible a quantity lies. Coordinates have the quantity's
name with ``x_`` before it; pairs and knots are counted from 0. They are, in the order of the
reference (``aihwkit.inference.converter.wpo``):

* ``x_f_{pair}``: the significance factor of each pair whose factor is free;
* ``x_k_w``: how much of the largest representable weight is used (absent with ``use_max_kw``);
* for every pair ``x_g_{pair}_{knot}``, the place of (g+, g-) on the line g+ - g- = const, and for
  every pair but the last ``x_delta_g_{pair}_{knot}``, the share of the weight it carries; the last
  pair carries the rest.

Symmetric strategies have knots for the weights -m ... 0 alone; positive weights mirror them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.strategy import ProgrammingStrategy

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

FloatArray = NDArray[np.float64]

# The largest programmed weight is at least this fraction of the largest representable one.
LOWEST_FRACTION = 0.05

_PREFIX = "x_"


@dataclass(frozen=True)
class DecodedPoints:
    """Strategies of n points as arrays.

    Attributes:
        f: significance factors ``(n, P)``.
        g: conductances in µS ``(n, 2P, K)``, curves ordered g+ of pair 0, g- of pair 0, ...
        k_w: scale from unitless weights to µS ``(n,)``.
    """

    f: FloatArray
    g: FloatArray
    k_w: FloatArray


@dataclass(frozen=True)
class Hypercube:
    """The search space of one weight programming problem.

    Attributes:
        f_lst: significance factor of each pair; None where it is to be found.
        g_min: lowest conductance in µS.
        g_max: highest conductance in µS.
        max_abs_weight: largest absolute weight m (unitless).
        symmetric: whether negative and positive weights mirror each other.
        nbins: number of intervals plus one on either side of zero; a curve has 2 nbins - 1 knots.
        g_err: by how much a target may be over- or underprogrammed, as a fraction of the range.
        f_min: lowest free factor.
        f_max: highest free factor.
        use_max_kw: whether the largest weight always takes the whole range.
    """

    f_lst: tuple[float | None, ...]
    g_min: float
    g_max: float
    max_abs_weight: float
    symmetric: bool = True
    nbins: int = 6
    g_err: float = 0.0
    f_min: float = 0.1
    f_max: float = 5.0
    use_max_kw: bool = False

    @property
    def n_pairs(self) -> int:
        """Number P of pairs of conductances."""
        return len(self.f_lst)

    @property
    def n_knots(self) -> int:
        """Number K of knots of each curve."""
        return 2 * self.nbins - 1

    @property
    def n_free_knots(self) -> int:
        """Number of knots that have coordinates of their own."""
        return self.nbins if self.symmetric else self.n_knots

    @cached_property
    def free_pairs(self) -> tuple[int, ...]:
        """Indices of the pairs whose factor is free."""
        return tuple(pair for pair, f in enumerate(self.f_lst) if f is None)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Name of each coordinate, in order."""
        quantities = [f"f_{pair}" for pair in self.free_pairs]
        if not self.use_max_kw:
            quantities.append("k_w")
        for pair in range(self.n_pairs):
            kinds = ("g", "delta_g") if pair < self.n_pairs - 1 else ("g",)
            for kind in kinds:
                quantities += [f"{kind}_{pair}_{knot}" for knot in range(self.n_free_knots)]
        return tuple(_PREFIX + quantity for quantity in quantities)

    @cached_property
    def earlier_names(self) -> tuple[str, ...]:
        """Name of each coordinate in studies stored before coordinates were told from quantities.

        They are those of :attr:`names` without ``x_``.
        """
        return tuple(name.removeprefix(_PREFIX) for name in self.names)

    @property
    def dimension(self) -> int:
        """Number d of coordinates."""
        return len(self.names)

    @property
    def bounds(self) -> tuple[tuple[float, float], ...]:
        """Bounds of each coordinate, as scipy's optimisers take them."""
        return ((0.0, 1.0),) * self.dimension

    def distributions(self, names: Sequence[str] | None = None) -> dict[str, BaseDistribution]:
        """Optuna's distribution of each coordinate, by name and in order.

        Args:
            names: the coordinates' names in the study at hand; None takes :attr:`names`.
        """
        from optuna.distributions import FloatDistribution

        return {name: FloatDistribution(0.0, 1.0) for name in names or self.names}

    def point(self, params: Mapping[str, float]) -> list[float]:
        """The point ``(d,)`` that a trial's parameters stand for, by names of today or earlier."""
        names = self.names if self.names[0] in params else self.earlier_names
        return [float(params[name]) for name in names]

    def decode(self, x: ArrayLike) -> list[ProgrammingStrategy] | ProgrammingStrategy:
        """The strategy of a point ``(d,)``, or the list of strategies of points ``(n, d)``.

        Raises:
            InvalidArgument: x has another number of coordinates or leaves the unit cube.
        """
        points = np.asarray(x, dtype=np.float64)
        decoded = self.decode_arrays(points)
        strategies = [
            ProgrammingStrategy(
                tuple(f), tuple(tuple(curve) for curve in curves), self.g_min, self.g_max
            )
            for f, curves in zip(decoded.f.tolist(), decoded.g.tolist(), strict=True)
        ]
        return strategies[0] if points.ndim == 1 else strategies

    def decode_arrays(self, x: ArrayLike) -> DecodedPoints:
        """Decodes points ``(n, d)`` all at once.

        Source: ``partition_parameters``, ``reformat_x_g`` and ``denormalize`` of the reference.

        Raises:
            InvalidArgument: x has another number of coordinates or leaves the unit cube.
        """
        points = self.check_points(x)
        f, x_k_w, x_g, x_delta = self._partition(points)
        k_w, remainder = self._target_weights_us(f, x_k_w)
        span, g_err_us = f * (self.g_max - self.g_min), self.g_err * (self.g_max - self.g_min)

        g = np.empty((len(points), 2 * self.n_pairs, self.n_knots))
        for pair in range(self.n_pairs):
            # Of the weight that remains, the pair carries what leaves those after it the rest.
            own, rest = span[:, pair, None], span[:, pair + 1 :].sum(axis=1, keepdims=True)
            low, high = np.maximum(remainder - rest, -own), np.minimum(remainder + rest, own)
            carried = x_delta[:, pair] * (high - low) + low
            remainder = remainder - carried

            delta_g = carried / f[:, pair, None]
            low = self.g_min + np.maximum(delta_g, 0) - g_err_us
            high = self.g_max + np.minimum(delta_g, 0) + g_err_us
            g_plus = np.clip(x_g[:, pair] * (high - low) + low, self.g_min, self.g_max)
            g_minus = np.clip(g_plus - delta_g, self.g_min, self.g_max)
            g[:, 2 * pair], g[:, 2 * pair + 1] = self._whole_curves(g_plus, g_minus)
        return DecodedPoints(f=f, g=g, k_w=k_w)

    def check_points(self, x: ArrayLike) -> FloatArray:
        """Points as a float64 array ``(n, d)``.

        Raises:
            InvalidArgument: x has another number of coordinates or leaves the unit cube.
        """
        points = np.atleast_2d(np.asarray(x, dtype=np.float64))
        if points.ndim != 2 or points.shape[1] != self.dimension:
            raise InvalidArgument(
                f"x has shape {np.shape(x)}: points of this hypercube have {self.dimension} "
                "coordinates, (d,) or (n, d)."
            )
        if not np.all((points >= 0) & (points <= 1)):
            outside = points[~((points >= 0) & (points <= 1))][0]
            raise InvalidArgument(f"x contains {outside}: coordinates lie between 0 and 1.")
        return points

    @cached_property
    def knot_weights(self) -> torch.Tensor:
        """The weight (unitless) at each knot, ``(K,)`` in float32."""
        m = torch.tensor(self.max_abs_weight, dtype=torch.float32)
        return torch.linspace(-m, m, self.n_knots)

    def _partition(
        self, points: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Factors (n, P), coordinate of k_w (n,), of places and of shares (n, P, free knots)."""
        n_free = len(self.free_pairs)
        f = np.empty((len(points), self.n_pairs))
        for pair, fixed in enumerate(self.f_lst):
            if fixed is not None:
                f[:, pair] = fixed
        f[:, list(self.free_pairs)] = points[:, :n_free] * (self.f_max - self.f_min) + self.f_min

        if self.use_max_kw:
            x_k_w, rest = np.ones(len(points)), points[:, n_free:]
        else:
            x_k_w, rest = points[:, n_free], points[:, n_free + 1 :]
        blocks = rest.reshape(len(points), 2 * self.n_pairs - 1, self.n_free_knots)
        shares = np.ones((len(points), self.n_pairs, self.n_free_knots))
        shares[:, :-1] = blocks[:, 1::2]
        return f, x_k_w, blocks[:, 0::2], shares

    def _target_weights_us(self, f: FloatArray, x_k_w: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Scale k_w (n,) and weights in µS at the free knots (n, free knots)."""
        largest = (f * (self.g_max - self.g_min)).sum(axis=1)
        lowest = LOWEST_FRACTION * largest
        programmed = x_k_w * (largest - lowest) + lowest
        # The reference holds weights in float32, and divides as torch does, by the reciprocal.
        reciprocal = torch.tensor(self.max_abs_weight, dtype=torch.float32).reciprocal()
        k_w = torch.from_numpy(programmed).to(torch.float32) * reciprocal
        targets = k_w[:, None] * self.knot_weights[: self.n_free_knots]
        return k_w.double().numpy(), targets.double().numpy()

    def _whole_curves(
        self, g_plus: FloatArray, g_minus: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Curves (n, K) from those at the free knots, mirrored if symmetric."""
        if not self.symmetric:
            return g_plus, g_minus
        # The knot of zero weight is its own mirror image; the reference lets the mirror prevail.
        negative = slice(0, self.nbins - 1)
        return (
            np.concatenate([g_plus[:, negative], g_minus[:, ::-1]], axis=1),
            np.concatenate([g_minus[:, negative], g_plus[:, ::-1]], axis=1),
        )
