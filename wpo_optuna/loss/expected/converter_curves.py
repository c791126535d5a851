"""Any aihwkit converter as piecewise linear curves, by asking it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from aihwkit.inference.converter.base import BaseConductanceConverter
from aihwkit.inference.converter.conductance import CustomPairConductanceConverter
from numpy.typing import NDArray
from torch import Tensor

from wpo_optuna.errors import InvalidArgument, first_line

FloatArray = NDArray[np.float64]

# Knots for converters that are not given by curves: many, since their kinks may lie anywhere.
_FINE_KNOTS = 401

_TOLERANCE = 1e-4


@dataclass(frozen=True)
class ConverterCurves:
    """What the expected loss needs to know of a converter.

    Attributes:
        factors: signed factor of each device in the weight ``(D,)``.
        knots: weights over the largest one ``(K,)``, from -1 to 1.
        curves: conductances in µS at the knots, linear between them ``(D, K)``.
    """

    factors: FloatArray
    knots: FloatArray
    curves: FloatArray


def curves_of(converter: BaseConductanceConverter, n_knots: int) -> ConverterCurves:
    """Describes a converter by curves.

    Args:
        converter: any of aihwkit's converters.
        n_knots: number of knots, where so many do for the kinks of the curves.

    Raises:
        InvalidArgument: the converter does more than span curves over the largest absolute
            weight and add up conductances.
    """
    # A subclass may do anything, so it is asked.
    if type(converter) is CustomPairConductanceConverter:
        f, curves = np.array(converter.f_lst, np.float64), np.array(converter.g_lst, np.float64)
        factors = np.stack([f, -f], axis=1).ravel()
        return ConverterCurves(factors, np.linspace(-1, 1, curves.shape[1]), curves)
    try:
        factors_asked, asked = _by_asking(converter)
        is_linear = _spans_the_largest_weight(converter, factors_asked, asked)
    # Converters raise what they like.
    except Exception as error:
        raise _unusable(converter, first_line(error)) from error
    if not is_linear:
        raise _unusable(
            converter, "its conductances do not follow from the weight over the largest weight"
        )
    curves = asked.double().numpy()
    knots = _knots(curves, n_knots)
    fine = np.linspace(-1, 1, _FINE_KNOTS)
    at_knots = np.array([np.interp(knots, fine, curve) for curve in curves])
    return ConverterCurves(factors_asked.double().numpy(), knots, at_knots)


def _knots(curves: FloatArray, n_knots: int) -> FloatArray:
    """Ends and kinks of curves (D, fine knots), made up to so many; all knots if there are more."""
    bend = np.abs(np.diff(curves, n=2, axis=1)).max(axis=0)
    has_kink = np.concatenate([[True], bend > 1e-5 * np.ptp(curves), [True]])
    knots = np.linspace(-1, 1, _FINE_KNOTS)
    if has_kink.sum() > n_knots:
        return knots
    knots = knots[has_kink]
    while len(knots) < n_knots:
        widest = np.diff(knots).argmax()
        knots = np.insert(knots, widest + 1, knots[widest : widest + 2].mean())
    return knots


def _by_asking(converter: BaseConductanceConverter) -> tuple[Tensor, Tensor]:
    """Factors (D,) and curves (D, K), from weights between -1 and 1."""
    conductances, scale = converter.convert_to_conductances(torch.linspace(-1, 1, _FINE_KNOTS))
    # Iterating is what aihwkit does too: one of its converters returns a single tensor.
    curves = torch.stack(list(conductances))
    single_devices_on = torch.eye(len(curves))
    offset = converter.convert_back_to_weights(list(torch.zeros(len(curves), 1)), scale)
    factors = converter.convert_back_to_weights(list(single_devices_on), scale) - offset
    return factors, curves


def _spans_the_largest_weight(
    converter: BaseConductanceConverter, factors: Tensor, curves: Tensor
) -> bool:
    """Whether other matrices of weights are converted as the curves say."""
    knots = torch.linspace(-1, 1, _FINE_KNOTS)
    middle = _FINE_KNOTS // 2
    for largest, chosen in ((3.0, slice(None)), (1.0, slice(middle, None)), (0.5, slice(0, -50))):
        conductances, scale = converter.convert_to_conductances(largest * knots[chosen])
        sums = converter.convert_back_to_weights(list(conductances), scale)
        expected = largest * (factors[:, None] * curves[:, chosen]).sum(dim=0)
        if not _close(torch.stack(list(conductances)), curves[:, chosen], float(curves.max())):
            return False
        if not _close(sums, expected, largest):
            return False
    return True


def _close(one: Tensor, other: Tensor, size: float) -> bool:
    return bool((one - other).abs().max() <= _TOLERANCE * size)


def _unusable(converter: BaseConductanceConverter, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"converter = {type(converter).__name__} cannot be evaluated by the expected engine "
        f'({reason}): use the engine "montecarlo".'
    )
