"""A network with the conductances that were measured on a chip, beside what was predicted."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from aihwkit.inference.converter.base import BaseConductanceConverter
from torch import Tensor, nn
from tqdm import tqdm

from wpo_optuna.evaluate.accuracy import NetworkSetup, Programming
from wpo_optuna.evaluate.chip import Engine, chip_of
from wpo_optuna.hardware import format_duration
from wpo_optuna.network.apply import analog_tiles, apply_converter, apply_strategy
from wpo_optuna.network.conductances import set_measured
from wpo_optuna.study.estimate import Estimate


@dataclass(frozen=True)
class MeasuredComparison:
    """What measured conductances make of a network, and what the noise model predicts.

    Attributes:
        metric: name of the metric.
        t: time of the prediction, in s after programming.
        ideal: the metric of the digital network; None where there is none.
        measured: the metric with the measured conductances.
        predicted: the metric with conductances drawn from the noise model.
        errors: normalised mean-squared error of each layer's measured weights, and the same of
            drawn ones, by its name.
        engine: what computed the analogue forward passes, in words.
    """

    metric: str
    t: float
    ideal: float | None
    measured: float
    predicted: Estimate
    errors: Mapping[str, tuple[float, Estimate]]
    engine: str = ""

    def table(self) -> str:
        """The metric, and a row for each layer, for people to read."""
        rows = [("layer", "measured", "predicted", "95 % interval")]
        for layer, (error, predicted) in self.errors.items():
            interval = f"[{predicted.low:.4g}, {predicted.high:.4g}]"
            rows.append((layer, f"{error:.4g}", f"{predicted.mean:.4g}", interval))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        ideal = "" if self.ideal is None else f", {self.ideal:.4g} of the digital network"
        return "\n".join(
            [
                f"{self.metric} with the measured conductances {self.measured:.4g}{ideal}; "
                f"{self.predicted.mean:.4g} [{self.predicted.low:.4g}, {self.predicted.high:.4g}] "
                f"predicted {format_duration(self.t)} after programming.",
                "",
                f"TNMSE of each layer, predicted from {self.predicted.draws} programmings:",
                "",
                *lines,
            ]
        )

    def save(self, path: Path) -> Path:
        """Writes the layers' errors as CSV and returns the path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("layer", "measured", "predicted", "predicted_low", "predicted_high"))
            for layer, (error, predicted) in self.errors.items():
                writer.writerow((layer, error, predicted.mean, predicted.low, predicted.high))
        return path


def compare_measured(
    setup: NetworkSetup,
    programming: Programming,
    baseline: BaseConductanceConverter,
    measured: Mapping[str, Tensor],
    t: float,
    *,
    repeats: int = 10,
    seed: int = 0,
    engine: Engine = "auto",
    device: str = "cpu",
    show_progress_bar: bool = False,
) -> MeasuredComparison:
    """Compares measured conductances with those that the noise model draws.

    Args:
        setup: the network, and how its quality is measured.
        programming: the strategy that the targets were exported for, or strategies by layer.
        baseline: converter of layers without one.
        measured: the weights of all tiles that the measured conductances stand for.
        t: when they were read, in s after programming.
        repeats: number of programmings that are drawn, at least 2.
        seed: seed of the noise.
        engine: what computes the tiles, see :func:`~wpo_optuna.evaluate.chip.chip_of`.
        device: torch device of the analog network.
        show_progress_bar: whether to show progress on a terminal.

    Raises:
        InvalidArgument: the metric fails or does not return a number, or the engine cannot compute
            the tiles.
    """
    analog = setup.network.analog.eval()
    with setup.network.setting_input_ranges() as digital:
        ideal = None if digital is None else setup.measure(digital)
    apply_converter(analog, baseline, "baseline")
    apply_strategy(analog, programming)
    values, errors = [], []
    draws = tqdm(range(repeats), "predicting", disable=None if show_progress_bar else True)
    with chip_of(analog, (t,), engine, device) as chip, torch.random.fork_rng(devices=[]):
        for repeat in draws:
            chip.program(seed, repeat, 0)
            chip.drift(t, seed, repeat, 1)
            errors.append(_layer_errors(analog))
            values.append(setup.measure(analog))
        set_measured(analog, measured)
        measured_value, measured_errors = setup.measure(analog), _layer_errors(analog)
    return MeasuredComparison(
        setup.metric_name, t, ideal, measured_value, Estimate.of(np.array(values)),
        {
            layer: (error, Estimate.of(np.array([draw[layer] for draw in errors])))
            for layer, error in measured_errors.items()
        },
        chip.engine,
    )  # fmt: skip


@torch.no_grad()
def _layer_errors(analog: nn.Module) -> dict[str, float]:
    """Normalised mean-squared error of the acting weights of each layer, drift compensated."""
    errors: dict[str, float] = {}
    norms: dict[str, float] = {}
    for tile in analog_tiles(analog):
        targets = tile.target_weights().cpu()
        acting = tile.tile.tile.get_weights() * tile.tile.alpha.reshape(-1, 1).cpu()
        errors[tile.layer] = errors.get(tile.layer, 0.0) + float(((acting - targets) ** 2).sum())
        norms[tile.layer] = norms.get(tile.layer, 0.0) + float((targets**2).sum())
    return {layer: error / (norms[layer] or 1.0) for layer, error in errors.items()}
