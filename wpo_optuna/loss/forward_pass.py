"""The periphery of a tile: what stands before and behind the product with its weights.

Order of operations and rounding are those of aihwkit's compiled tile (RPUCuda,
``ForwardBackwardPassIOManaged``, single precision): noise management, DAC, bound, input noise,
product, IR drop, weight noise, output noise, ADC, bound. Bound management repeats an input at half
its strength, and again, while one of its outputs exceeds the bound.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from aihwkit.simulator.parameters.enums import (
    AnalogMVType,
    BoundManagementType,
    NoiseManagementType,
    WeightNoiseType,
)
from aihwkit.simulator.parameters.io import IOParameters, IOParametersIRDropT
from torch import Tensor

# Settings that couple the outputs or are hardly ever used: aihwkit's tile alone simulates them.
_MUST_BE_OFF = (
    "out_nonlinearity", "slope_calibration", "v_offset_std", "r_series", "w_read_asymmetry_dtod",
    "inp_asymmetry", "out_asymmetry", "inp_sto_round", "out_sto_round", "out_noise_std",
)  # fmt: skip
_BOUND_MANAGEMENTS = (BoundManagementType.NONE, BoundManagementType.ITERATIVE)


def why_not_known(
    io: IOParameters,
    must_be_off: Collection[str] = (),
    unknown: Collection[NoiseManagementType] = (NoiseManagementType.ABS_MAX_NP_SUM,),
) -> str | None:
    """The first setting that a :class:`ForwardPass` does not know, if any.

    Args:
        io: the settings.
        must_be_off: further settings that must not be above 0.
        unknown: kinds of noise management that are not known.
    """
    if is_ideal(io):
        return None
    off = (*must_be_off, *_MUST_BE_OFF)
    refused = {name: getattr(io, name) > 0 for name in off} | {
        "mv_type": io.mv_type != AnalogMVType.ONE_PASS,
        "bound_management": io.bound_management not in _BOUND_MANAGEMENTS,
        "noise_management": io.noise_management in unknown,
        "bm_test_negative_bound": io.out_bound > 0 and not io.bm_test_negative_bound,
    }
    named = [f"has {name} = {getattr(io, name)}" for name, is_so in refused.items() if is_so]
    if isinstance(io, IOParametersIRDropT):
        named.append(f"is a {type(io).__name__}")
    return f"rpu_config.forward {named[0]}" if named else None


def is_ideal(io: IOParameters) -> bool:
    """Whether a forward pass is a product of matrices."""
    return io.is_perfect or io.mv_type == AnalogMVType.IDEAL


class ForwardPass:
    """What forward passes with equal settings have in common.

    Args:
        io: the settings, of which all are known (see :func:`why_not_known`).
        real: the precision in which the tile computes the steps of its converters.

    Attributes:
        io: the settings.
        is_ideal: whether the pass is a product of matrices.
        has_weight_noise: whether weights are read with noise.
        out_bound: largest output; infinite if there is no bound.
    """

    def __init__(self, io: IOParameters, real: Any = np.float32) -> None:
        self.io = io
        self.is_ideal = is_ideal(io)
        self.has_weight_noise = io.w_noise > 0 and io.w_noise_type != WeightNoiseType.NONE
        # The last bit decides whether the ADC's outermost step counts as beyond the bound.
        self._inp_step = _step(real(io.inp_res), real(io.inp_bound))
        self._out_step = _step(real(io.out_res), real(io.out_bound))
        self._inp_bound = _bound(io.inp_bound)
        self.out_bound = _bound(io.out_bound)

    def strength(self, inputs: Tensor) -> Tensor:
        """What noise management divides inputs ``(n, in)`` by, ``(n, 1)``."""
        threshold, kind = self.io.nm_thres, self.io.noise_management
        if kind in (NoiseManagementType.NONE, NoiseManagementType.AVERAGE_ABS_MAX):
            return inputs.new_ones(len(inputs), 1)
        if kind == NoiseManagementType.CONSTANT:
            return inputs.new_full((len(inputs), 1), threshold if threshold > 0 else 1.0)
        strength = inputs.amax(dim=1, keepdim=True)
        if kind == NoiseManagementType.ABS_MAX:
            strength = torch.maximum(strength, -inputs.amin(dim=1, keepdim=True))
        return strength.clamp(max=threshold) if threshold > 0 else strength

    def convert_inputs(self, inputs: Tensor) -> None:
        """What the DAC makes of inputs, in place."""
        if self._inp_step > 0:
            inputs.div_(self._inp_step).round_().mul_(self._inp_step)
        inputs.clamp_(-self._inp_bound, self._inp_bound)

    def convert_outputs(self, outputs: Tensor) -> Tensor | None:
        """What the ADC makes of outputs ``(n, out, ...)``, in place.

        Returns:
            which inputs ``(n, ...)`` bound management repeats; None if it is none of them.
        """
        if self._out_step > 0:
            outputs.div_(self._out_step).round_().mul_(self._out_step)
        lowest, highest = (float(extreme) for extreme in torch.aminmax(outputs))
        if -self.out_bound <= lowest and highest <= self.out_bound:
            return None
        exceeds = (outputs.abs() > self.out_bound).any(dim=1)
        outputs.clamp_(-self.out_bound, self.out_bound)
        return None if self.io.bound_management == BoundManagementType.NONE else exceeds

    def is_last_pass(self, reduction: float) -> bool:
        """Whether bound management gives up at inputs divided by this, a power of 2."""
        is_resolved = self._inp_step > 0 and reduction > self.io.max_bm_res / self._inp_step
        return reduction > self.io.max_bm_factor or is_resolved


def _step(resolution: Any, bound: Any) -> float:
    """The converter's step, given as a fraction of its range or as the number of steps.

    Both are numpy numbers of the precision in which the tile computes it.
    """
    step = max(resolution, type(resolution)(0))
    return float((1 / step if step > 1 else step) * (2 * bound))


def _bound(bound: float) -> float:
    """A converter's bound; one that is not positive is none."""
    return float(np.float32(bound)) if bound > 0 else float("inf")
