"""Decoding points of the hypercube in torch, so that gradients reach the coordinates.

The same steps as :meth:`wpo_optuna.hypercube.Hypercube.decode_arrays`, in float64 throughout: it
agrees with that to the single precision in which the reference holds weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wpo_optuna.hypercube import LOWEST_FRACTION, Hypercube


def decode(hypercube: Hypercube, x: Tensor) -> tuple[Tensor, Tensor]:
    """Factors ``(n, P)`` and curves ``(n, 2P, K)`` in µS of points ``(n, d)`` in float64."""
    n_free = len(hypercube.free_pairs)
    free = iter(x[:, :n_free].unbind(dim=1))
    span_of_factor = hypercube.f_max - hypercube.f_min
    f = torch.stack(
        [
            next(free) * span_of_factor + hypercube.f_min
            if fixed is None
            else torch.full_like(x[:, 0], fixed)
            for fixed in hypercube.f_lst
        ],
        dim=1,
    )
    span = f * (hypercube.g_max - hypercube.g_min)
    programmed = span.sum(dim=1)
    rest = x[:, n_free:]
    if not hypercube.use_max_kw:
        lowest = LOWEST_FRACTION * programmed
        programmed = x[:, n_free] * (programmed - lowest) + lowest
        rest = x[:, n_free + 1 :]
    places = rest.reshape(len(x), 2 * hypercube.n_pairs - 1, hypercube.n_free_knots)
    knots = torch.linspace(-1, 1, hypercube.n_knots, dtype=x.dtype)[: hypercube.n_free_knots]

    remainder = programmed[:, None] * knots
    curves: list[Tensor] = []
    for pair in range(hypercube.n_pairs):
        later, own = span[:, pair + 1 :].sum(dim=1)[:, None], span[:, pair, None]
        low = torch.maximum(remainder - later, -own)
        high = torch.minimum(remainder + later, own)
        is_last = pair == hypercube.n_pairs - 1
        carried = high if is_last else places[:, 2 * pair + 1] * (high - low) + low
        remainder = remainder - carried
        curves += _pair_of_curves(hypercube, places[:, 2 * pair], carried / f[:, pair, None])
    return f, torch.stack(curves, dim=1)


def _pair_of_curves(hypercube: Hypercube, place: Tensor, delta_g: Tensor) -> list[Tensor]:
    """g+ and g- (n, K) from the places on the line g+ - g- = delta_g (n, free knots)."""
    g_err_us = hypercube.g_err * (hypercube.g_max - hypercube.g_min)
    low = hypercube.g_min + delta_g.clamp(min=0) - g_err_us
    high = hypercube.g_max + delta_g.clamp(max=0) + g_err_us
    g_plus = (place * (high - low) + low).clamp(hypercube.g_min, hypercube.g_max)
    g_minus = (g_plus - delta_g).clamp(hypercube.g_min, hypercube.g_max)
    if not hypercube.symmetric:
        return [g_plus, g_minus]
    inner = slice(0, hypercube.nbins - 1)
    return [
        torch.cat([g_plus[:, inner], g_minus.flip(1)], dim=1),
        torch.cat([g_minus[:, inner], g_plus.flip(1)], dim=1),
    ]
