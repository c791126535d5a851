"""aihwkit's inference tiles with their forward pass in torch.

An inference tile of aihwkit (``InferenceTile``) is a torch module around a compiled simulator tile,
which holds the weights and multiplies with them; programming, drift and its compensation, input
ranges, output scales and splitting layers over tiles are the module's and its layer's. For a while
:class:`TorchTile` takes the compiled tile's place: all else stays aihwkit's own code.
"""

from __future__ import annotations

from typing import Any

import torch
from aihwkit.simulator.parameters.enums import RPUDataType
from aihwkit.simulator.tiles import InferenceTile
from aihwkit.simulator.tiles.module import TileModule
from torch import Tensor

from wpo_optuna.evaluate.forward import AnalogForward, why_not_known


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
