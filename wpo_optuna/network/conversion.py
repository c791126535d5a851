"""A user's network in both forms: digital, and on analogue tiles."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from aihwkit.nn.conversion import convert_to_analog, convert_to_digital
from aihwkit.simulator.configs import InferenceRPUConfig
from torch import nn

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.network.account import Account, NetworkWarning, without_prefixes
from wpo_optuna.network.analogue import Choice, account_for
from wpo_optuna.network.apply import analog_tiles
from wpo_optuna.network.layers import layers_of
from wpo_optuna.network.tensors import tensors_of_network

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class NetworkForms:
    """One network in both forms.

    Attributes:
        digital: the ideal network, without any noise; None where aihwkit cannot convert an analog
            network back.
        analog: the network on analog tiles.
        account: what of it is analogue.
        places: the analog layers that hold each parameter on tiles, by name.
        restated: the digital network with equal layers in place of those that aihwkit cannot
            convert, from which the analog form was made; None if the network came as an analog
            one.
    """

    digital: nn.Module | None
    analog: nn.Module
    account: Account
    places: Mapping[str, tuple[str, ...]]
    restated: nn.Module | None = None

    @classmethod
    def of(
        cls, model: object, rpu_config: InferenceRPUConfig | None, choice: Choice | None = None
    ) -> NetworkForms:
        """Both forms of a model that has one of them; the model itself stays as it is.

        Layers that aihwkit cannot convert are replaced by equal ones that it can, where there are
        such (see :mod:`wpo_optuna.network.layers`); others stay digital, as the account says.

        Args:
            model: a digital network, or one with analog layers.
            rpu_config: the hardware of a digital network; an analog one has its own.
            choice: the parameters of a digital network that the user wants on tiles.

        Raises:
            InvalidArgument: the model is no network, has no layer that can be analog, or the
                hardware is missing or given twice; a pattern matches no parameter.
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
            name = f"the analog {type(model).__name__}"
            account, _ = account_for(tensors_of_network(model, name), Choice(), name)
            places = {f"{tile.layer}.weight": (tile.layer,) for tile in analog_tiles(model)}
            analog = _without_fast_path(copy.deepcopy(model))
            return cls(_digital_form(model), analog, account, places)
        if rpu_config is None:
            raise InvalidArgument("rpu_config: a digital model needs the hardware it runs on.")
        return cls._converted(model, rpu_config, choice or Choice())

    @classmethod
    def _converted(
        cls, model: nn.Module, rpu_config: InferenceRPUConfig, choice: Choice
    ) -> NetworkForms:
        is_widened = any(parameter.dtype in _HALF for parameter in model.parameters())
        if is_widened:
            told = "The network is of half precision, and is computed in float32."
            warnings.warn(told, NetworkWarning, stacklevel=4)
            model = copy.deepcopy(model).float()
        name = f"the {type(model).__name__}"
        account, _ = account_for(tensors_of_network(model, name), choice, name)
        wanted = {tensor.name for tensor in account.analogue}
        restated, places, digital = _restated(model, wanted)
        analog = convert_to_analog(restated, rpu_config, exclude_modules=digital)
        _without_fast_path(analog)
        if is_widened:
            for form in {model, restated, analog}:
                form.register_forward_pre_hook(_widen, with_kwargs=True)
        return cls(model, analog, account, places, restated)

    def layers_by_parameter(self, parameters: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The analog layers that hold the parameters of a checkpoint.

        Checkpoints may name parameters with a prefix that the network lacks (``module.`` of data
        parallel training, ``model.``); one that all of them share is left out.

        Args:
            parameters: names of weights in the checkpoint.

        Returns:
            names of layers, by parameter.

        Raises:
            InvalidArgument: a parameter belongs to no analog layer.
        """
        for names in without_prefixes(parameters):
            if self.places.keys() >= set(names):
                return {p: self.places[name] for p, name in zip(parameters, names, strict=True)}
        lost = next(name for name in parameters if name not in self.places)
        raise InvalidArgument(
            f"model: no analog layer of the network holds {lost!r} of the checkpoint; it has "
            f"{', '.join(map(repr, sorted(self.places)))}. Exclude what is not analog, or give the "
            "network that the checkpoint belongs to."
        )

    @contextmanager
    def setting_input_ranges(self) -> Iterator[nn.Module | None]:
        """Sets the tiles' input ranges to the largest inputs that a network gets inside.

        Hardware with input ranges (such as ``StandardHWATrainingPreset``) clips inputs beyond them.
        Hardware-aware training learns the ranges; after a conversion they are aihwkit's initial
        guess, which has nothing to do with the network. Networks that came as analog ones, and
        hardware without input ranges, are left alone.

        Yields:
            the digital network to be run; None if there is none.
        """
        tiles = [
            t for t in analog_tiles(self.analog) if getattr(t.tile, "input_range", None) is not None
        ]
        if self.restated is None or not tiles:
            yield self.digital
            return
        largest: dict[nn.Module, float] = {}

        def observe(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            largest[layer] = max(largest.get(layer, 0.0), float(inputs[0].abs().max()))

        layers = [self.restated.get_submodule(tile.layer) for tile in tiles]
        with ExitStack() as stack:
            for layer in layers:
                stack.callback(layer.register_forward_pre_hook(observe).remove)
            yield self.restated
        for tile, layer in zip(tiles, layers, strict=True):
            if largest.get(layer, 0.0) > 0:
                tile.tile.set_input_range(largest[layer])


def _restated(
    model: nn.Module, wanted: set[str]
) -> tuple[nn.Module, dict[str, tuple[str, ...]], list[str]]:
    """A network in which aihwkit can convert all that is to lie on tiles.

    Args:
        model: the network.
        wanted: names of the parameters that are to lie on tiles.

    Returns:
        the network, a copy if something had to be replaced; the layers that will hold each
        parameter on tiles; and the layers that are to stay as they are.
    """
    restated, places, digital = model, {}, []
    seen: set[nn.Module] = set()
    for layer in layers_of(model):
        names = {parameter: _joined(layer.name, parameter) for parameter in layer.matrices}
        if not layer.matrices or not wanted.issuperset(names.values()):
            digital.append(layer.name)
            continue
        for parameter, paths in layer.matrices.items():
            places[names[parameter]] = tuple(_joined(layer.name, path) for path in paths)
        # A layer that occurs twice has tiles for each place; aihwkit would convert one of them.
        make = layer.replacement
        if make is None and layer.module in seen:
            make = partial(copy.deepcopy, layer.module)
        seen.add(layer.module)
        if make is not None:
            replacement = make()
            replacement.train(layer.module.training)
            if not layer.name:
                return replacement, places, []
            if restated is model:
                restated = copy.deepcopy(model)
            restated.set_submodule(layer.name, replacement)
    return restated, places, digital


def _without_fast_path(network: nn.Module) -> nn.Module:
    """The network itself, whose transformer layers no longer compute past the layers in them.

    In evaluation mode torch's own take the weights of the layers in them for one fused function;
    analogue layers have none.
    """
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # "another activation", which torch does not fuse
    return network


def _joined(layer: str, path: str) -> str:
    return ".".join(part for part in (layer, path) if part)


def _widen(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Inputs in float32 for a network that was made for half of it."""

    def widened(value: Any) -> Any:
        is_half = isinstance(value, torch.Tensor) and value.dtype in _HALF
        return value.float() if is_half else value

    return tuple(map(widened, inputs)), {name: widened(value) for name, value in options.items()}


@torch.no_grad()
def _digital_form(analog: nn.Module) -> nn.Module | None:
    unprogrammed = copy.deepcopy(analog)
    for tile in analog_tiles(unprogrammed):
        # A network that was programmed before holds noisy weights beside those it was given.
        reference = getattr(tile.tile, "reference_combined_weights", None)
        if reference is not None:
            tile.tile.tile.set_weights(reference)
    digital = convert_to_digital(unprogrammed, inplace=True)
    return None if any(analog_tiles(digital)) else digital
