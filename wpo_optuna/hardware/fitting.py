"""A noise model fitted to measured conductances, by the method of simulated moments.

Statistics of the measurements (mean and spread of the programming error, of each device's drift,
of what is left beside it) are compared with those of devices that the noise model itself programs,
drifts and reads at the same targets and times, and the model's parameters are adjusted until both
agree. What clipping at zero, absolute values and logarithms do to a statistic is then the same on
both sides and needs no formula. Intervals come from the parametric bootstrap: as many devices as
were measured are drawn from the fitted model, and what that changes in the statistics is carried
over to the parameters.

Source: D. McFadden, "A method of simulated moments for estimation of discrete response models
without numerical integration", Econometrica 57, 1989.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from aihwkit.inference.converter.conductance import SinglePairConductanceConverter
from aihwkit.inference.noise.pcm import CustomDriftPCMLikeNoiseModel
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import chi2

from wpo_optuna.hardware.device_statistics import (
    DeviceStatistics,
    logarithm_of,
    programming_errors,
)
from wpo_optuna.hardware.measured_model import MeasuredNoiseModel
from wpo_optuna.hardware.measurements import Measurements

FloatArray = NDArray[np.float64]

# The share of the bootstrap's draws within an interval.
_COVERAGE = 0.95
# A model that fits is rejected as often as this.
_FALSE_ALARMS = 1e-3
# The step of finite differences, in units of a parameter's scale.
_STEP = 0.05


@dataclass(frozen=True)
class FittedParameter:
    """A parameter of a fitted model.

    Attributes:
        name: its name, with the conductance where it belongs to one.
        value: the best estimate.
        low, high: ends of the 95 % interval.
    """

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class FittedModel:
    """A noise model fitted to measurements.

    Attributes:
        model_class: aihwkit's model if its formulas fit, otherwise ``MeasuredNoiseModel``.
        options: arguments of its constructor.
        parameters: with their intervals.
        resampled: arguments for the bootstrap's models.
        p_value: how probable measurements are that differ more from the model; of aihwkit's model,
            even where that was rejected.
        without_drift: targets in µS that are too low for their drift to be measured; they are
            given that of the next higher one.
    """

    model_class: type[CustomDriftPCMLikeNoiseModel]
    options: Mapping[str, Any]
    parameters: tuple[FittedParameter, ...]
    resampled: tuple[Mapping[str, Any], ...]
    p_value: float
    without_drift: tuple[float, ...]

    def noise_model(self) -> CustomDriftPCMLikeNoiseModel:
        """The model, with a single pair of the measured range as its converter."""
        return _model(self.model_class, self.options)


def fit(measurements: Measurements, *, t_0: float = 20.0, seed: int = 0) -> FittedModel:
    """Fits aihwkit's model of a device; where its formulas do not fit, one of tables.

    Args:
        measurements: what was read.
        t_0: the time in s after programming from which drift counts, as in aihwkit.
        seed: seed of simulation and bootstrap.
    """
    data = DeviceStatistics(measurements, t_0, seed)
    fitted = _fitted(data, _aihwkits_form(data))
    if fitted.p_value >= _FALSE_ALARMS:
        return fitted
    return replace(_fitted(data, _tables_form(data)), p_value=fitted.p_value)


# Models


@dataclass(frozen=True, eq=False)
class _Form:
    """A model's parameters, and how it is made of them.

    Attributes:
        model_class: the noise model's class.
        names: of the parameters ``(p,)``.
        start: first guess ``(p,)``.
        scale: by how much they might be wrong ``(p,)``.
        lowest: their lower bounds ``(p,)``.
        options: the constructor's arguments for parameters ``(p,)``.
    """

    model_class: type[CustomDriftPCMLikeNoiseModel]
    names: tuple[str, ...]
    start: FloatArray
    scale: FloatArray
    lowest: FloatArray
    options: Callable[[FloatArray], dict[str, Any]] = field(repr=False)


def _aihwkits_form(data: DeviceStatistics) -> _Form:
    """A polynomial for programming, a table for drift, one scale for read noise."""
    g_max = data.g_range[1]
    _, error = _guess_of_programming(data)
    nu = _guess_of_drift(data)
    polynomial = np.polynomial.Polynomial.fit(data.targets / g_max, error, 2, domain=[-1, 1])
    # Without devices to follow, read noise cannot be told from an error of programming.
    read_noise = np.ones(int(data.measurements.are_followed))
    start = np.concatenate([polynomial.coef, nu, nu / 3, read_noise])
    scale = np.concatenate([np.full(3, error.max()), nu, nu, read_noise])
    places, n_known = _at(data.targets[data.has_drift]), int(data.has_drift.sum())
    names = (
        "programming c0 (µS)", "programming c1 (µS)", "programming c2 (µS)",
        *(f"nu mean {place}" for place in places), *(f"nu std {place}" for place in places),
        *["read noise scale"][: len(read_noise)],
    )  # fmt: skip

    def options(p: FloatArray) -> dict[str, Any]:
        programming, mean, std, read_noise = np.split(p, np.cumsum([3, n_known, n_known]))
        tables = _table(data, mean, std)
        drift = dict(zip(("g_lst", "nu_mean_lst", "nu_std_lst"), tables, strict=True))
        return {
            "custom_drift_model": drift, "prog_coeff": programming.tolist(),
            "read_noise_scale": float(read_noise.sum()) if len(read_noise) else 1.0,
            "t_0": data.t_0,
        }  # fmt: skip

    lowest = np.concatenate([np.full(3, -np.inf), np.zeros(len(start) - 3)])
    return _Form(CustomDriftPCMLikeNoiseModel, names, start, scale, lowest, options)


def _aihwkits_read_noise(data: DeviceStatistics) -> FloatArray:
    """The relative read noise of aihwkit's model where the drift is known.

    Source: ``PCMLikeNoiseModel.apply_drift_noise_to_conductance``.
    """
    relative = data.targets[data.has_drift] / data.g_range[1]
    return np.minimum(0.0088 / np.maximum(relative**0.65, 1e-3), 0.2)


def _tables_form(data: DeviceStatistics) -> _Form:
    """A table for everything."""
    bias, error = _guess_of_programming(data)
    nu = _guess_of_drift(data)
    n, n_known = len(data.targets), len(nu)
    read_noise = _aihwkits_read_noise(data)[: n_known * data.measurements.are_followed]
    start = np.concatenate([bias, error, nu, nu / 3, read_noise])
    scale = np.concatenate([error, error, nu, nu, read_noise])
    every, known = _at(data.targets), _at(data.targets[data.has_drift])
    names = (
        *(f"programming bias {place} (µS)" for place in every),
        *(f"programming std {place} (µS)" for place in every),
        *(f"nu mean {place}" for place in known), *(f"nu std {place}" for place in known),
        *(f"read noise {place}" for place in known[: len(read_noise)]),
    )  # fmt: skip

    def options(p: FloatArray) -> dict[str, Any]:
        bias, std, *of_drift, noise = np.split(p, np.cumsum([n, n, n_known, n_known]))
        noise = noise if len(noise) else _aihwkits_read_noise(data)
        knots, nu_mean, nu_std, noise_at_knots = _table(data, *of_drift, noise)
        return {
            "g_lst": knots, "programming_bias": bias.tolist(), "programming_std": std.tolist(),
            "nu_mean": nu_mean, "nu_std": nu_std, "read_noise": noise_at_knots, "t_0": data.t_0,
        }  # fmt: skip

    lowest = np.concatenate([np.full(n, -np.inf), np.zeros(len(start) - n)])
    return _Form(MeasuredNoiseModel, names, start, scale, lowest, options)


def _at(targets: FloatArray) -> list[str]:
    return [f"at {target:.3g} µS" for target in targets]


def _table(data: DeviceStatistics, *of_known: FloatArray) -> list[list[float]]:
    """Knots that span the range, and tables at them of what is known at some of the targets."""
    low, high = data.g_range
    knots = np.concatenate([[low], data.targets[1:-1], [high]])
    known = data.targets[data.has_drift]
    return [knots.tolist(), *(np.interp(data.targets, known, v).tolist() for v in of_known)]


def _model(
    model_class: type[CustomDriftPCMLikeNoiseModel], options: Mapping[str, Any]
) -> CustomDriftPCMLikeNoiseModel:
    knots = options.get("g_lst") or options["custom_drift_model"]["g_lst"]
    converter = SinglePairConductanceConverter(g_min=knots[0], g_max=knots[-1])
    return model_class(**options, g_converter=converter)


def _guess_of_programming(data: DeviceStatistics) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation in µS of the errors of programming at each target ``(G,)``."""
    errors = [programming_errors(data.measurements, group) for group in data.groups]
    return np.array([e.mean() for e in errors]), np.array([e.std() + 1e-6 for e in errors])


