"""From weights to conductances and back, for a batch of matrices.

A conversion takes matrices ``(n, out, in)`` to conductances of D devices ``(n, D, out, in)`` in µS
and a scale, and with that scale back. Its n strategies go with n matrices, one each; either n may
be 1 and is then repeated.
"""

from __future__ import annotations

from typing import Any

import torch
from aihwkit.inference.converter.base import BaseConductanceConverter
from aihwkit.inference.converter.conductance import CustomPairConductanceConverter
from torch import Tensor

# aihwkit's _ZERO_CLIP: the smallest largest weight that conductances are scaled by.
_SMALLEST_MAX_WEIGHT = 1e-7


class CurveConversion:
    """Strategies given by curves, as in aihwkit's ``CustomPairConductanceConverter``.

    The curves span [-m', m'], where m' is the largest absolute weight of the matrix at hand: of
    the targets when programming, of the programmed weights when these drift.

    Args:
        f: significance factors ``(n, P)``.
        curves: conductances in µS at K evenly spaced knots ``(n, 2P, K)``, ordered g⁺ of pair 0,
            g⁻ of pair 0, ...
    """

    def __init__(self, f: Tensor, curves: Tensor) -> None:
        self._f = f
        self._curves = curves
        self._max_weight_us = self._signed_sum(curves).abs().amax(dim=1)

    def to_conductances(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Conductances, and the scale ``(n,)`` in µS per unit weight."""
        flat = weights.flatten(1)
        max_weight = flat.abs().amax(dim=1).clamp(min=_SMALLEST_MAX_WEIGHT)
        conductances = self._at(flat / max_weight[:, None])
        return conductances.unflatten(2, weights.shape[1:]), self._max_weight_us / max_weight

    def to_weights(self, conductances: Tensor, scale: Any) -> Tensor:
        """Weights, unitless."""
        return self._signed_sum(conductances).div_(scale[:, None, None])

    def _at(self, u: Tensor) -> Tensor:
        """The curves (n, 2P, N) at u (n, N), from -1 to 1; NaN stays NaN."""
        n, n_knots = max(len(self._curves), len(u)), self._curves.shape[2]
        position = (u + 1) * ((n_knots - 1) / 2)
        # An index made of NaN would lie anywhere.
        segment = position.clamp(0, n_knots - 2).nan_to_num_(0.0).floor_()
        index = segment.long()[:, None].expand(n, self._curves.shape[1], -1)
        start = self._curves.expand(n, -1, -1).gather(2, index)
        rise = self._curves.diff(dim=2).expand(n, -1, -1).gather(2, index)
        return start.addcmul_(rise, (position - segment)[:, None])

    def _signed_sum(self, conductances: Tensor) -> Tensor:
        """Σ_p f_p (g⁺_p − g⁻_p) in µS, added up pair by pair as aihwkit's converters do."""
        total = torch.zeros((), device=conductances.device)
        for pair, f in enumerate(self._f.unbind(dim=1)):
            difference = conductances[:, 2 * pair] - conductances[:, 2 * pair + 1]
            total = total + difference.mul_(f.reshape(-1, *(1 for _ in difference.shape[1:])))
        return total


class ConverterConversion:
    """Any aihwkit converter, called for one matrix at a time."""

    def __init__(self, converter: BaseConductanceConverter) -> None:
        self._converter = converter

    def to_conductances(self, weights: Tensor) -> tuple[Tensor, list[Any]]:
        """Conductances, and the converter's parameters for each matrix."""
        converted = [self._converter.convert_to_conductances(w.clone()) for w in weights]
        # Iterating is what aihwkit does too: one of its converters returns a single tensor.
        stacked = [torch.stack(list(conductances)) for conductances, _ in converted]
        return torch.stack(stacked), [parameters for _, parameters in converted]

    def to_weights(self, conductances: Tensor, scale: Any) -> Tensor:
        """Weights, unitless."""
        parameters = scale * len(conductances) if len(scale) == 1 else scale
        back = self._converter.convert_back_to_weights
        return torch.stack(
            [back(list(g), p) for g, p in zip(conductances, parameters, strict=True)]
        )


Conversion = CurveConversion | ConverterConversion


def conversion_of(converter: BaseConductanceConverter, device: torch.device) -> Conversion:
    """The conversion of an aihwkit converter, evaluated as curves where it is given by curves."""
    # A subclass may do anything, so it is called.
    if type(converter) is not CustomPairConductanceConverter or len(converter.g_lst[0]) < 2:
        return ConverterConversion(converter)
    f = torch.tensor([converter.f_lst], dtype=torch.float32, device=device)
    curves = torch.tensor([converter.g_lst], dtype=torch.float32, device=device)
    return CurveConversion(f, curves)
