"""The analogue forward pass of a tile, for many inputs at once.

Its periphery is that of :mod:`wpo_optuna.loss.forward_pass`; what is drawn, is drawn anew for each
input, and bound management repeats each input by itself.

The weight noise of an output is normal with a variance that follows from the inputs and the
weights, so that weight and output noise are a single draw.
"""

from __future__ import annotations

import torch
from aihwkit.simulator.parameters.enums import NoiseManagementType, WeightNoiseType
from aihwkit.simulator.parameters.io import IOParameters
from torch import Tensor

from wpo_optuna.loss import forward_pass
from wpo_optuna.loss.forward_pass import ForwardPass

# Inputs at a time: what is computed of them should stay in the processor's cache.
_BLOCK = 1024


def why_not_known(io: IOParameters) -> str | None:
    """The first setting of a forward pass that :class:`AnalogForward` does not know, if any."""
    unknown = (NoiseManagementType.AVERAGE_ABS_MAX, NoiseManagementType.ABS_MAX_NP_SUM)
    return forward_pass.why_not_known(io, ("ir_drop",), unknown)


class AnalogForward(ForwardPass):
    """The forward pass of tiles with equal settings.

    Args:
        io: the settings, of which all are known (see :func:`why_not_known`).
    """

    def outputs(self, weights: Tensor, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Outputs ``(n, out)``, with noise that is drawn from a generator.

        Args:
            weights: ``(out, in)``, unitless.
            inputs: ``(n, in)``, unitless.
            generator: on the device of both.
        """
        if self.is_ideal:
            return inputs @ weights.T * self.io.out_scale
        magnitudes = weights
        if self.has_weight_noise and self.io.w_noise_type == WeightNoiseType.PCM_READ:
            magnitudes = weights.abs().mul_(self.io.w_noise**2)
        blocks = [
            self._managed(weights, magnitudes, block, generator) for block in inputs.split(_BLOCK)
        ]
        return torch.cat(blocks) if len(blocks) > 1 else blocks[0]

    def _managed(
        self, weights: Tensor, magnitudes: Tensor, inputs: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Outputs (n, out), with noise and bound management."""
        io, strength = self.io, self.strength(inputs)
        scale = strength.where(strength > 0, 1.0).reciprocal()
        outputs, exceeds = self._pass(weights, magnitudes, inputs * scale, generator)
        reduction = 1.0
        while exceeds is not None and not self.is_last_pass(reduction):
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
        self.convert_inputs(inputs)
        if self.io.inp_noise > 0:
            inputs.addcmul_(_normal_like(inputs, generator), inputs.new_tensor(self.io.inp_noise))
        outputs = inputs @ weights.T
        deviation = self._noise_deviation(magnitudes, inputs)
        if deviation is not None:
            outputs.addcmul_(_normal_like(outputs, generator), deviation)
        return outputs, self.convert_outputs(outputs)

    def _noise_deviation(self, magnitudes: Tensor, inputs: Tensor) -> Tensor | None:
        """Standard deviation of weight and output noise together, broadcast to (n, out)."""
        io, own = self.io, max(self.io.out_noise, 0.0)
        if not self.has_weight_noise:
            return inputs.new_tensor(own) if own > 0 else None
        if io.w_noise_type == WeightNoiseType.PCM_READ:
            variance = inputs.square() @ magnitudes.T
        else:
            variance = inputs.square().sum(dim=1, keepdim=True).mul_(io.w_noise**2)
        return variance.add_(own**2).sqrt_()


def _normal_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty_like(tensor).normal_(generator=generator)
