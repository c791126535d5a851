"""A network's accuracy over time on analogue memory, or any other figure of merit.

Each repeat is the life of one chip: its devices are programmed once and then read at one time
after the other, so that what went wrong in programming stays wrong. Programming, drift and
accumulated read noise repeat with the seed, and so does the noise within a forward pass, unless
aihwkit's compiled tile computes it: that draws from a generator of its own.
"""

from __future__ import annotations

import re
import traceback
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
from wpo_optuna.evaluate.chip import Chip, Engine, chip_of
from wpo_optuna.evaluate.metric_over_time import MetricOverTime
from wpo_optuna.network.account import NetworkWarning
from wpo_optuna.network.analogue import Choice
from wpo_optuna.network.apply import analog_tiles, apply_converter, apply_strategy
from wpo_optuna.network.conversion import NetworkForms
from wpo_optuna.network.references import call_function, load_function, raised
from wpo_optuna.problem.validation import checked_times
from wpo_optuna.strategy import ProgrammingStrategy

BASELINE, OPTIMISED = "baseline", "optimised"

_NEEDED = (
    "batches of (inputs, targets) with the number of the class for each input are needed, or a "
    "metric that knows what to do with other data"
)

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
            InvalidArgument: the metric fails or does not return a number. Where the network fails,
                the message names the layer, and says whether the digital form runs.
        """
        try:
            return float(self.metric(network.eval(), self.data))
        except InvalidArgument:
            raise
        except Exception as error:  # what the user gives raises what it likes
            raise InvalidArgument(self._told(network, error)) from error

    def _told(self, network: nn.Module, error: Exception) -> str:
        layer = _layer_of(error, network)
        if layer is None:
            return f"metric {self.metric_name!r} raised {raised(error)}."
        where = f"layer {layer!r}" if layer else "its forward pass"
        if network is not self.network.analog:
            return f"model: the digital network fails on the data, in {where}: {raised(error)}."
        # The digital network, where there is one, is measured before.
        beside = ""
        if self.network.digital is not None:
            beside = ", while the digital one runs on the same data"
        remedy = f"; exclude {layer + '*'!r} leaves the layer digital" if layer else ""
        return (
            f"model: the network on analogue tiles fails in {where} ({raised(error)}){beside}"
            f"{remedy}."
        )


def _layer_of(error: Exception, network: nn.Module) -> str | None:
    """The innermost layer of a network that an error came through, by its path; None if none."""
    names = {id(module): name for name, module in network.named_modules()}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    owners = [id(frame.f_locals.get("self")) for frame in frames]
    found = [names[owner] for owner in owners if owner in names]
    # Inside aihwkit's layers are its tiles, of which users know nothing.
    return found[-1].partition(".analog_module")[0].removesuffix("analog_module") if found else None


def set_up_network(
    *,
    model: str,
    data: str | None,
    metric: str | None,
    rpu_config: str | None,
    choice: Choice | None = None,
) -> NetworkSetup:
    """Calls the user's functions; see the command's help for each setting.

    What of the network becomes analogue is told in warnings where it is not what one would expect.

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
    forms = NetworkForms.of(network, config, choice)
    told = forms.account.warning()
    if told is not None:
        warnings.warn(told, NetworkWarning, stacklevel=2)
    batches: Any = ()
    if data is not None:
        batches = call_function(load_function(data, "data"), data, "data")
    if not isinstance(batches, Iterable):
        raise InvalidArgument(
            f"data {data!r} returned {type(batches).__name__}; an iterable of batches is needed."
        )
    if iter(batches) is batches:  # a generator, which can be read only once
        batches = list(batches)
    return NetworkSetup(forms, rpu_config or "the model's own", batches, chosen_metric, metric_name)


def warn_of_strategies(strategies: Iterable[ProgrammingStrategy], network: NetworkForms) -> None:
    """Warns of strategies found for other devices or other tensors, or that are no better."""
    devices = {type(tile.noise_model).__name__ for tile in analog_tiles(network.analog)}
    strategies = list(strategies)
    made_for = {strategy.provenance.get("noise_model") for strategy in strategies}
    others = sorted(str(name) for name in made_for - devices - {None})
    if others:
        warnings.warn(
            f"The strategy was found for devices of the {', '.join(others)}, and is measured on "
            f"those of the {', '.join(sorted(devices))}; rpu_config chooses the hardware.",
            HardwareWarning,
            stacklevel=2,
        )
    studied = [name for s in strategies for name in s.provenance.get("analogue", ())]
    told = [network.account.disagreement(studied)]
    told += [strategy.provenance.get("warning") for strategy in strategies]
    for message in dict.fromkeys(filter(None, told)):
        warnings.warn(message, NetworkWarning, stacklevel=2)


