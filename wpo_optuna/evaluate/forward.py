"""The analogue forward pass of a tile, for many inputs at once.

Order of operations, and what is drawn anew for each input, are those of aihwkit's compiled tile
(RPUCuda, ``ForwardBackwardPassIOManaged``): noise management, DAC, bound, input noise, product,
weight noise, output noise, ADC, bound. Bound management repeats the inputs of which an output
exceeds the bound at half their strength, and again, each input by itself.

The weight noise of an output is normal with a variance that follows from the inputs and the
weights, so that weight and output noise are a single draw.
"""

from __future__ import annotations

import torch
from aihwkit.simulator.parameters.enums import (
    AnalogMVType,
    BoundManagementType,
    NoiseManagementType,
    WeightNoiseType,
)
from aihwkit.simulator.parameters.io import IOParameters, IOParametersIRDropT
from torch import Tensor

# Settings that aihwkit's tile alone simulates where they are above 0.
_MUST_BE_OFF = (
    "ir_drop", "out_nonlinearity", "slope_calibration", "v_offset_std", "r_series",
    "w_read_asymmetry_dtod", "inp_asymmetry", "out_asymmetry", "inp_sto_round", "out_sto_round",
    "out_noise_std",
)  # fmt: skip
_NOISE_MANAGEMENTS = (
    NoiseManagementType.NONE,
    NoiseManagementType.ABS_MAX,
    NoiseManagementType.MAX,
    NoiseManagementType.CONSTANT,
)
_BOUND_MANAGEMENTS = (BoundManagementType.NONE, BoundManagementType.ITERATIVE)

# Inputs at a time: what is computed of them should stay in the processor's cache.
_BLOCK = 1024


def why_not_known(io: IOParameters) -> str | None:
    """The first setting of a forward pass that :class:`AnalogForward` does not know, if any."""
    if is_ideal(io):
        return None
    refused = {name: getattr(io, name) > 0 for name in _MUST_BE_OFF} | {
        "mv_type": io.mv_type != AnalogMVType.ONE_PASS,
        "bound_management": io.bound_management not in _BOUND_MANAGEMENTS,
        "noise_management": io.noise_management not in _NOISE_MANAGEMENTS,
        "bm_test_negative_bound": io.out_bound > 0 and not io.bm_test_negative_bound,
    }
    named = [f"has {name} = {getattr(io, name)}" for name, is_so in refused.items() if is_so]
    if isinstance(io, IOParametersIRDropT):
        named.append(f"is a {type(io).__name__}")
    return f"rpu_config.forward {named[0]}" if named else None


def is_ideal(io: IOParameters) -> bool:
    """Whether a forward pass is a product of matrices."""
    return io.is_perfect or io.mv_type == AnalogMVType.IDEAL


