"""What the settings of an evaluation stand for: network, strategies, data, metric."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.evaluate.accuracy import Metric, accuracy
from wpo_optuna.hardware import rpu_config
from wpo_optuna.network.apply import NetworkForms, analog_tiles
from wpo_optuna.network.references import call_function, load_function
from wpo_optuna.strategy import ProgrammingStrategy

ALL_LAYERS = "*"
DEFAULT_RPU_CONFIG = "pcm"


class HardwareWarning(UserWarning):
    """A strategy is measured on other hardware than it was found for."""


@dataclass(frozen=True)
class NetworkSetup:
    """A network and how its quality is measured.

    Attributes:
        network: the network, digital and analog.
        hardware: name of its hardware; that of an analog model is its own.
        data: batches for the metric, which may be read many times.
        metric: takes the network and the data and returns a number.
        metric_name: what to call it.
    """

    network: NetworkForms
    hardware: str
    data: Iterable[Any]
    metric: Metric
    metric_name: str


def set_up_network(
    *, model: str, data: str, metric: str | None, rpu_config: str | None
) -> NetworkSetup:
    """Calls the user's functions; see the command's help for each setting.

    Raises:
        InvalidArgument: a function cannot be found, fails, or returns something else.
    """
    chosen_metric, metric_name = _load_metric(metric)
    network, hardware = _load_network(model, rpu_config)
    return NetworkSetup(network, hardware, _load_data(data), chosen_metric, metric_name)


def read_strategies(entries: Sequence[str]) -> dict[str, ProgrammingStrategy]:
    """Strategies by layer, from ``FILE`` for all layers or ``LAYER=FILE`` for some.

    Raises:
        InvalidArgument: a file cannot be read, or there are two strategies for a layer.
    """
    strategies: dict[str, ProgrammingStrategy] = {}
    for entry in entries:
        layer, equals, path = entry.partition("=")
        if not equals or Path(entry).is_file():
            layer, path = ALL_LAYERS, entry
        if layer in strategies:
            which = "all layers" if layer == ALL_LAYERS else f"layer {layer!r}"
            raise InvalidArgument(
                f"strategy = {' '.join(entries)!r}: there are two strategies for {which}; one is "
                "needed, or LAYER=FILE for strategies by layer."
            )
        try:
            strategies[layer] = ProgrammingStrategy.load(path)
        except InvalidArgument as error:
            raise InvalidArgument(f"strategy = {entry!r}: {error}") from error
    return strategies


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


def _load_network(reference: str, hardware: str | None) -> tuple[NetworkForms, str]:
    """The network, and the name of its hardware."""
    model = call_function(load_function(reference, "model"), reference, "model")
    is_analog = isinstance(model, nn.Module) and any(analog_tiles(model))
    name = DEFAULT_RPU_CONFIG if hardware is None and not is_analog else hardware
    if name is None:
        return NetworkForms.of(model, None), "the model's own"
    return NetworkForms.of(model, rpu_config(name)), name


def _load_data(reference: str) -> Iterable[Any]:
    data = call_function(load_function(reference, "data"), reference, "data")
    if not isinstance(data, Iterable):
        raise InvalidArgument(
            f"data {reference!r} returned {type(data).__name__}; an iterable of batches is needed."
        )
    # A generator can be read once only, and the data are read for each measurement.
    return list(data) if iter(data) is data else data


def _load_metric(reference: str | None) -> tuple[Metric, str]:
    if reference is None:
        return accuracy, accuracy.__name__
    function = load_function(reference, "metric")
    name = reference.rpartition(":")[2].rpartition(".")[2]

    def metric(network: nn.Module, data: Iterable[Any]) -> Any:
        return call_function(function, reference, "metric", network, data)

    metric.__name__ = name  # what messages call it
    return metric, name
