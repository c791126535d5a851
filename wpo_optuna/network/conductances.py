"""Conductances of every device of a network: targets for a chip, and what was measured on one.

A file of them is a safetensors file. For each tile of the network it has

* ``TILE.conductances`` ``(2P, outputs, inputs)`` in µS, ordered g+ of pair 0, g- of pair 0, ...;
* ``TILE.output_scales`` ``(outputs,)``, by which the tile's outputs are multiplied digitally;

and in its metadata, under ``tiles``, a JSON object that gives each tile's layer, the first input
and the first output of the layer that lie on it, the significance factors ``f_lst`` and the scale
``k_w`` from unitless weights to µS: w = Σ f (g+ - g-) / k_w.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.simulator.tiles.array import TileModuleArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from wpo_optuna.errors import InvalidArgument, did_you_mean
from wpo_optuna.network.apply import analog_tiles, apply_strategy
from wpo_optuna.network.checkpoints import reading
from wpo_optuna.strategy import ProgrammingStrategy

FORMAT = "wpo_optuna.conductances/1"


@dataclass(frozen=True, eq=False)
class TileConductances:
    """The conductances of a tile's devices.

    Attributes:
        tile: the tile's path in the network.
        layer: that of the layer it belongs to.
        first_input: number of the layer's first input on this tile.
        first_output: number of the layer's first output on this tile.
        f_lst: significance factor of each of the P pairs.
        k_w: scale from unitless weights to µS.
        conductances: ``(2P, outputs, inputs)`` in µS, g+ and g- of each pair.
        output_scales: ``(outputs,)``, by which the tile's outputs are multiplied.
    """

    tile: str
    layer: str
    first_input: int
    first_output: int
    f_lst: tuple[float, ...]
    k_w: float
    conductances: Tensor
    output_scales: Tensor

    def weights(self) -> Tensor:
        """The weights ``(outputs, inputs)`` that the conductances stand for, unitless."""
        factors = torch.tensor(self.f_lst, dtype=torch.float64)[:, None, None]
        devices = self.conductances.to(torch.float64)
        return ((factors * (devices[::2] - devices[1::2])).sum(dim=0) / self.k_w).float()


def export_targets(
    model: nn.Module,
    strategy: ProgrammingStrategy | Mapping[str, ProgrammingStrategy],
    path: str | Path = "targets.safetensors",
) -> Path:
    """Writes the conductances that a strategy programs a network's devices to.

    Args:
        model: a network with analog layers; not changed but for its strategy, see
            :func:`~wpo_optuna.network.apply.apply_strategy`.
        strategy: for all layers, or by layer. Layers without one have the converter of their
            noise model.
        path: the file, whose layout this module's docstring gives.

    Returns:
        the path.

    Raises:
        InvalidArgument: the strategy does not fit the network.
    """
    apply_strategy(model, strategy)
    tensors, tiles = {}, {}
    for target in target_conductances(model):
        tensors[f"{target.tile}.conductances"] = target.conductances.contiguous()
        tensors[f"{target.tile}.output_scales"] = target.output_scales.contiguous()
        tiles[target.tile] = {
            "layer": target.layer, "first_input": target.first_input,
            "first_output": target.first_output, "f_lst": target.f_lst, "k_w": target.k_w,
        }  # fmt: skip
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"format": FORMAT, "unit": "uS", "tiles": json.dumps(tiles)})
    return path


def target_conductances(model: nn.Module) -> Iterator[TileConductances]:
    """What the devices of a network's tiles are programmed to, by their present converters.

    Raises:
        InvalidArgument: a converter does not split weights over pairs of devices.
    """
    places = _places(model)
    for tile in analog_tiles(model):
        if tile.noise_model is None:
            raise InvalidArgument(f"model: tile {tile.name!r} is not made for inference.")
        converter, weights = tile.noise_model.g_converter, tile.target_weights()
        conductances, parameters = converter.convert_to_conductances(weights)
        factors = parameters.get("f_lst", [1.0])
        target = TileConductances(
            tile.name, tile.layer, *places[tile.name], tuple(map(float, factors)),
            float(parameters["scale_ratio"]), torch.stack(list(conductances)).float(),
            tile.output_scales(),
        )  # fmt: skip
        is_pairs = len(target.conductances) == 2 * len(factors)
        if not is_pairs or not torch.allclose(target.weights(), weights, rtol=0.0, atol=1e-4):
            raise InvalidArgument(
                f"model: tile {tile.name!r} is programmed by a {type(converter).__name__}, which "
                "does not split a weight over pairs of devices."
            )
        yield target


def read_conductances(path: str | Path, model: nn.Module) -> dict[str, TileConductances]:
    """Reads conductances in the layout of :func:`export_targets`, such as were measured.

    Args:
        path: the file.
        model: the network they belong to, with analog layers.

    Returns:
        those of each tile, by name.

    Raises:
        InvalidArgument: the file cannot be read, is of another layout, or does not fit the network;
            a conductance is negative or no finite number.
    """
    with reading(Path(path), "safetensors file"), safe_open(path, framework="pt") as opened:
        metadata = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if metadata.get("format") != FORMAT:
        raise InvalidArgument(
            f"{path} has format {metadata.get('format')!r}: {FORMAT!r} is needed, with the "
            "metadata of the exported targets."
        )
    tiles = json.loads(metadata["tiles"])
    found = {}
    for tile in analog_tiles(model):
        name, devices = tile.name, f"{tile.name}.conductances"
        if name not in tiles or devices not in tensors:
            hint = did_you_mean(name, tiles)
            raise InvalidArgument(f"{path} has no tile {name!r} of the network{hint}.")
        shape = (2 * len(tiles[name]["f_lst"]), *tile.target_weights().shape)
        measured = tensors[devices]
        if measured.shape != shape or not bool((measured.isfinite() & (measured >= 0)).all()):
            raise InvalidArgument(
                f"{path}: {devices!r} has shape {tuple(measured.shape)} and values from "
                f"{float(measured.min()):g} to {float(measured.max()):g}; {shape} is needed (two "
                "for each pair, outputs, inputs), in µS, finite and not negative."
            )
        scales = tensors.get(f"{name}.output_scales", tile.output_scales())
        found[name] = TileConductances(
            name, conductances=measured, output_scales=scales, **tiles[name]
        )
    return found


class MeasuredDevices(BaseNoiseModel):
    """Devices that hold what was measured, whenever they are read.

    Programmed, they are right on target, which drift compensation takes for its reference.

    Args:
        weights: those that the measured conductances stand for ``(outputs, inputs)``, unitless.
    """

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self._weights = weights

    def apply_programming_noise(self, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The weights themselves."""
        return weights, []

    def apply_drift_noise(
        self, weights: Tensor, drift_noise_parameters: Sequence[Tensor | None], t_inference: float
    ) -> Tensor:
        """The measured weights."""
        return self._weights


def set_measured(model: nn.Module, measured: Mapping[str, TileConductances]) -> None:
    """Gives the tiles of a network the weights of measured conductances.

    They are compensated for drift as the network's hardware says, with the targets as reference.

    Args:
        model: a network with analog layers.
        measured: conductances of all its tiles, see :func:`read_conductances`.
    """
    for tile in analog_tiles(model):
        tile.set_noise_model(MeasuredDevices(measured[tile.name].weights()))
        tile.tile.program_weights()
        tile.tile.drift_weights(1.0)  # the time does not matter to them


def _places(model: nn.Module) -> dict[str, tuple[int, int]]:
    """The first input and output of its layer that lie on each tile, by the tile's name."""
    places = {tile.name: (0, 0) for tile in analog_tiles(model)}
    for name, module in model.named_modules():
        if isinstance(module, TileModuleArray):
            for i in range(len(module.in_sizes)):
                for j in range(len(module.out_sizes)):
                    place = (sum(module.in_sizes[:i]), sum(module.out_sizes[:j]))
                    places[f"{name}.array.{i}.{j}"] = place
    return places
