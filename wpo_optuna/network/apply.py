"""Programming the tiles of a network with a strategy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from aihwkit.inference.converter.base import BaseConductanceConverter
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.tiles.module import TileModule
from torch import Tensor, nn

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
        assert self.noise_model is not None
        self.set_noise_model(_with_converter(self.noise_model, converter))

    def set_noise_model(self, noise_model: BaseNoiseModel) -> None:
        """Gives the tile other devices; see :meth:`set_converter`."""
        rpu_config = copy.copy(self.tile.rpu_config)
        rpu_config.noise_model = noise_model
        self.tile.rpu_config = rpu_config
        # What was drawn for the devices of another converter has no meaning for these.
        self.tile.programmed_weights = None
        self.tile.drift_noise_parameters = None

    def target_weights(self) -> Tensor:
        """The weights ``(outputs, inputs)`` that are to be programmed, unitless."""
        reference = getattr(self.tile, "reference_combined_weights", None)
        weights = self.tile.tile.get_weights() if reference is None else reference
        return weights.detach().clone()

    def output_scales(self) -> Tensor:
        """By what the outputs are multiplied digitally, ``(outputs,)``."""
        n_outputs = self.tile.out_size
        scales = self.tile.get_scales()
        return torch.ones(n_outputs) if scales is None else scales.detach().expand(n_outputs)


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
