"""The two forms of one network: digital, and on analog tiles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from aihwkit.nn.conversion import convert_to_analog, convert_to_digital
from aihwkit.simulator.configs import InferenceRPUConfig
from torch import nn

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.network.apply import analog_tiles


@dataclass(frozen=True)
class NetworkForms:
    """One network in both forms.

    Attributes:
        digital: the ideal network, without any noise; None where aihwkit cannot convert an analog
            network back.
        analog: the network on analog tiles.
        is_converted: whether the analog form was made here, from the digital one.
    """

    digital: nn.Module | None
    analog: nn.Module
    is_converted: bool = False

    @classmethod
    def of(cls, model: object, rpu_config: InferenceRPUConfig | None) -> NetworkForms:
        """Both forms of a model that has one of them; the model itself stays as it is.

        Args:
            model: a digital network, or one with analog layers.
            rpu_config: the hardware of a digital network; an analog one has its own.

        Raises:
            InvalidArgument: the model is no network, has no layer that can be analog, or the
                hardware is missing or given twice.
        """
        if not isinstance(model, nn.Module):
            raise InvalidArgument(
                f"model is a {type(model).__name__}: a torch module is needed, digital or "
                "converted to analog."
            )
        if any(analog_tiles(model)):
            if rpu_config is not None:
                raise InvalidArgument(
                    "rpu_config: the model has analog layers, whose hardware is settled already; "
                    "leave this out, or give the digital model."
                )
            return cls(_digital_form(model), deepcopy(model))
        if rpu_config is None:
            raise InvalidArgument("rpu_config: a digital model needs the hardware it runs on.")
        analog = convert_to_analog(model, rpu_config)
        if not any(analog_tiles(analog)):
            raise InvalidArgument(
                f"model is a {type(model).__name__} without a linear or convolutional layer that "
                "aihwkit converts to analog."
            )
        return cls(model, analog, is_converted=True)

    @contextmanager
    def setting_input_ranges(self) -> Iterator[None]:
        """Sets the tiles' input ranges to the largest inputs that the digital layers get inside.

        Hardware with input ranges (such as ``StandardHWATrainingPreset``) clips inputs beyond them.
        Hardware-aware training learns the ranges; after a conversion they are aihwkit's initial
        guess, which has nothing to do with the network. Networks that came as analog ones, and
        hardware without input ranges, are left alone.
        """
        tiles = [
            tile
            for tile in analog_tiles(self.analog)
            if self.is_converted and getattr(tile.tile, "input_range", None) is not None
        ]
        largest = dict.fromkeys((tile.layer for tile in tiles), 0.0)
        with ExitStack() as stack:
            for layer in largest:

                def observe(_: nn.Module, inputs: tuple[Any, ...], layer: str = layer) -> None:
                    largest[layer] = max(largest[layer], float(inputs[0].abs().max()))

                assert self.digital is not None
                module = self.digital.get_submodule(layer)
                stack.callback(module.register_forward_pre_hook(observe).remove)
            yield
        for tile in tiles:
            if largest[tile.layer] > 0:
                tile.tile.set_input_range(largest[tile.layer])


@torch.no_grad()
def _digital_form(analog: nn.Module) -> nn.Module | None:
    unprogrammed = deepcopy(analog)
    for tile in analog_tiles(unprogrammed):
        # A network that was programmed before holds noisy weights beside those it was given.
        reference = getattr(tile.tile, "reference_combined_weights", None)
        if reference is not None:
            tile.tile.tile.set_weights(reference)
    digital = convert_to_digital(unprogrammed, inplace=True)
    return None if any(analog_tiles(digital)) else digital