def compare_over_time(
    setup: NetworkSetup,
    programmings: Mapping[str, Programming],
    baseline: BaseConductanceConverter,
    t_steps: Sequence[float],
    *,
    repeats: int = 10,
    seed: int = 0,
    engine: Engine = "auto",
    device: str = "cpu",
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
        seed: seed of the noise.
        engine: what computes the tiles, see :func:`~wpo_optuna.evaluate.chip.chip_of`.
        device: torch device of the analog network.
        show_progress_bar: whether to show progress on a terminal.

    Raises:
        InvalidArgument: a strategy does not fit the network or its devices, the noise model does
            not know a time, the metric does not return a number, or the engine cannot compute the
            tiles.
    """
    if repeats < 1:
        raise InvalidArgument(f"repeats = {repeats}: a whole number of at least 1 is needed.")
    analog = setup.network.analog
    # A tile made for training has no noise model, and is refused when it is to be programmed.
    models = {type(m): m for tile in analog_tiles(analog) if (m := tile.noise_model) is not None}
    for model in models.values():
        checked_times(list(t_steps), model)
    for programming in programmings.values():
        apply_strategy(analog, programming)
    apply_converter(analog, baseline, "baseline")

    total = (setup.network.digital is not None) + (1 + len(programmings)) * len(t_steps) * repeats
    ideal, curves = None, {}
    with tqdm(
        desc="evaluating", total=total, unit="measurement",
        disable=None if show_progress_bar else True,
    ) as bar:  # fmt: skip
        with setup.network.setting_input_ranges() as digital:
            if digital is not None:
                ideal = setup.measure(digital)
                bar.update()
        with chip_of(analog, t_steps, engine, device) as chip:
            for name, chosen in [(BASELINE, None), *programmings.items()]:
                apply_converter(analog, baseline, "baseline")
                if chosen is not None:
                    apply_strategy(analog, chosen)
                curves[name] = _measure_over_time(setup, chip, t_steps, repeats, seed, bar)
    is_better = _higher_is_better(setup.metric, ideal, curves)
    return MetricOverTime(
        setup.metric_name, tuple(t_steps), ideal, curves, is_better, engine=chip.engine
    )


def _higher_is_better(
    metric: Metric, ideal: float | None, curves: Mapping[str, NDArray[np.float64]]
) -> bool | None:
    """Whether more of a metric is better: of other than accuracy, whether the ideal has more."""
    if metric is accuracy:
        return True  # also where noise happens to help
    return None if ideal is None else bool(ideal > np.mean([*curves.values()]))


def _measure_over_time(
    setup: NetworkSetup, chip: Chip, t_steps: Sequence[float], repeats: int, seed: int, bar: tqdm
) -> NDArray[np.float64]:
    """Programs the analog network again and again and follows its metric ``(repeats, times)``."""
    values = np.empty((repeats, len(t_steps)))
    with torch.random.fork_rng(devices=[]):
        for repeat in range(repeats):
            chip.program(seed, repeat, 0)
            for step, t in enumerate(t_steps):
                chip.drift(t, seed, repeat, 1 + step)
                values[repeat, step] = setup.measure(setup.network.analog)
                bar.update()
    return values


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
    for batch in batches:
        is_sequence = isinstance(batch, Sequence)
        held = [type(part).__name__ for part in batch] if is_sequence else []
        if len(held) != 2 or not all(isinstance(part, torch.Tensor) for part in batch):
            what = f"[{', '.join(held)}]" if is_sequence else type(batch).__name__
            raise InvalidArgument(f"data: a batch is {what}; {_NEEDED}.")
        inputs, classes = batch
        scores = network(inputs.to(device))
        if scores.dim() < 2 or scores.shape[:1] + scores.shape[2:] != classes.shape:
            raise InvalidArgument(
                f"data: the network's scores have shape {tuple(scores.shape)} and the targets "
                f"{tuple(classes.shape)}; {_NEEDED}."
            )
        predicted = scores.argmax(dim=1)
        n_right += int((predicted == classes.to(device)).sum())
        n_all += classes.numel()
    if n_all == 0:
        raise InvalidArgument("data: there are no inputs; at least one batch is needed.")
    return n_right / n_all
