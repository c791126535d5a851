"""A network's accuracy over time on analogue memory, or any other figure of merit.

Each repeat is the life of one chip: its devices are programmed once and then read at one time
after the other, so that what went wrong in programming stays wrong. Programming, drift and
accumulated read noise are drawn from torch's generator and repeat with the seed. The noise within
a forward pass does not: aihwkit's compiled tile draws it from a generator of its own.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from aihwkit.inference.converter.base import BaseConductanceConverter
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from wpo_optuna import hardware
from wpo_optuna.errors import InvalidArgument
from wpo_optuna.evaluate.metric_over_time import MetricOverTime
from wpo_optuna.network.apply import analog_tiles, apply_converter, apply_strategy
from wpo_optuna.network.conversion import NetworkForms
from wpo_optuna.network.references import call_function, load_function, raised
from wpo_optuna.problem.validation import checked_times
from wpo_optuna.strategy import ProgrammingStrategy

BASELINE, OPTIMISED = "baseline", "optimised"

# A figure of merit of a network, given the network and the data.
Metric = Callable[[nn.Module, Iterable[Any]], float]

# One strategy for all layers, or strategies by layer as in ``apply_strategy``.
Programming = ProgrammingStrategy | Mapping[str, ProgrammingStrategy]


class HardwareWarning(UserWarning):
    """A strategy is measured on other hardware than it was found for."""


@dataclass(frozen=True)
class NetworkSetup:
    """A network and how its quality is measured.

    Attributes:
        network: the network, digital and analog.
        hardware: name of its hardware; that of an analog model is its own.
        data: batches for the metric, read anew for each measurement.
        metric: takes the network and the data and returns a number.
        metric_name: what to call it.
    """

    network: NetworkForms
    hardware: str
    data: Iterable[Any]
    metric: Metric
    metric_name: str

    @torch.no_grad()
    def measure(self, network: nn.Module) -> float:
        """The metric of one of the forms as it is, in evaluation mode.

        Raises:
            InvalidArgument: the metric fails or does not return a number.
        """
        try:
            return float(self.metric(network.eval(), self.data))
        except InvalidArgument:
            raise
        except Exception as error:  # what the user gives raises what it likes
            raise InvalidArgument(f"metric {self.metric_name!r} raised {raised(error)}.") from error


def set_up_network(
    *, model: str, data: str, metric: str | None, rpu_config: str | None
) -> NetworkSetup:
    """Calls the user's functions; see the command's help for each setting.

    Raises:
        InvalidArgument: a function cannot be found, fails, or returns something else.
    """
    chosen_metric, metric_name = accuracy, accuracy.__name__
    if metric is not None:
        chosen_metric, metric_name = load_function(metric, "metric"), re.split("[:.]", metric)[-1]
    network = call_function(load_function(model, "model"), model, "model")
    is_analog = isinstance(network, nn.Module) and any(analog_tiles(network))
    if rpu_config is None and not is_analog:
        rpu_config = "pcm"
    config = None if rpu_config is None else hardware.rpu_config(rpu_config)
    forms = NetworkForms.of(network, config)
    batches = call_function(load_function(data, "data"), data, "data")
    if not isinstance(batches, Iterable):
        raise InvalidArgument(
            f"data {data!r} returned {type(batches).__name__}; an iterable of batches is needed."
        )
    if iter(batches) is batches:  # a generator, which can be read only once
        batches = list(batches)
    return NetworkSetup(forms, rpu_config or "the model's own", batches, chosen_metric, metric_name)


def warn_of_other_hardware(
    strategies: Iterable[ProgrammingStrategy], network: NetworkForms
) -> None:
    """Warns of strategies that were found for other devices than the network's."""
    devices = {type(tile.noise_model).__name__ for tile in analog_tiles(network.analog)}
    made_for = {strategy.provenance.get("noise_model") for strategy in strategies}
    others = sorted(str(name) for name in made_for - devices - {None})
    if others:
        warnings.warn(
            f"The strategy was found for devices of the {', '.join(others)}, and is measured on "
            f"those of the {', '.join(sorted(devices))}; rpu_config chooses the hardware.",
            HardwareWarning,
            stacklevel=2,
        )


def compare_over_time(
    setup: NetworkSetup,
    programmings: Mapping[str, Programming],
    baseline: BaseConductanceConverter,
    t_steps: Sequence[float],
    *,
    repeats: int = 10,
    seed: int = 0,
    show_progress_bar: bool = False,
) -> MetricOverTime:
    """Compares strategies over time with a baseline and with the digital network.

    The analog network is programmed with one after the other. If it was converted from the digital
    one, for hardware with input ranges, these are set to the largest inputs among the data.

    Args:
        setup: the network, and how its quality is measured.
        programmings: what is compared, by the name of its curve: a strategy, or strategies by
            layer; layers without one are programmed like the baseline.
        baseline: converter of the programming to compare with.
        t_steps: times after programming in s, ascending.
        repeats: number of programmings of each kind.
        seed: seed of programming, drift and accumulated read noise.
        show_progress_bar: whether to show progress on a terminal.

    Raises:
        InvalidArgument: a strategy does not fit the network or its devices, the noise model does
            not know a time, or the metric does not return a number.
    """
    if repeats < 1:
        raise InvalidArgument(f"repeats = {repeats}: a whole number of at least 1 is needed.")
    digital, analog = setup.network.digital, setup.network.analog
    # A tile made for training has no noise model, and is refused when it is to be programmed.
    models = {type(m): m for tile in analog_tiles(analog) if (m := tile.noise_model) is not None}
    for model in models.values():
        checked_times(list(t_steps), model)
    for programming in programmings.values():
        apply_strategy(analog, programming)
    apply_converter(analog, baseline, "baseline")

    total = (digital is not None) + (1 + len(programmings)) * len(t_steps) * repeats
    ideal, curves = None, {}
    with tqdm(
        desc="evaluating", total=total, unit="measurement",
        disable=None if show_progress_bar else True,
    ) as bar:  # fmt: skip
        if digital is not None:
            with setup.network.setting_input_ranges() as observed:
                ideal = setup.measure(digital if observed is None else observed)
            bar.update()
        for name, chosen in [(BASELINE, None), *programmings.items()]:
            apply_converter(analog, baseline, "baseline")
            if chosen is not None:
                apply_strategy(analog, chosen)
            curves[name] = _measure_over_time(setup, t_steps, repeats, seed, bar)
    return MetricOverTime(setup.metric_name, tuple(t_steps), ideal, curves)


def _measure_over_time(
    setup: NetworkSetup, t_steps: Sequence[float], repeats: int, seed: int, bar: tqdm
) -> NDArray[np.float64]:
    """Programs the analog network again and again and follows its metric ``(repeats, times)``."""
    tiles = [tile.tile for tile in analog_tiles(setup.network.analog.eval())]
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
                values[repeat, step] = setup.measure(setup.network.analog)
                bar.update()
    return values


def _seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


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
