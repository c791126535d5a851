"""The two forms of one network: digital, and on analog tiles."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from aihwkit.nn.conversion import convert_to_analog, convert_to_digital
from aihwkit.simulator.configs import InferenceRPUConfig
from torch import nn

from wpo_optuna.apply import analog_tiles
from wpo_optuna.errors import InvalidArgument


@dataclass(frozen=True)
class NetworkForms:
    """One network in both forms.

    Attributes:
        digital: the ideal network, without any noise; None where aihwkit cannot convert an analog
            network back.
        analog: the network on analog tiles.
    """

    digital: nn.Module | None
    analog: nn.Module

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
        return cls(model, analog)


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
