"""A network's accuracy over time on analogue memory, or any other figure of merit.

Each repeat is the life of one chip: its devices are programmed once and then read at one time
after the other, so that what went wrong in programming stays wrong. Programming, drift and
accumulated read noise are drawn from torch's generator and repeat with the seed. The noise within
a forward pass does not: aihwkit's compiled tile draws it from a generator of its own.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aihwkit.inference.converter.base import BaseConductanceConverter
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.hardware import format_duration
from wpo_optuna.network.apply import NetworkForms, analog_tiles, apply_converter, apply_strategy
from wpo_optuna.network.references import raised
from wpo_optuna.problem.validation import checked_times
from wpo_optuna.strategy import ProgrammingStrategy

BASELINE, OPTIMISED = "baseline", "optimised"

# A figure of merit of a network, given the network and the data.
Metric = Callable[[nn.Module, Iterable[Any]], float]

# One strategy for all layers, or strategies by layer as in ``apply_strategy``.
Programming = ProgrammingStrategy | Mapping[str, ProgrammingStrategy]


@dataclass(frozen=True, eq=False)
class MetricOverTime:
    """A metric over time, for several ways to program the same weights.

    Attributes:
        metric: name of the metric.
        t_steps: times after programming in s ``(times,)``.
        ideal: the metric of the digital network; None where there is no digital one.
        curves: the metric ``(repeats, times)`` for each way to program, by its name.
    """

    metric: str
    t_steps: tuple[float, ...]
    ideal: float | None
    curves: Mapping[str, NDArray[np.float64]]

    @property
    def repeats(self) -> int:
        """How often each way to program was repeated."""
        return len(next(iter(self.curves.values())))

    def mean(self, name: str) -> NDArray[np.float64]:
        """Mean of a curve over the repeats ``(times,)``."""
        return self.curves[name].mean(axis=0)

    def spread(self, name: str) -> NDArray[np.float64]:
        """Standard deviation of a curve over the repeats ``(times,)``; NaN for a single one."""
        if self.repeats == 1:
            return np.full(len(self.t_steps), np.nan)
        return self.curves[name].std(axis=0, ddof=1)

    def table(self) -> str:
        """The means and standard deviations, for people to read."""
        rows = [["", *self.curves]]
        for step, t in enumerate(self.t_steps):
            cells = [
                f"{self.mean(name)[step]:.4g}"
                + (f" ± {self.spread(name)[step]:.2g}" if self.repeats > 1 else "")
                for name in self.curves
            ]
            rows.append([format_duration(t), *cells])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        of_what = f"mean ± standard deviation of {self.repeats} programmings"
        if self.repeats == 1:
            of_what = "one programming"
        ideal = "" if self.ideal is None else f"; of the digital network {self.ideal:.4g}"
        return "\n".join([f"{self.metric} after programming, {of_what}{ideal}:", "", *lines])

    def save(self, directory: Path) -> list[Path]:
        """Writes tables and figure, and returns their paths."""
        from wpo_optuna.evaluate import accuracy_figure

        return [
            self.write_measurements(directory / "measurements.csv"),
            self.write_summary(directory / "summary.csv"),
            *accuracy_figure.save(self, directory, "over_time"),
        ]

    def write_measurements(self, path: Path) -> Path:
        """Writes every single measurement as CSV: one line for each repeat and time."""
        rows: list[Sequence[Any]] = [["programming", "repeat", "t_s", self.metric]]
        if self.ideal is not None:
            rows.append(["ideal", "", "", self.ideal])
        for name, values in self.curves.items():
            for (repeat, step), value in np.ndenumerate(values):
                rows.append([name, repeat, self.t_steps[step], float(value)])
        return _write_rows(rows, path)

    def write_summary(self, path: Path) -> Path:
        """Writes the mean, the standard deviation and the extremes of each curve as CSV."""
        header = ["programming", "t_s", "time", "mean", "standard_deviation", "lowest", "highest"]
        rows: list[Sequence[Any]] = [[*header, "repeats"]]
        for name, values in self.curves.items():
            columns = (self.mean(name), self.spread(name), values.min(axis=0), values.max(axis=0))
            for t, *numbers in zip(self.t_steps, *(c.tolist() for c in columns), strict=True):
                rows.append([name, t, format_duration(t), *numbers, self.repeats])
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
    show_progress_bar: bool = False,
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
        show_progress_bar: whether to show progress on a terminal.

    Raises:
        InvalidArgument: a strategy does not fit the network or its devices, the noise model does
            not know a time, or the metric does not return a number.
    """
    if repeats < 1:
        raise InvalidArgument(f"repeats = {repeats}: a whole number of at least 1 is needed.")
    analog = network.analog
    # A tile made for training has no noise model, and is refused when it is to be programmed.
    models = {type(m): m for tile in analog_tiles(analog) if (m := tile.noise_model) is not None}
    for model in models.values():
        checked_times(list(t_steps), model)
    for programming in programmings.values():
        apply_strategy(analog, programming)
    apply_converter(analog, baseline, "baseline")

    total = (network.digital is not None) + (1 + len(programmings)) * len(t_steps) * repeats
    ideal, curves = None, {}
    with tqdm(
        desc="evaluating", total=total, unit="measurement",
        disable=None if show_progress_bar else True,
    ) as bar:  # fmt: skip
        if network.digital is not None:
            with network.setting_input_ranges():
                ideal = measure(network.digital, data, metric)
            bar.update()
        for name, chosen in [(BASELINE, None), *programmings.items()]:
            apply_converter(analog, baseline, "baseline")
            if chosen is not None:
                apply_strategy(analog, chosen)
            curves[name] = measure_over_time(
                analog, data, t_steps, metric, repeats=repeats, seed=seed, on_measured=bar.update
            )
    return MetricOverTime(metric_name, tuple(t_steps), ideal, curves)


def measure_over_time(
    network: nn.Module,
    data: Iterable[Any],
    t_steps: Sequence[float],
    metric: Metric,
    *,
    repeats: int,
    seed: int = 0,
    on_measured: Callable[[int], object] = lambda n: None,
) -> NDArray[np.float64]:
    """Programs a network again and again and follows a metric over time ``(repeats, times)``.

    Afterwards the network is in evaluation mode, with the weights of the last repeat at the last
    time; its reference weights, which the next programming starts from, are as before. For the
    arguments and errors see :func:`compare_over_time`.
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
    is_scalar = isinstance(value, torch.Tensor) and value.numel() == 1
    if not isinstance(value, Real) and not is_scalar:
        name = getattr(metric, "__name__", type(metric).__name__)
        raise InvalidArgument(
            f"metric {name!r} returned {type(value).__name__}: a number is needed."
        )
    return float(value)


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
    try:
        for inputs, classes in batches:
            predicted = network(inputs.to(device)).argmax(dim=1)
            if predicted.shape != classes.shape:
                raise ValueError(
                    f"targets {tuple(classes.shape)}, classes {tuple(predicted.shape)}"
                )
            n_right += int((predicted == classes.to(device)).sum())
            n_all += classes.numel()
    except Exception as error:  # a data set and a network of the user's raise what they like
        raise InvalidArgument(
            "data: batches of (inputs, targets) are needed that the network takes, with the number "
            "of the class for each input, or a metric that knows what to do with other data; "
            f"classifying them raised {raised(error)}."
        ) from error
    if n_all == 0:
        raise InvalidArgument("data: there are no inputs; at least one batch is needed.")
    return n_right / n_all


def _seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def _write_rows(rows: Iterable[Sequence[Any]], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path
