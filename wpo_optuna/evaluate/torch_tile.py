"""aihwkit's inference tiles with their forward pass in torch.

An inference tile of aihwkit (``InferenceTile``) is a torch module around a compiled simulator tile,
which holds the weights and multiplies with them; programming, drift and its compensation, input
ranges, output scales and splitting layers over tiles are the module's and its layer's. For a while
:class:`TorchTile` takes the compiled tile's place: all else stays aihwkit's own code.

The periphery is that of :mod:`wpo_optuna.loss.forward_pass`; what is drawn, is drawn anew for each
input, and bound management repeats each input by itself. The weight noise of an output is normal
with a variance that follows from the inputs and the weights, so that weight and output noise are a
single draw.
"""

from __future__ import annotations

from typing import Any

import torch
from aihwkit.simulator.parameters.enums import NoiseManagementType, RPUDataType, WeightNoiseType
from aihwkit.simulator.parameters.io import IOParameters
from aihwkit.simulator.tiles import InferenceTile
from aihwkit.simulator.tiles.module import TileModule
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


class TorchTile:
    """A simulator tile for inference; what it does not do itself the compiled tile answers.

    Attributes:
        compiled: the tile that it stands for, whose weights are not those of this one.
        generator: what the noise of forward passes is drawn from.

    Args:
        tile: the inference tile around it; see :func:`why_not_in_torch`.
        device: where to compute.
    """

    def __init__(self, tile: InferenceTile, device: torch.device) -> None:
        self.compiled = tile.tile
        self.generator = torch.Generator(device)
        self._forward = AnalogForward(tile.rpu_config.forward)
        self._weights = self.compiled.get_weights().to(device)
        self._indices: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        """What only the compiled tile knows."""
        if name == "compiled":  # not yet there, while a copy is made
            raise AttributeError(name)
        return getattr(self.compiled, name)

    def get_weights(self) -> Tensor:
        """A copy of the weights ``(out, in)``, on the CPU as aihwkit expects them."""
        return self._weights.to("cpu", copy=True)

    def set_weights(self, weights: Tensor) -> None:
        """Takes a copy of weights ``(out, in)``."""
        self._weights = weights.detach().to(self._weights, copy=True)

    def set_shared_weights(self, weights: Tensor) -> None:
        """Nothing: memory is shared with the compiled tile, for training."""

    def forward(
        self,
        x_input: Tensor,
        bias: bool = False,
        in_trans: bool = False,
        out_trans: bool = False,
        is_test: bool = False,
        non_blocking: bool = False,
    ) -> Tensor:
        """Outputs ``(..., out)`` for inputs ``(..., in)``."""
        inputs = x_input.mT if in_trans else x_input
        shape = inputs.shape[:-1]
        inputs = inputs.reshape(-1, inputs.shape[-1])
        if bias:
            inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
        outputs = self._forward.outputs(self._weights, inputs, self.generator)
        outputs = outputs.reshape(*shape, -1)
        return outputs.mT if out_trans else outputs

    # Convolutions, where aihwkit does not unfold the images itself

    def set_matrix_indices(self, indices: Tensor) -> None:
        """Where each input of the tile ``(in, places)`` is in an image, flattened and in one.

        Counted from 2: 0 stands for the number 0 and 1 for the number 1.
        """
        self._indices = indices.long()

    def has_matrix_indices(self) -> bool:
        """Whether they were set."""
        return self._indices is not None

    def forward_indexed(
        self, x_input: Tensor, d_tensor: Tensor, is_test: bool = False, non_blocking: bool = False
    ) -> Tensor:
        """Outputs of the shape of d_tensor ``(n, out, ...)`` for images ``(n, ...)``."""
        assert self._indices is not None
        images = x_input.flatten(1)
        numbers = torch.cat(
            [images.new_zeros(len(images), 1), images.new_ones(len(images), 1), images], dim=1
        )
        unfolded = numbers[:, self._indices].unflatten(1, (self._weights.shape[1], -1)).mT
        return self.forward(unfolded).mT.reshape(d_tensor.shape)


def why_not_in_torch(tile: TileModule) -> str | None:
    """Why a tile cannot be computed by a :class:`TorchTile`, if so."""
    config = tile.rpu_config
    if type(tile) is not InferenceTile:
        return f"the tile is a {type(tile).__name__}"
    if tile.get_data_type() != RPUDataType.FLOAT:
        return f"rpu_config.runtime has data_type = {tile.get_data_type()}"
    if config.modifier.enable_during_test:
        return "rpu_config.modifier has enable_during_test = True"
    return why_not_known(config.forward)
