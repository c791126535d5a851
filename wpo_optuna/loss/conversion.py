"""From weights to conductances and back, for a batch of matrices."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from aihwkit.inference.converter.base import BaseConductanceConverter
from aihwkit.inference.converter.conductance import CustomPairConductanceConverter
from torch import Tensor

from wpo_optuna.loss.curves import evaluate_curves, signed_sum

# aihwkit's _ZERO_CLIP: the smallest largest weight that conductances are scaled by.
_SMALLEST_MAX_WEIGHT = 1e-7


class Conversion(Protocol):
    """How weights become conductances of D devices, and conductances weights again.

    Its n strategies go with n matrices, one each; either n may be 1 and is then repeated.
    """

    def to_conductances(self, weights: Tensor) -> tuple[Tensor, Any]:
        """Conductances of weights ``(n, out, in)``, and the scales for :meth:`to_weights`.

        Returns:
            conductances ``(n, D, out, in)`` in µS, and what :meth:`to_weights` needs.
        """

    def to_weights(self, conductances: Tensor, scales: Any) -> Tensor:
        """Weights ``(n, out, in)``, unitless, of conductances ``(n, D, out, in)`` in µS."""


class CurveConversion:
    """Strategies given by curves, as in aihwkit's ``CustomPairConductanceConverter``.

    The curves span [-m', m'], where m' is the largest absolute weight of the matrix at hand: of
    the targets when programming, of the programmed weights when these drift.

    Args:
        f: significance factors ``(n, P)``.
        curves: conductances in µS at the knots ``(n, 2P, K)``.
    """

    def __init__(self, f: Tensor, curves: Tensor) -> None:
        self._f = f
        self._curves = curves
        self._max_weight_us = signed_sum(curves, f).abs().amax(dim=1)

    def to_conductances(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Conversion.to_conductances`; scales ``(n,)`` in µS per unit weight."""
        flat = weights.flatten(1)
        max_weight = flat.abs().amax(dim=1).clamp(min=_SMALLEST_MAX_WEIGHT)
        u = flat / max_weight[:, None]
        conductances = evaluate_curves(self._curves, u)
        scales = self._max_weight_us / max_weight
        return conductances.unflatten(2, weights.shape[1:]), scales

    def to_weights(self, conductances: Tensor, scales: Tensor) -> Tensor:
        """See :meth:`Conversion.to_weights`."""
        return signed_sum(conductances, self._f).div_(scales[:, None, None])


class ConverterConversion:
    """Any aihwkit converter, called for one matrix at a time.

    Args:
        converter: the converter.
    """

    def __init__(self, converter: BaseConductanceConverter) -> None:
        self._converter = converter

    def to_conductances(self, weights: Tensor) -> tuple[Tensor, list[Any]]:
        """See :meth:`Conversion.to_conductances`."""
        converted = [self._converter.convert_to_conductances(w.clone()) for w in weights]
        # Iterating is what aihwkit does too: one of its converters returns a single tensor.
        stacked = [torch.stack(list(conductances)) for conductances, _ in converted]
        return torch.stack(stacked), [parameters for _, parameters in converted]

    def to_weights(self, conductances: Tensor, scales: list[Any]) -> Tensor:
        """See :meth:`Conversion.to_weights`."""
        if len(scales) == 1:
            scales = scales * len(conductances)
        return torch.stack(
            [
                self._converter.convert_back_to_weights(list(g), parameters)
                for g, parameters in zip(conductances, scales, strict=True)
            ]
        )


def conversion_of(converter: BaseConductanceConverter, device: torch.device) -> Conversion:
    """The conversion of an aihwkit converter, evaluated as curves where it is given by curves."""
    # A subclass may do anything, so it is called.
    if type(converter) is not CustomPairConductanceConverter or len(converter.g_lst[0]) < 2:
        return ConverterConversion(converter)
    f = torch.tensor([converter.f_lst], dtype=torch.float32, device=device)
    curves = torch.tensor([converter.g_lst], dtype=torch.float32, device=device)
    return CurveConversion(f, curves)
