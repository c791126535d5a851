"""Programming a network with a strategy: setting the converter of its analog tiles."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from aihwkit.inference.converter.base import BaseConductanceConverter
from aihwkit.inference.noise.base import BaseNoiseModel
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
    _check_devices(strategy, target.noise_model, "the RPU configuration", "strategy")
    target.noise_model = _with_converter(target.noise_model, strategy.to_converter())
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
    tiles = tuple(analog_tiles(model))
    for tile in tiles:
        _check_devices(converter, tile.noise_model, f"tile {tile.name!r}", argument)
    for tile in tiles:
        tile.set_converter(converter)


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
    while True:
        found = [_layer_of(name, layers) for name in names]
        if None not in found:
            return dict(zip(parameters, map(str, found), strict=True))
        prefixes = {name.partition(".")[0] for name in names}
        # What is left must still name a layer and its parameter.
        if len(prefixes) != 1 or not all(name.count(".") >= 2 for name in names):
            break
        names = [name.partition(".")[2] for name in names]
    lost = next(name for name in parameters if _layer_of(name, layers) is None)
    raise InvalidArgument(
        f"model: no analog layer of the network holds {lost!r} of the checkpoint; it has "
        f"{', '.join(sorted(layers))}. Exclude what is not analog, or give the network that the "
        "checkpoint belongs to."
    )


def _layer_of(parameter: str, layers: set[str]) -> str | None:
    return next(
        (layer for layer in (parameter, parameter.rpartition(".")[0]) if layer in layers), None
    )


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
    _check_patterns(by_layer, tiles)
    chosen = [(tile, _strategy_of(tile, by_layer)) for tile in tiles]
    for tile, wanted in chosen:
        if wanted is not None:
            _check_devices(wanted, tile.noise_model, f"tile {tile.name!r}", "strategy")
    for tile, wanted in chosen:
        if wanted is not None:
            tile.set_converter(wanted.to_converter())
    return AppliedStrategy(
        tiles=tuple(tile.name for tile, wanted in chosen if wanted is not None),
        untouched=tuple(tile.name for tile, wanted in chosen if wanted is None),
    )


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


def _check_patterns(by_layer: Mapping[str, object], tiles: Sequence[AnalogTile]) -> None:
    layers = sorted({tile.layer for tile in tiles})
    for pattern in by_layer:
        if not any(_matches(pattern, layer) for layer in layers):
            raise InvalidArgument(
                f"strategy: no analog layer matches {pattern!r}{did_you_mean(pattern, layers)}; "
                f"there are {', '.join(layers)}."
            )


def _strategy_of(
    tile: AnalogTile, by_layer: Mapping[str, ProgrammingStrategy]
) -> ProgrammingStrategy | None:
    if tile.layer in by_layer:
        return by_layer[tile.layer]
    return next((s for pattern, s in by_layer.items() if _matches(pattern, tile.layer)), None)


def _matches(pattern: str, layer: str) -> bool:
    # Checkpoints name the layer's parameter, such as "fc1.weight".
    return fnmatchcase(layer, pattern) or fnmatchcase(f"{layer}.weight", pattern)


def _check_devices(
    programming: ProgrammingStrategy | BaseConductanceConverter,
    noise_model: object,
    owner: str,
    argument: str,
) -> None:
    """Refuses devices that are not described, or that a programming asks too much of.

    A narrower range than theirs is fine: then a part of it is used.
    """
    if not isinstance(noise_model, BaseNoiseModel):
        raise InvalidArgument(
            f"target: {owner} has no noise model, which tells how devices are programmed; an "
            "InferenceRPUConfig is needed."
        )
    lowest, highest = conductance_range(noise_model)
    slack = _SLACK * programming.g_max
    if programming.g_min < lowest - slack or programming.g_max > highest + slack:
        raise InvalidArgument(
            f"{argument} has the range g_min = {programming.g_min:g} to "
            f"g_max = {programming.g_max:g} µS: the {type(noise_model).__name__} describes devices "
            f"of {lowest:g} to {highest:g} µS."
        )


def _with_converter(
    noise_model: BaseNoiseModel, converter: BaseConductanceConverter
) -> BaseNoiseModel:
    own = copy.deepcopy(noise_model)
    own.g_converter = converter
    return own
