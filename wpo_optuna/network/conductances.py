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
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.simulator.tiles.array import TileModuleArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from wpo_optuna.errors import InvalidArgument, did_you_mean
from wpo_optuna.network.apply import AnalogTile, analog_tiles, apply_strategy
from wpo_optuna.network.checkpoints import reading
from wpo_optuna.strategy import ProgrammingStrategy

FORMAT = "wpo_optuna.conductances/1"


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
    places = _places(model)
    tensors: dict[str, Tensor] = {}
    tiles: dict[str, dict[str, object]] = {}
    for tile in analog_tiles(model):
        conductances, f_lst, k_w = _targets(tile)
        tensors[f"{tile.name}.conductances"] = conductances
        tensors[f"{tile.name}.output_scales"] = tile.output_scales().contiguous()
        first_input, first_output = places[tile.name]
        tiles[tile.name] = {
            "layer": tile.layer, "first_input": first_input, "first_output": first_output,
            "f_lst": f_lst, "k_w": k_w,
        }  # fmt: skip
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"format": FORMAT, "unit": "uS", "tiles": json.dumps(tiles)})
    return path


def _targets(tile: AnalogTile) -> tuple[Tensor, list[float], float]:
    """A tile's conductances (2P, outputs, inputs) in µS, f_lst and k_w, see this module."""
    if tile.noise_model is None:
        raise InvalidArgument(f"model: tile {tile.name!r} is not made for inference.")
    converter, weights = tile.noise_model.g_converter, tile.target_weights()
    devices, parameters = converter.convert_to_conductances(weights)
    conductances = torch.stack(list(devices)).float()
    f_lst = list(map(float, parameters.get("f_lst", [1.0])))
    k_w = float(parameters["scale_ratio"])
    if len(conductances) == 2 * len(f_lst):
        represented = _weights(conductances, f_lst, k_w)
        if torch.allclose(represented, weights, rtol=0.0, atol=1e-4):
            return conductances, f_lst, k_w
    raise InvalidArgument(
        f"model: tile {tile.name!r} is programmed by a {type(converter).__name__}, which does not "
        "split a weight over pairs of devices."
    )


def read_conductances(path: str | Path, model: nn.Module) -> dict[str, Tensor]:
    """Reads conductances in the layout of :func:`export_targets`, such as were measured.

    Args:
        path: the file.
        model: the network they belong to, with analog layers.

    Returns:
        the weights ``(outputs, inputs)`` that they stand for, unitless, by the tile's name.

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
        found[name] = _weights(measured, tiles[name]["f_lst"], tiles[name]["k_w"])
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


def set_measured(model: nn.Module, measured: Mapping[str, Tensor]) -> None:
    """Gives the tiles of a network the weights of measured conductances.

    They are compensated for drift as the network's hardware says, with the targets as reference.

    Args:
        model: a network with analog layers.
        measured: those of all its tiles, see :func:`read_conductances`.
    """
    for tile in analog_tiles(model):
        tile.set_noise_model(MeasuredDevices(measured[tile.name]))
        tile.tile.program_weights()
        tile.tile.drift_weights(1.0)  # the time does not matter to them


def _weights(conductances: Tensor, f_lst: Sequence[float], k_w: float) -> Tensor:
    """The weights (outputs, inputs) that conductances (2P, outputs, inputs) stand for, unitless."""
    factors = torch.tensor(f_lst, dtype=torch.float64)[:, None, None]
    devices = conductances.to(torch.float64)
    return ((factors * (devices[::2] - devices[1::2])).sum(dim=0) / k_w).float()


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