def _guess_of_drift(data: DeviceStatistics) -> FloatArray:
    """The drift coefficient at each target that tells of it, by one line through all readings."""
    slopes = []
    for group, has_drift in zip(data.groups, data.has_drift, strict=True):
        if has_drift:
            y = logarithm_of(data.measurements.conductance[group])
            x = np.broadcast_to(data.logarithm_of_time(), y.shape)
            slopes.append(np.polyfit(x[np.isfinite(y)], y[np.isfinite(y)], 1)[0])
    return np.maximum(-np.array(slopes), 1e-3)


# Fitting


def _fitted(data: DeviceStatistics, form: _Form) -> FittedModel:
    def parameters(z: FloatArray) -> FloatArray:
        return np.maximum(form.start + form.scale * (z - 1), form.lowest)

    def misfits(z: FloatArray) -> FloatArray:
        model = _model(form.model_class, form.options(parameters(z)))
        return (data.simulated(model) - data.statistics) / data.errors

    # Parameters in units in which all are 1: finite differences are steps relative to that.
    bounds = 1 + (form.lowest - form.start) / form.scale
    found = least_squares(
        misfits, np.maximum(1.0, bounds), bounds=(bounds, np.inf), diff_step=_STEP, ftol=1e-4,
        max_nfev=12,
    )  # fmt: skip
    freedom = len(data.statistics) - len(form.start)
    values = parameters(found.x)
    scatter = data.scatter(_model(form.model_class, form.options(values))) / data.errors
    steps = scatter @ np.linalg.pinv(found.jac).T
    drawn = np.array([parameters(found.x + step) for step in steps])
    low, high = np.quantile(drawn, [(1 - _COVERAGE) / 2, (1 + _COVERAGE) / 2], axis=0)
    intervals = zip(form.names, *(v.tolist() for v in (values, low, high)), strict=True)
    return FittedModel(
        model_class=form.model_class,
        options=form.options(values),
        parameters=tuple(FittedParameter(*interval) for interval in intervals),
        resampled=tuple(form.options(p) for p in drawn[:16]),
        p_value=float(chi2.sf(2 * found.cost, freedom)) if freedom > 0 else 1.0,
        without_drift=tuple(data.targets[~data.has_drift].tolist()),
    )
