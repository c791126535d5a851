"""A fitted device as a Python file that ``--rpu-config`` takes, and as a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from pprint import pformat
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from wpo_optuna.hardware.device_statistics import simulate
from wpo_optuna.hardware.fitting import FittedModel, FittedParameter
from wpo_optuna.hardware.measurements import Measurements
from wpo_optuna.report import drawing

FloatArray = NDArray[np.float64]

_PROGRAM = '''"""{title}

Made by `python -m wpo_optuna.hardware fit`; for `--rpu-config {file}:rpu_config`.
"""

from aihwkit.inference.converter.conductance import SinglePairConductanceConverter
from {module} import {name}

from wpo_optuna.hardware import named_rpu_config

G_MIN, G_MAX = {g_min!r}, {g_max!r}  # the targets that were measured, in µS

FITTED = {fitted}

# Of the bootstrap: devices that the measurements do not tell from the fitted one.
RESAMPLED = {resampled}


def noise_model(options=FITTED):
    converter = SinglePairConductanceConverter(g_min=G_MIN, g_max=G_MAX)
    return {name}(**options, g_converter=converter)


def rpu_config(options=FITTED):
    """These devices with the converters of aihwkit's example 33; change what differs."""
    config = named_rpu_config("pcm").build()
    config.noise_model = noise_model(options)
    return config


def rpu_configs():
    """The same with each of the bootstrap's devices."""
    return [rpu_config(options) for options in RESAMPLED]
'''

# Targets whose readings are drawn over time, and devices simulated for each.
_CURVES, _SIMULATED = 4, 2000


def write_device(fitted: FittedModel, path: Path, title: str) -> Path:
    """Writes a Python file with functions ``rpu_config`` and ``rpu_configs``.

    Args:
        fitted: the model.
        path: of the file.
        title: a sentence that says what it was fitted to.
    """
    model = fitted.noise_model()
    text = _PROGRAM.format(
        title=title, file=path.name, module=fitted.model_class.__module__,
        name=fitted.model_class.__name__, g_min=model.g_converter.g_min,
        g_max=model.g_converter.g_max, fitted=_literal(fitted.options),
        resampled=_literal([_rounded(options) for options in fitted.resampled]),
    )  # fmt: skip
    path.write_text(text, encoding="utf-8")
    return path


def figure_of_fit(told: tuple[FittedModel, Measurements]) -> Figure:
    """The fitted model beside the measurements."""
    fitted, measurements = told
    figure, (over_time, scatter, drift) = drawing.panels(3, 2.3)
    _draw_over_time(over_time, fitted, measurements)
    _draw_scatter(scatter, fitted, measurements)
    _draw_drift(drift, fitted.parameters)
    return figure


def _draw_over_time(axes: Axes, fitted: FittedModel, measurements: Measurements) -> None:
    places = drawing.time_axis(axes, measurements.t.tolist())
    groups = measurements.groups()
    chosen = np.unique(np.linspace(0, len(groups) - 1, _CURVES).round().astype(int))
    for number, look in zip(chosen, drawing.LOOKS, strict=False):
        group = groups[number]
        target = measurements.target[group]
        model = simulate(
            fitted.noise_model(), np.resize(target, _SIMULATED), measurements.t, seed=0
        )
        quantiles = np.nanquantile(measurements.conductance[group], [0.1, 0.5, 0.9], axis=0)
        low, middle, high = np.quantile(model, [0.1, 0.5, 0.9], axis=0)
        colour = {"color": look["color"]}
        axes.fill_between(places, low, high, alpha=0.15, linewidth=0, **colour)
        axes.plot(places, middle, linestyle="-", label=f"target {target.mean():.3g} µS", **colour)
        axes.errorbar(
            places, quantiles[1], [quantiles[1] - quantiles[0], quantiles[2] - quantiles[1]],
            fmt=look["marker"], markersize=3.5, linewidth=1, **colour,
        )  # fmt: skip
    axes.set_title("Measured (marks, 10 to 90 %) and fitted (lines, bands)")
    axes.set_ylabel("conductance in µS")
    axes.legend(ncols=2, loc="upper right", fontsize=8)
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])


def _draw_scatter(axes: Axes, fitted: FittedModel, measurements: Measurements) -> None:
    low, high = measurements.target.min(), measurements.target.max()
    grid = np.linspace(low, high, 33)
    for column, look, name in (
        (0, drawing.OPTIMISED, "first reading"),
        (len(measurements.t) - 1, drawing.BASELINE, "last reading"),
    ):
        of_groups = [
            (measurements.target[group].mean(), np.nanstd(readings, ddof=1))
            for group in measurements.groups()
            if np.isfinite(readings := measurements.conductance[group, column]).sum() > 1
        ]
        t = measurements.t[[column]]
        model = simulate(fitted.noise_model(), np.repeat(grid, _SIMULATED), t, seed=1)
        of_model = model.reshape(len(grid), _SIMULATED).std(axis=1)
        axes.plot(*np.array(of_groups).T, "o", color=look["color"], markersize=3.5)
        label = f"{name}, {drawing.time_name(float(t[0]))}"
        axes.plot(grid, of_model, color=look["color"], linestyle=look["linestyle"], label=label)
    axes.set_title("Spread of the readings: measured (marks) and fitted")
    axes.set_xlabel("target conductance in µS")
    axes.set_ylabel("standard deviation in µS")
    axes.set_ylim(bottom=0)
    axes.legend()


def _draw_drift(axes: Axes, parameters: tuple[FittedParameter, ...]) -> None:
    for name, look in (("nu mean", drawing.OPTIMISED), ("nu std", drawing.BASELINE)):
        found = [p for p in parameters if p.name.startswith(name)]
        targets = [float(p.name.split()[-2]) for p in found]
        value, low, high = np.array([(p.value, p.low, p.high) for p in found]).T
        axes.errorbar(
            targets, value, np.maximum([value - low, high - value], 0), marker="o", markersize=3.5,
            color=look["color"], linestyle=look["linestyle"],
            label=name.replace("nu mean", "mean").replace("nu std", "standard deviation"),
        )  # fmt: skip
    axes.set_title("Drift coefficient ν, with 95 % intervals")
    axes.set_xlabel("target conductance in µS")
    axes.set_ylim(bottom=0)
    axes.legend()


def _literal(value: object) -> str:
    return pformat(_rounded(value), width=96, compact=True, sort_dicts=False)


def _rounded(value: Any) -> Any:
    """Numbers in six significant digits, in lists and dictionaries of any depth."""
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value
