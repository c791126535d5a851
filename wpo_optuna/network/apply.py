"""A network on analog tiles: both of its forms, and programming its tiles with a strategy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from aihwkit.inference.converter.base import BaseConductanceConverter
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.nn.conversion import convert_to_analog, convert_to_digital
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.tiles.module import TileModule
from torch import nn

from wpo_optuna.errors import InvalidArgument, did_you_mean
from wpo_optuna.hardware import conductance_range
from wpo_optuna.strategy import ProgrammingStrategy

# Ranges that differ by rounding count as the same: aihwkit writes 88.2 as 88.199997.
_SLACK = 1e-6


@dataclass(frozen=True)
class AppliedStrategy:
    """What :func:`apply_strategy` did.

    Attributes:
        tiles: names of the tiles that are programmed with a strategy from now on; empty for an RPU
            configuration, whose tiles are yet to be made.
        untouched: names of the tiles that no strategy was given for.
    """

    tiles: tuple[str, ...]
    untouched: tuple[str, ...] = ()


@dataclass(frozen=True)
class AnalogTile:
    """A tile of a network.

    Attributes:
        name: the tile's path in the network, such as ``fc1.analog_module``.
        layer: that of the layer it belongs to, such as ``fc1``.
        tile: the tile.
    """

    name: str
    layer: str
    tile: TileModule

    @property
    def noise_model(self) -> BaseNoiseModel | None:
        """The noise model of its devices; None for a tile made for training."""
        return getattr(self.tile.rpu_config, "noise_model", None)

    def set_converter(self, converter: BaseConductanceConverter) -> None:
        """Programs the tile through a converter from the next programming on.

        Neither the tile's RPU configuration nor its noise model is changed: both may be shared
        with other tiles, so that the tile gets its own.
        """
        rpu_config = copy.copy(self.tile.rpu_config)
        rpu_config.noise_model = _with_converter(rpu_config.noise_model, converter)
        self.tile.rpu_config = rpu_config
        # What was drawn for the devices of another converter has no meaning for these.
        self.tile.programmed_weights = None
        self.tile.drift_noise_parameters = None


def analog_tiles(model: nn.Module) -> Iterator[AnalogTile]:
    """The analog tiles of a network, in its order."""
    for name, module in model.named_modules():
        if isinstance(module, TileModule):
            parts = name.split(".")
            depth = parts.index("analog_module") if "analog_module" in parts else len(parts)
            yield AnalogTile(name, ".".join(parts[:depth]), module)


def apply_strategy(
    target: nn.Module | InferenceRPUConfig,
    strategy: ProgrammingStrategy | Mapping[str, ProgrammingStrategy],
) -> AppliedStrategy:
    """Programs a network, or the networks made with an RPU configuration, with a strategy.

    Everything is checked before anything is changed, and nothing but the target changes: noise
    models that are shared with other networks or configurations are copied. A network that was
    programmed before keeps its weights until it is programmed again, which
    ``drift_analog_weights`` then does by itself.

    Args:
        target: a network with analog layers (see ``aihwkit.nn.conversion.convert_to_analog``), or
            an RPU configuration to convert with.
        strategy: the strategy of all tiles, or strategies by layer: keys are names of layers, such
            as ``encoder.0.fc1``, or glob patterns. The exact name prevails, then the first pattern
            that matches; other layers stay as they are.

    Returns:
        the names of the tiles that were set, and of those that were not.

    Raises:
        InvalidArgument: the target has no analog tiles, a tile is not made for inference, a
            pattern matches no layer, or a strategy needs conductances outside the range of the
            noise model.
    """
    if isinstance(target, nn.Module):
        return _apply_to_network(target, strategy)
    if not hasattr(target, "noise_model"):
        raise InvalidArgument(
            f"target is a {type(target).__name__}: a network with analog layers or an "
            "InferenceRPUConfig is needed."
        )
    if isinstance(strategy, Mapping):
        raise InvalidArgument(
            "strategy is a mapping: strategies by layer need a network, an RPU configuration "
            "takes one ProgrammingStrategy."
        )
    _check_strategies({"*": strategy})
    converter = strategy.to_converter()
    _check_devices(converter, target.noise_model, "the RPU configuration", "strategy")
    target.noise_model = _with_converter(target.noise_model, converter)
    return AppliedStrategy(tiles=())


def apply_converter(model: nn.Module, converter: BaseConductanceConverter, argument: str) -> None:
    """Programs all tiles of a network through an aihwkit converter, which all tiles share.

    Args:
        model: a network with analog layers.
        converter: the converter.
        argument: which of the user's arguments the converter is, for messages.

    Raises:
        InvalidArgument: a tile is not made for inference, or its devices have another range.
    """
    _program([(tile, converter) for tile in analog_tiles(model)], argument)


def layers_by_parameter(parameters: Sequence[str], model: nn.Module) -> dict[str, str]:
    """The analog layers of a network that hold the parameters of a checkpoint.

    Checkpoints may name parameters with a prefix that the network lacks (``module.`` of data
    parallel training, ``model.``); one that all of them share is left out.

    Args:
        parameters: names of weights in the checkpoint.
        model: a network with analog layers.

    Returns:
        name of the layer, by parameter.

    Raises:
        InvalidArgument: a parameter belongs to no analog layer.
    """
    layers = {tile.layer for tile in analog_tiles(model)}
    names = list(parameters)
    while lost := [i for i, n in enumerate(names) if not layers & {n, n.rpartition(".")[0]}]:
        prefixes = {name.partition(".")[0] for name in names}
        # What is left must still name a layer and its parameter.
        if len(prefixes) != 1 or not all(name.count(".") >= 2 for name in names):
            raise InvalidArgument(
                f"model: no analog layer of the network holds {parameters[lost[0]]!r} of the "
                f"checkpoint; it has {', '.join(map(repr, sorted(layers)))}. Exclude what is not "
                "analog, or give the network that the checkpoint belongs to."
            )
        names = [name.partition(".")[2] for name in names]
    found = [name if name in layers else name.rpartition(".")[0] for name in names]
    return dict(zip(parameters, found, strict=True))


def _apply_to_network(
    model: nn.Module, strategy: ProgrammingStrategy | Mapping[str, ProgrammingStrategy]
) -> AppliedStrategy:
    tiles = tuple(analog_tiles(model))
    if not tiles:
        raise InvalidArgument(
            f"target is a {type(model).__name__} without analog tiles: convert it with "
            "aihwkit.nn.conversion.convert_to_analog first."
        )
    by_layer = strategy if isinstance(strategy, Mapping) else {"*": strategy}
    _check_strategies(by_layer)
    layers = sorted({tile.layer for tile in tiles})
    for pattern in by_layer:
        if not any(_matches(pattern, layer) for layer in layers):
            raise InvalidArgument(
                f"strategy: no analog layer matches {pattern!r}{did_you_mean(pattern, layers)}; "
                f"there are {', '.join(layers)}."
            )
    chosen = {layer: _strategy_of(layer, by_layer) for layer in layers}
    converters = {layer: s.to_converter() for layer, s in chosen.items() if s is not None}
    _program([(t, converters[t.layer]) for t in tiles if t.layer in converters], "strategy")
    return AppliedStrategy(
        tiles=tuple(tile.name for tile in tiles if tile.layer in converters),
        untouched=tuple(tile.name for tile in tiles if tile.layer not in converters),
    )


def _program(
    programmings: Sequence[tuple[AnalogTile, BaseConductanceConverter]], argument: str
) -> None:
    for tile, converter in programmings:
        _check_devices(converter, tile.noise_model, f"tile {tile.name!r}", argument)
    for tile, converter in programmings:
        tile.set_converter(converter)


def _check_strategies(by_layer: Mapping[str, object]) -> None:
    if not by_layer:
        raise InvalidArgument("strategy is empty: a strategy for at least one layer is needed.")
    for pattern, strategy in by_layer.items():
        if not isinstance(strategy, ProgrammingStrategy):
            raise InvalidArgument(
                f"strategy of layer {pattern!r} is a {type(strategy).__name__}: a "
                "ProgrammingStrategy is needed (read a file with ProgrammingStrategy.load), or a "
                "mapping of layer names to strategies."
            )
        if not strategy.spans_weights:
            raise InvalidArgument(
                "strategy has curves that stand for the weight 0 alone: the sum of f (g+ - g-) "
                "must differ from 0 at one of the weights."
            )


def _strategy_of(
    layer: str, by_layer: Mapping[str, ProgrammingStrategy]
) -> ProgrammingStrategy | None:
    matching = (strategy for pattern, strategy in by_layer.items() if _matches(pattern, layer))
    return by_layer.get(layer) or next(matching, None)


def _matches(pattern: str, layer: str) -> bool:
    # Checkpoints name the layer's parameter, such as "fc1.weight".
    return fnmatchcase(layer, pattern) or fnmatchcase(f"{layer}.weight", pattern)


def _check_devices(
    converter: BaseConductanceConverter, noise_model: object, owner: str, argument: str
) -> None:
    """Refuses devices that are not described, or that a converter asks too much of.

    A narrower range than theirs is fine: then a part of it is used.
    """
    if not isinstance(noise_model, BaseNoiseModel):
        raise InvalidArgument(
            f"target: {owner} has no noise model, which tells how devices are programmed; an "
            "InferenceRPUConfig is needed."
        )
    lowest, highest = conductance_range(noise_model)
    slack = _SLACK * converter.g_max
    if converter.g_min < lowest - slack or converter.g_max > highest + slack:
        raise InvalidArgument(
            f"{argument} has the range g_min = {converter.g_min:g} to "
            f"g_max = {converter.g_max:g} µS: the {type(noise_model).__name__} describes devices "
            f"of {lowest:g} to {highest:g} µS."
        )


def _with_converter(
    noise_model: BaseNoiseModel, converter: BaseConductanceConverter
) -> BaseNoiseModel:
    own = copy.deepcopy(noise_model)
    own.g_converter = converter
    return own


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
            return cls(_digital_form(model), copy.deepcopy(model))
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
        largest: dict[nn.Module, float] = {}

        def observe(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            largest[layer] = max(largest.get(layer, 0.0), float(inputs[0].abs().max()))

        places = []
        with ExitStack() as stack:
            for tile in analog_tiles(self.analog) if self.is_converted else ():
                if getattr(tile.tile, "input_range", None) is not None:
                    assert self.digital is not None
                    places.append((tile.tile, self.digital.get_submodule(tile.layer)))
                    stack.callback(places[-1][1].register_forward_pre_hook(observe).remove)
            yield
        for tile, layer in places:
            if largest.get(layer, 0.0) > 0:
                tile.set_input_range(largest[layer])


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
