"""A network's accuracy over time on analogue memory, or any other figure of merit.

Each repeat is the life of one chip: its devices are programmed once and then read at one time
after the other, so that what went wrong in programming stays wrong. Programming, drift and
accumulated read noise are drawn from torch's generator and repeat with the seed. The noise within
a forward pass does not: aihwkit's compiled tile draws it from a generator of its own.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aihwkit.inference.converter.base import BaseConductanceConverter
from numpy.typing import NDArray
from torch import nn

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.hardware import format_duration
from wpo_optuna.network.apply import analog_tiles, apply_converter, apply_strategy
from wpo_optuna.network.network_forms import NetworkForms
from wpo_optuna.problem.weight_programming import time_refusal
from wpo_optuna.strategy import ProgrammingStrategy

BASELINE, OPTIMISED = "baseline", "optimised"

# A figure of merit of a network, given the network and the data.
Metric = Callable[[nn.Module, Iterable[Any]], float]

# One strategy for all layers, or strategies by layer as in ``apply_strategy``.
Programming = ProgrammingStrategy | Mapping[str, ProgrammingStrategy]


@dataclass(frozen=True, eq=False)
class MetricCurve:
    """A metric over time, for several programmings of the same weights.

    Attributes:
        name: what programmed the weights, such as ``baseline``.
        values: the metric ``(repeats, times)``.
    """

    name: str
    values: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean over the repeats ``(times,)``."""
        return self.values.mean(axis=0)

    @property
    def spread(self) -> NDArray[np.float64]:
        """Standard deviation over the repeats ``(times,)``; NaN for a single one."""
        if len(self.values) == 1:
            return np.full(self.values.shape[1], np.nan)
        return self.values.std(axis=0, ddof=1)

    def describe(self, step: int) -> str:
        """Mean and standard deviation at one of the times."""
        mean = f"{self.mean[step]:.4g}"
        return mean if len(self.values) == 1 else f"{mean} ± {self.spread[step]:.2g}"


