"""The tiles of a network as one chip: programmed, and read at one time after the other.

The steps are those of aihwkit's tiles, ``program_weights`` and ``drift_weights``. Where a
:class:`~wpo_optuna.evaluate.torch_tile.TorchTile` computes, large tiles are programmed side by side
in threads, each with random numbers of its own: they depend on the seed and the tile alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from aihwkit.inference.converter.conductance import CustomPairConductanceConverter
from torch import Tensor, nn

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.evaluate.torch_tile import TorchTile, why_not_in_torch
from wpo_optuna.loss.conversion import CurveConversion, conversion_of
from wpo_optuna.loss.monte_carlo import checked_device
from wpo_optuna.loss.noise import NoiseModelMode, check_noise_model
from wpo_optuna.loss.parallel import in_threads
from wpo_optuna.network.apply import AnalogTile, analog_tiles

Engine = Literal["auto", "torch", "aihwkit"]

# Weights of a tile from which on a thread is worth its while.
_LARGE = 2**15


@contextmanager
def chip_of(
    network: nn.Module, t_steps: Sequence[float], engine: Engine = "auto", device: str = "cpu"
) -> Iterator[Chip]:
    """Makes a chip of an analog network, whose tiles are aihwkit's own again afterwards.

    Args:
        network: the network; on another device than the CPU it is moved there, and back.
        t_steps: times after programming in s at which it will be read.
        engine: what computes the forward passes of tiles: ``torch``, ``aihwkit`` (its compiled
            tile), or ``auto`` for torch where it knows how.
        device: torch device of the network.

    Raises:
        InvalidArgument: torch is asked for, or needed for the device, and does not know a tile.
    """
    tiles = list(analog_tiles(network))
    place = checked_device(device)
    kept = {tile.name: why_not_in_torch(tile.tile) for tile in tiles}
    if engine == "aihwkit":
        kept = dict.fromkeys(kept, "it is asked for")
    reasons = [(name, reason) for name, reason in kept.items() if reason is not None]
    if reasons and (engine == "torch" or place.type != "cpu"):
        asked = f"engine = {engine!r}" if engine == "torch" else f"device = {device!r}"
        raise InvalidArgument(
            f"{asked}: tile {reasons[0][0]!r} is for aihwkit's compiled tile alone, on the CPU "
            f"({reasons[0][1]})."
        )
    exchanged = [tile for tile in tiles if kept[tile.name] is None]
    for tile in exchanged:
        tile.tile.tile = TorchTile(tile.tile, place)
    try:
        if place.type != "cpu":
            _move(network, tiles, place)
        yield Chip(tiles, t_steps, [reason for _, reason in reasons])
    finally:
        if place.type != "cpu":
            _move(network, tiles, torch.device("cpu"))
        for tile in exchanged:
            computed: TorchTile = tile.tile.tile
            computed.compiled.set_weights(computed.get_weights())
            tile.tile.tile = computed.compiled


class Chip:
    """See :func:`chip_of`, which makes them.

    Args:
        tiles: the tiles.
        t_steps: times after programming in s.
        kept: why aihwkit's compiled tile computes, for each tile where it does.
    """

    def __init__(
        self, tiles: Sequence[AnalogTile], t_steps: Sequence[float], kept: Sequence[str]
    ) -> None:
        self._tiles, self._kept = tiles, kept
        self._in_threads = [tile for tile in tiles if _is_for_threads(tile, t_steps)]

    @property
    def engine(self) -> str:
        """What computes the forward passes, in words."""
        n_kept, n_tiles = len(self._kept), len(self._tiles)
        if not n_kept:
            return "torch"
        reasons = "; ".join(dict.fromkeys(self._kept))
        of_which = "" if n_kept == n_tiles else f" for {n_kept} of {n_tiles} tiles, else torch"
        return f"aihwkit's compiled tile{of_which} ({reasons})"

    def program(self, *seed: int) -> None:
        """Programs all devices anew."""
        for tile in self._in_threads:
            _evaluate_curves_fast(tile)
        self._all(lambda tile: tile.tile.program_weights(), seed)

    def drift(self, t: float, *seed: int) -> None:
        """Reads all devices at a time t in s after programming."""
        self._all(lambda tile: tile.tile.drift_weights(t), seed)

    def _all(self, step: Callable[[AnalogTile], None], seed: Sequence[int]) -> None:
        """A step of each tile, with random numbers that follow from the seed."""
        # A metric may draw numbers as well; the noise should not depend on how many.
        torch.manual_seed(_seed(*seed))
        for number, tile in enumerate(self._tiles):
            simulator = tile.tile.tile
            if isinstance(simulator, TorchTile):
                simulator.generator.manual_seed(_seed(*seed, number))
            if tile not in self._in_threads:
                step(tile)

        def drawing(tile: AnalogTile) -> None:
            generator = tile.tile.tile.generator

            def draw(like: Tensor) -> Tensor:
                return torch.empty_like(like).normal_(generator=generator)

            with torch.no_grad(), NoiseModelMode(draw):
                step(tile)

        in_threads(drawing, self._in_threads)


def _is_for_threads(tile: AnalogTile, t_steps: Sequence[float]) -> bool:
    """Whether a tile is large, and its noise model draws its numbers in a way that is known."""
    model = tile.noise_model
    is_small = tile.tile.in_size * tile.tile.out_size < _LARGE
    if is_small or model is None or not isinstance(tile.tile.tile, TorchTile):
        return False
    try:
        g_range = (model.g_converter.g_min, model.g_converter.g_max)
        check_noise_model(model, t_steps, g_range, torch.device("cpu"))
    except (InvalidArgument, AttributeError):
        return False
    return True


class FastCurves(CustomPairConductanceConverter):
    """aihwkit's converter of strategies, whose curves are evaluated by torch.

    Args:
        converter: the converter that it equals.
        device: where its weights are.
    """

    def __init__(self, converter: CustomPairConductanceConverter, device: torch.device) -> None:
        super().__init__(
            converter.f_lst, converter.g_lst, converter.g_max, converter.g_min,
            invertibility_test=False,
        )  # fmt: skip
        self._conversion = conversion_of(converter, device)

    @torch.no_grad()
    def convert_to_conductances(self, weights: Tensor) -> tuple[list[Tensor], dict[str, Any]]:
        """Conductances in µS of each device, and what brings them back to weights."""
        conductances, scale = self._conversion.to_conductances(weights[None])
        return list(conductances[0]), {"scale_ratio": scale[0], "f_lst": self.f_lst}


def _evaluate_curves_fast(tile: AnalogTile) -> None:
    model, device = tile.noise_model, tile.tile.tile.generator.device
    assert model is not None
    if isinstance(conversion_of(model.g_converter, device), CurveConversion):
        model.g_converter = FastCurves(model.g_converter, device)


@torch.no_grad()
def _move(network: nn.Module, tiles: Sequence[AnalogTile], device: torch.device) -> None:
    """Moves a network; aihwkit itself moves tiles to devices that it was compiled for alone."""
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    for tile in tiles:
        tile.tile.reference_combined_weights = tile.target_weights().to(device)
        tile.tile.device = device
        # What was drawn and read on the other device is of no use on this one.
        tile.tile.programmed_weights = tile.tile.drift_noise_parameters = None


def _seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
