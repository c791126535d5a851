"""Piecewise linear curves over evenly spaced knots, evaluated for a batch of strategies."""

from __future__ import annotations

import torch
from torch import Tensor


def evaluate_curves(curves: Tensor, u: Tensor) -> Tensor:
    """Evaluates piecewise linear curves whose K knots are evenly spaced over [-1, 1].

    Every element is computed alone, so that its value does not depend on its neighbours or on the
    size of the batch. Differentiable in the curves and, between knots, in u.

    Args:
        curves: values at the knots ``(n, C, K)``, K at least 2.
        u: where to evaluate ``(n, N)``; either n may be 1 and is then repeated. Values outside of
            [-1, 1] continue the outermost segment, NaN stays NaN.

    Returns:
        values ``(n, C, N)``.
    """
    _, n_curves, n_knots = curves.shape
    n = max(len(curves), len(u))
    position = (u + 1) * ((n_knots - 1) / 2)
    # An index made of NaN would lie anywhere.
    segment = position.detach().clamp(0, n_knots - 2).nan_to_num_(0.0).floor_()
    fraction = position - segment
    index = segment.long()[:, None, :].expand(n, n_curves, -1)
    start = torch.gather(curves.expand(n, -1, -1), 2, index)
    rise = torch.gather(curves.diff(dim=2).expand(n, -1, -1), 2, index)
    return torch.addcmul(start, rise, fraction[:, None, :])


def signed_sum(conductances: Tensor, f: Tensor) -> Tensor:
    """Σ_p f_p (g⁺_p − g⁻_p), added up pair by pair as aihwkit's converters do.

    Args:
        conductances: ``(n, 2P, ...)`` in µS, ordered g⁺ of pair 0, g⁻ of pair 0, ...
        f: significance factors ``(n, P)``; n may be 1 and is then repeated.

    Returns:
        weights ``(n, ...)`` in µS.
    """
    factors = f.reshape(*f.shape, *(1 for _ in conductances.shape[2:]))
    total = (conductances[:, 0] - conductances[:, 1]) * factors[:, 0]
    for pair in range(1, f.shape[1]):
        difference = conductances[:, 2 * pair] - conductances[:, 2 * pair + 1]
        total = total + difference * factors[:, pair]
    return total