@dataclass(frozen=True, eq=False)
class MetricOverTime:
    """A metric over time, for several ways to program the same weights.

    Attributes:
        metric: name of the metric.
        t_steps: times after programming in s ``(times,)``.
        ideal: the metric of the digital network; None where there is no digital one.
        curves: one curve for each way to program.
    """

    metric: str
    t_steps: tuple[float, ...]
    ideal: float | None
    curves: tuple[MetricCurve, ...]

    def table(self) -> str:
        """The means and standard deviations, for people to read."""
        rows = [["", *(curve.name for curve in self.curves)]]
        for step, t in enumerate(self.t_steps):
            rows.append([format_duration(t), *(curve.describe(step) for curve in self.curves)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        repeats = len(self.curves[0].values)
        of_what = "one programming"
        if repeats > 1:
            of_what = f"mean ± standard deviation of {repeats} programmings"
        ideal = "" if self.ideal is None else f"; of the digital network {self.ideal:.4g}"
        return "\n".join([f"{self.metric} after programming, {of_what}{ideal}:", "", *lines])

    def write_measurements(self, path: Path) -> Path:
        """Writes every single measurement as CSV: one line for each repeat and time."""
        rows: list[list[Any]] = [["programming", "repeat", "t_s", self.metric]]
        if self.ideal is not None:
            rows.append(["ideal", "", "", self.ideal])
        for curve in self.curves:
            for repeat, values in enumerate(curve.values.tolist()):
                rows += [
                    [curve.name, repeat, t, value]
                    for t, value in zip(self.t_steps, values, strict=True)
                ]
        return _write_rows(rows, path)

    def write_summary(self, path: Path) -> Path:
        """Writes the mean, the standard deviation and the extremes of each curve as CSV."""
        header = ["programming", "t_s", "time", "mean", "standard_deviation", "lowest", "highest"]
        rows: list[list[Any]] = [[*header, "repeats"]]
        for curve in self.curves:
            columns = (curve.mean, curve.spread, curve.values.min(axis=0), curve.values.max(axis=0))
            for t, *numbers in zip(self.t_steps, *(c.tolist() for c in columns), strict=True):
                rows.append([curve.name, t, format_duration(t), *numbers, len(curve.values)])
        return _write_rows(rows, path)


def compare_over_time(
    network: NetworkForms,
    programmings: Mapping[str, Programming],
    baseline: BaseConductanceConverter,
    data: Iterable[Any],
    t_steps: Sequence[float],
    metric: Metric,
    *,
    metric_name: str,
    repeats: int = 10,
    seed: int = 0,
    on_measured: Callable[[int], object] = lambda n: None,
) -> MetricOverTime:
    """Compares strategies over time with a baseline and with the digital network.

    The analog network is programmed with one after the other. If it was converted from the digital
    one, for hardware with input ranges, these are set to the largest inputs among the data.

    Args:
        network: the network, digital and analog.
        programmings: what is compared, by the name of its curve: a strategy, or strategies by
            layer; layers without one are programmed like the baseline.
        baseline: converter of the programming to compare with.
        data: what the metric is measured on; iterated over anew for each measurement.
        t_steps: times after programming in s, ascending.
        metric: takes the network and the data and returns a number.
        metric_name: what to call it.
        repeats: number of programmings of each kind.
        seed: seed of programming, drift and accumulated read noise.
        on_measured: told the number of measurements made, after each.

    Raises:
        InvalidArgument: a strategy does not fit the network or its devices, the noise model does
            not know a time, or the metric does not return a number.
    """
    if repeats < 1:
        raise InvalidArgument(f"repeats = {repeats}: a whole number of at least 1 is needed.")
    analog = network.analog
    _check_times(analog, t_steps)
    for programming in programmings.values():
        apply_strategy(analog, programming)
    apply_converter(analog, baseline, "baseline")

    ideal = None
    if network.digital is not None:
        with network.setting_input_ranges():
            ideal = measure(network.digital, data, metric)
        on_measured(1)

    def curve(name: str) -> MetricCurve:
        values = measure_over_time(
            analog, data, t_steps, metric, repeats=repeats, seed=seed, on_measured=on_measured
        )
        return MetricCurve(name, values)

    curves = [curve(BASELINE)]
    for name, programming in programmings.items():
        apply_converter(analog, baseline, "baseline")
        apply_strategy(analog, programming)
        curves.append(curve(name))
    return MetricOverTime(metric_name, tuple(t_steps), ideal, tuple(curves))


def number_of_measurements(
    network: NetworkForms, n_programmings: int, n_times: int, repeats: int
) -> int:
    """How many measurements ``compare_over_time`` makes."""
    return (network.digital is not None) + (1 + n_programmings) * n_times * repeats


def measure_over_time(
    network: nn.Module,
    data: Iterable[Any],
    t_steps: Sequence[float],
    metric: Metric,
    *,
    repeats: int = 10,
    seed: int = 0,
    on_measured: Callable[[int], object] = lambda n: None,
) -> NDArray[np.float64]:
    """Programs a network again and again and follows a metric over time.

    Afterwards the network is in evaluation mode, with the weights of the last repeat at the last
    time; its reference weights, which the next programming starts from, are as before.

    Args:
        network: a network with analog tiles made for inference.
        data: what the metric is measured on; iterated over anew for each measurement.
        t_steps: times after programming in s, ascending.
        metric: takes the network and the data and returns a number.
        repeats: number of programmings.
        seed: seed of programming, drift and accumulated read noise.
        on_measured: told the number of measurements made, after each.

    Returns:
        the metric ``(repeats, times)``.

    Raises:
        InvalidArgument: the metric does not return a number.
    """
    network.eval()
    tiles = [tile.tile for tile in analog_tiles(network)]
    values = np.empty((repeats, len(t_steps)))
    with torch.random.fork_rng():
        for repeat in range(repeats):
            torch.manual_seed(_seed(seed, repeat, 0))
            for tile in tiles:
                tile.program_weights()
            for step, t in enumerate(t_steps):
                # A metric may draw numbers as well; the noise should not depend on how many.
                torch.manual_seed(_seed(seed, repeat, 1 + step))
                for tile in tiles:
                    tile.drift_weights(t)
                values[repeat, step] = measure(network, data, metric)
                on_measured(1)
    return values


@torch.no_grad()
def measure(network: nn.Module, data: Iterable[Any], metric: Metric) -> float:
    """The metric of a network as it is, in evaluation mode.

    Raises:
        InvalidArgument: the metric does not return a number.
    """
    network.eval()
    value: Any = metric(network, data)
    number = value
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        number = value.item()
    if not isinstance(number, Real):
        name = getattr(metric, "__name__", type(metric).__name__)
        raise InvalidArgument(
            f"metric {name!r} returned {type(value).__name__}: a number is needed."
        )
    return float(number)


def accuracy(network: nn.Module, batches: Iterable[Any]) -> float:
    """Share of the inputs that a network puts into the right class.

    Args:
        network: gives scores ``(n, classes, ...)`` for inputs ``(n, ...)``.
        batches: pairs of inputs and the numbers of their classes ``(n, ...)``.

    Raises:
        InvalidArgument: the data are no such pairs, or there are none.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    n_right = n_all = 0
    for batch in _read(batches):
        inputs, classes = _as_pair(batch)
        predicted = _scores(network, inputs.to(device)).argmax(dim=1)
        if predicted.shape != classes.shape:
            raise InvalidArgument(
                f"data: targets of shape {tuple(classes.shape)} do not fit the network's "
                f"predictions of shape {tuple(predicted.shape)}: numbers of classes are needed, "
                "one for each input."
            )
        n_right += int((predicted == classes.to(device)).sum())
        n_all += classes.numel()
    if n_all == 0:
        raise InvalidArgument("data: there are no inputs; at least one batch is needed.")
    return n_right / n_all


def _check_times(network: nn.Module, t_steps: Sequence[float]) -> None:
    noise_models = {type(tile.noise_model): tile.noise_model for tile in analog_tiles(network)}
    for kind, noise_model in noise_models.items():
        if noise_model is None:  # a tile for training, refused when it is to be programmed
            continue
        for t in t_steps:
            if reason := time_refusal(noise_model, t):
                raise InvalidArgument(
                    f"t_steps contains {format_duration(t)}, which {kind.__name__} does not "
                    f"support: {reason}."
                )


def _read(batches: Iterable[Any]) -> Iterator[Any]:
    try:
        yield from batches
    except Exception as error:  # a user's data set raises what it likes
        reason = " ".join(str(error).split()).rstrip(".")
        raise InvalidArgument(
            f"data: reading them raised {type(error).__name__}{f': {reason}' if reason else ''}."
        ) from error


def _as_pair(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    if (
        isinstance(batch, list | tuple)
        and len(batch) == 2
        and all(isinstance(part, torch.Tensor) for part in batch)
    ):
        return batch[0], batch[1]
    raise InvalidArgument(
        f"data: a batch is a {type(batch).__name__}; pairs of tensors (inputs, targets) are "
        "needed, or a metric that knows what to do with it."
    )


def _scores(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    try:
        scores = network(inputs)
    except Exception as error:  # whatever a network raises, the data are not its own
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InvalidArgument(
            f"data: the network fails on inputs of shape {tuple(inputs.shape)}: {reason}."
        ) from error
    if isinstance(scores, torch.Tensor) and scores.ndim >= 2:
        return scores
    raise InvalidArgument(
        f"model: the network returned {_described(scores)}: scores (n, classes) are needed, or a "
        "metric that knows what to do with it."
    )


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return type(value).__name__


def _seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def _write_rows(rows: Iterable[Sequence[Any]], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path