class AnalogForward:
    """The forward pass of tiles with equal settings.

    Args:
        io: the settings, of which all are known (see :func:`why_not_known`).
    """

    def __init__(self, io: IOParameters) -> None:
        self._io = io
        self._inp_step = _step(io.inp_res, io.inp_bound)
        self._out_step = _step(io.out_res, io.out_bound)
        self._has_weight_noise = io.w_noise > 0 and io.w_noise_type != WeightNoiseType.NONE

    def outputs(self, weights: Tensor, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Outputs ``(n, out)``, with noise that is drawn from a generator.

        Args:
            weights: ``(out, in)``, unitless.
            inputs: ``(n, in)``, unitless.
            generator: on the device of both.
        """
        if is_ideal(self._io):
            return inputs @ weights.T * self._io.out_scale
        magnitudes = weights
        if self._has_weight_noise and self._io.w_noise_type == WeightNoiseType.PCM_READ:
            magnitudes = weights.abs().mul_(self._io.w_noise**2)
        blocks = [
            self._managed(weights, magnitudes, block, generator) for block in inputs.split(_BLOCK)
        ]
        return torch.cat(blocks) if len(blocks) > 1 else blocks[0]

    def _managed(
        self, weights: Tensor, magnitudes: Tensor, inputs: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Outputs (n, out), with noise and bound management."""
        io = self._io
        strength = self._strength(inputs)
        scale = strength.where(strength > 0, 1.0).reciprocal()
        outputs, exceeds = self._pass(weights, magnitudes, inputs * scale, generator)
        reduction = 1.0
        while exceeds is not None and not self._is_last_pass(reduction):
            reduction *= 2
            again = exceeds.nonzero()[:, 0]
            scale[again] *= 0.5
            outputs[again], exceeds_again = self._pass(
                weights, magnitudes, inputs[again] * scale[again], generator
            )
            exceeds = None
            if exceeds_again is not None:
                exceeds = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
                exceeds[again[exceeds_again]] = True
        outputs *= io.out_scale / scale
        if io.inp_noise <= 0 and bool((strength <= 0).any()):
            outputs.masked_fill_(strength <= 0, 0.0)  # such inputs are not computed at all
        return outputs

    def _pass(
        self, weights: Tensor, magnitudes: Tensor, inputs: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """One pass; the inputs may be changed.

        Returns:
            Outputs (n, out), and which inputs (n,) bound management repeats; None if it is none.
        """
        io = self._io
        if self._inp_step > 0:
            inputs.div_(self._inp_step).round_().mul_(self._inp_step)
        if io.inp_bound > 0:
            inputs.clamp_(-io.inp_bound, io.inp_bound)
        if io.inp_noise > 0:
            inputs.addcmul_(_normal_like(inputs, generator), inputs.new_tensor(io.inp_noise))
        outputs = inputs @ weights.T
        deviation = self._noise_deviation(magnitudes, inputs)
        if deviation is not None:
            outputs.addcmul_(_normal_like(outputs, generator), deviation)
        if self._out_step > 0:
            outputs.div_(self._out_step).round_().mul_(self._out_step)
        return outputs, self._bound(outputs)

    def _noise_deviation(self, magnitudes: Tensor, inputs: Tensor) -> Tensor | None:
        """Standard deviation of weight and output noise together, broadcast to (n, out)."""
        io = self._io
        own = max(io.out_noise, 0.0)
        if not self._has_weight_noise:
            return inputs.new_tensor(own) if own > 0 else None
        if io.w_noise_type == WeightNoiseType.PCM_READ:
            variance = inputs.square() @ magnitudes.T
        else:
            variance = inputs.square().sum(dim=1, keepdim=True).mul_(io.w_noise**2)
        return variance.add_(own**2).sqrt_()

    def _bound(self, outputs: Tensor) -> Tensor | None:
        """Clips in place; returns which inputs (n,) bound management repeats, if any."""
        bound = self._io.out_bound
        if bound <= 0:
            return None
        lowest, highest = (float(extreme) for extreme in torch.aminmax(outputs))
        # In single precision, as the outermost step of the converter is the bound but for rounding.
        limit = float(torch.tensor(bound, dtype=torch.float32))
        if -limit <= lowest and highest <= limit:
            return None
        exceeds = (outputs.abs() > limit).any(dim=1)
        outputs.clamp_(-limit, limit)
        return None if self._io.bound_management == BoundManagementType.NONE else exceeds

    def _strength(self, inputs: Tensor) -> Tensor:
        """What noise management divides inputs by, ``(n, 1)``."""
        io, kind = self._io, self._io.noise_management
        if kind == NoiseManagementType.NONE:
            return inputs.new_ones(len(inputs), 1)
        if kind == NoiseManagementType.CONSTANT:
            return inputs.new_full((len(inputs), 1), io.nm_thres if io.nm_thres > 0 else 1.0)
        strength = inputs.amax(dim=1, keepdim=True)
        if kind == NoiseManagementType.ABS_MAX:
            strength = torch.maximum(strength, -inputs.amin(dim=1, keepdim=True))
        return strength.clamp(max=io.nm_thres) if io.nm_thres > 0 else strength

    def _is_last_pass(self, reduction: float) -> bool:
        io = self._io
        is_resolved = self._inp_step > 0 and reduction > io.max_bm_res / self._inp_step
        return int(reduction) > io.max_bm_factor or is_resolved


def _normal_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty_like(tensor).normal_(generator=generator)


def _step(resolution: float, bound: float) -> float:
    """A converter's step, its resolution given as a fraction of its range or as number of steps.

    In single precision, as in the compiled tile: there the last bit decides whether the outermost
    step counts as beyond the bound.
    """
    if resolution <= 0:
        return 0.0
    share = torch.tensor(resolution, dtype=torch.float32)
    share = share.reciprocal() if resolution > 1 else share
    return float(share * (2 * torch.tensor(bound, dtype=torch.float32)))
