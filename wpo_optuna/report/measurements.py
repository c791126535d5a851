"""What a report shows of the weights and the hardware, measured when a study has been scored.

A stored study says what its problem was, but weights and hardware themselves are not stored. What
a report draws of them is measured while they are there, and lies in a file beside the strategy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from aihwkit.inference.converter.base import BaseConductanceConverter
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator, TypeAdapter

from wpo_optuna.hardware.device_spread import DeviceFactors, devices_around, with_factors
from wpo_optuna.hardware.device_statistics import program_and_read
from wpo_optuna.loss.base import DrawingEngine
from wpo_optuna.loss.engine_choice import drawing_engine
from wpo_optuna.loss.monte_carlo import MonteCarloEngine
from wpo_optuna.loss.parallel import one_thread
from wpo_optuna.problem import WeightProgrammingProblem
from wpo_optuna.strategy import ProgrammingStrategy
from wpo_optuna.study.estimate import Estimate

MEASUREMENTS_FILE = "measurements.json"
DRAWS = 16

_N_CURVE_POINTS = 81
_N_HISTOGRAM_BINS = 60
# Draws of these measurements alone, baseline and winner alike: no search or scoring has their seed.
_SEED_OFFSET = 104_729

# Figures of single weights and devices have a panel or a line for each time, of so many at most.
MOST_TIMES = 6
_N_LIMITS = 31
_BEYOND_LIMITS = 5e-3
# The band of errors holds 95 % of the weights, in groups of equal width over the target weight.
_BAND = (0.025, 0.5, 0.975)
_N_GROUPS = 25

# Devices around the given one: their number, and by what fraction each of their properties differs.
_N_OTHER_DEVICES = 16
DEVICE_SPREAD = 0.2

_N_TARGETS = 41
_DEVICES_PER_TARGET = 5000


# An array that is kept in a file; what is not finite is null there, and NaN once it is read.
Array = Annotated[
    NDArray[np.float64],
    PlainValidator(lambda values: np.array(values, dtype=np.float64)),
    PlainSerializer(np.ndarray.tolist),
]


@dataclass(frozen=True)
class WeightErrors:
    """Errors of programmed weights, all relative to the largest absolute weight m.

    Shares and bands are about the S times that are shown.

    Attributes:
        tnmse: 100 times the mean of ``((α w − W) / m)²`` at each time, and its 95 % interval
            ``(T, 3)``: mean, low, high.
        correlation: Pearson's, of acting and target weights at each time ``(T,)``.
        limits: L limits from zero to where nearly all errors are ``(L,)``.
        share: share of the errors whose absolute value is no larger than each ``(S, L)``.
        targets: mean target weight of G groups of weights ``(G,)``, ascending.
        band: the 2.5 %, 50 % and 97.5 % quantiles of the errors in each group ``(S, 3, G)``.
    """

    tnmse: Array
    correlation: Array
    limits: Array
    share: Array
    targets: Array
    band: Array


@dataclass(frozen=True)
class DeviceModel:
    """Statistics of devices programmed to G targets and read at the S times that are shown.

    Attributes:
        g_target_us: the targets ``(G,)`` in µS, ascending.
        programmed_mean_us: mean conductance after programming ``(G,)`` in µS.
        programmed_std_us: its standard deviation from device to device.
        mean_us: mean conductance read at each time ``(S, G)`` in µS.
        read_std_us: standard deviation ``(S, G)`` in µS of repeated reads of one device.
    """

    g_target_us: Array
    programmed_mean_us: Array
    programmed_std_us: Array
    mean_us: Array
    read_std_us: Array


@dataclass(frozen=True)
class Sensitivity:
    """What if the device is otherwise than its model says.

    Attributes:
        baseline: TNMSE of the baseline on each of K devices ``(K,)``; the first is the model's.
        optimised: that of the winner, with the same random numbers ``(K,)``.
    """

    baseline: Array
    optimised: Array


@dataclass(frozen=True)
class Measurements:
    """What was measured of a study's problem and of its winner.

    Attributes:
        fingerprint: the problem's.
        engine: name of the engine that drew the weights.
        draws: number of draws behind each error.
        t_s: times after programming in s ``(T,)``.
        histogram: share of the weights in each of equal bins from -m to m ``(B,)``.
        devices: the device model; None if the noise model cannot be sampled apart from a tile.
        sensitivity: the errors on other devices; None where the Monte Carlo engine cannot draw
            them.
        baseline_f: significance factor of each of the baseline's pairs ``(P,)``.
        baseline_g_us: its conductances ``(2P, N)`` in µS at weights evenly spaced from the most
            negative to the most positive, ordered g+ of pair 0, g- of pair 0, ...
        baseline: errors of weights that are programmed like the baseline.
        trial_number: the winning trial.
        optimised: errors of weights that are programmed with its strategy.
    """

    fingerprint: str
    engine: str
    draws: int
    t_s: Array
    histogram: Array
    devices: DeviceModel | None
    baseline_f: Array
    baseline_g_us: Array
    baseline: WeightErrors
    trial_number: int
    optimised: WeightErrors
    sensitivity: Sensitivity | None

    @property
    def shown_t_s(self) -> Array:
        """The times in s of what has a panel or a line for each ``(S,)``."""
        return self.t_s[evenly_spread(len(self.t_s), MOST_TIMES)]

    def save(self, folder: Path) -> Path:
        """Writes the file into a study's results folder, which is made, and returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / MEASUREMENTS_FILE
        path.write_bytes(TypeAdapter(Measurements).dump_json(self))
        return path

    @classmethod
    def load(cls, folder: Path) -> Measurements | None:
        """What was saved in a folder; None if there is none that this version can read."""
        try:
            return TypeAdapter(cls).validate_json((folder / MEASUREMENTS_FILE).read_bytes())
        except (OSError, ValueError):
            return None


def measure(
    problem: WeightProgrammingProblem,
    strategy: ProgrammingStrategy,
    folder: Path | None,
    *,
    winning_trial: int,
) -> Measurements:
    """Measures what a report shows of hardware, baseline and winner, and saves it.

    Args:
        problem: the problem.
        strategy: the winner's strategy.
        folder: the study's results folder; None keeps nothing.
        winning_trial: number of the winner's trial.
    """
    engine, converter = drawing_engine(problem.on_each_device[0]), problem.g_converter_baseline
    assert isinstance(engine, DrawingEngine)
    seed = int(np.random.SeedSequence([problem.seed, _SEED_OFFSET]).generate_state(1)[0])
    weights = problem.test_weights.double().numpy().ravel() / problem.max_abs_weight
    # aihwkit's converters span the matrix at hand, whose largest weight is here m.
    curves, _ = converter.convert_to_conductances(
        torch.linspace(-1, 1, _N_CURVE_POINTS) * problem.max_abs_weight
    )
    with one_thread():
        measured = Measurements(
            fingerprint=problem.fingerprint,
            engine=engine.name,
            draws=DRAWS,
            t_s=np.array(problem.t_steps),
            histogram=np.histogram(weights, _N_HISTOGRAM_BINS, (-1, 1))[0] / weights.size,
            devices=_devices(problem, seed),
            baseline_f=np.array(getattr(converter, "f_lst", [1.0]), dtype=np.float64),
            baseline_g_us=np.array([curve.double().numpy() for curve in curves]),
            baseline=measure_weight_errors(engine, converter, seed),
            trial_number=winning_trial,
            optimised=measure_weight_errors(engine, strategy.to_converter(), seed),
            sensitivity=measure_sensitivity(engine, strategy, seed),
        )
    if folder is not None:
        measured.save(folder)
    return measured


def _devices(problem: WeightProgrammingProblem, seed: int) -> DeviceModel | None:
    try:
        return sample_device_model(problem, seed)
    except Exception:  # a noise model may serve aihwkit's tile only, and fails as it likes
        return None


def evenly_spread(n: int, most: int) -> NDArray[np.int64]:
    """Indices of n things, or of so many that are spread evenly over them with both ends."""
    return np.linspace(0, n - 1, min(n, most)).round().astype(np.int64)


def measure_weight_errors(
    engine: DrawingEngine, converter: BaseConductanceConverter, seed: int
) -> WeightErrors:
    """Programs the test matrix :data:`DRAWS` times, and compares what acts with what is wanted.

    Args:
        engine: draws the weights.
        converter: how weights become conductances.
        seed: seed of the draws.
    """
    problem = engine.problem
    target = problem.test_weights.numpy().ravel() / problem.max_abs_weight
    acting = engine.draw_weights(converter, DRAWS, seed).flatten(2) / problem.max_abs_weight
    errors = acting.transpose(0, 1).numpy() - target  # (T, draws, weights)
    tnmse = 100 * np.square(errors).mean(axis=2, dtype=np.float64)
    estimates = [Estimate.of(at_time) for at_time in tnmse]
    repeated = np.tile(target, DRAWS)
    with np.errstate(invalid="ignore", divide="ignore"):  # all weights alike: NaN
        correlation = [np.corrcoef(repeated, repeated + e.ravel())[0, 1] for e in errors]
    errors = errors[evenly_spread(len(errors), MOST_TIMES)]
    reach = float(np.nanquantile(np.abs(errors), 1 - _BEYOND_LIMITS, axis=(1, 2)).max()) or 1.0
    limits = np.linspace(0, reach, _N_LIMITS)
    group = np.clip(((target + 1) / 2 * _N_GROUPS).astype(int), 0, _N_GROUPS - 1)
    members = [group == index for index in np.unique(group)]
    quantiles = [np.quantile(errors[:, :, m], _BAND, axis=(1, 2)) for m in members]
    return WeightErrors(
        tnmse=np.array([(e.mean, e.low, e.high) for e in estimates]),
        correlation=np.array(correlation),
        limits=limits,
        share=np.array([np.searchsorted(np.sort(np.abs(e), None), limits, "right") for e in errors])
        / errors[0].size,
        targets=np.array([target[m].mean() for m in members]),
        band=np.array(quantiles).transpose(2, 1, 0),
    )


def measure_sensitivity(
    engine: DrawingEngine, strategy: ProgrammingStrategy, seed: int
) -> Sensitivity | None:
    """Draws the errors of baseline and winner once on each of several devices around the given one.

    Args:
        engine: draws the weights; None is returned of others than Monte Carlo.
        strategy: the winner's strategy.
        seed: seed of the devices and draws.
    """
    if not isinstance(engine, MonteCarloEngine):
        return None
    problem = engine.problem
    unchanged = DeviceFactors()
    factors = [unchanged, *devices_around(DEVICE_SPREAD, _N_OTHER_DEVICES, seed)]
    converters = problem.g_converter_baseline, strategy.to_converter()
    tnmse = []
    for of_device in factors:
        other = replace(problem, rpu_config=with_factors(problem.rpu_config, of_device))
        of_other = MonteCarloEngine(other)
        tnmse.append([of_other.tnmse_of(converter, 1, seed)[0] for converter in converters])
    baseline, optimised = np.array(tnmse).T
    return Sensitivity(baseline, optimised)


def sample_device_model(problem: WeightProgrammingProblem, seed: int) -> DeviceModel:
    """Samples the noise model's own methods, thousands of devices for each target.

    Args:
        problem: its noise model is sampled from g_min to g_max.
        seed: seed of the sample.
    """
    targets = np.linspace(problem.g_min, problem.g_max, _N_TARGETS)
    shown = np.array(problem.t_steps)[evenly_spread(len(problem.t_steps), MOST_TIMES)]
    programmed, read = program_and_read(
        problem.noise_model, np.repeat(targets, _DEVICES_PER_TARGET), np.repeat(shown, 2), seed
    )
    programmed = programmed.reshape(_N_TARGETS, _DEVICES_PER_TARGET)
    # Two reads of the same devices differ by the noise of both.
    first, second = read.T.reshape(len(shown), 2, *programmed.shape).swapaxes(0, 1)
    return DeviceModel(
        g_target_us=targets,
        programmed_mean_us=programmed.mean(axis=1),
        programmed_std_us=programmed.std(axis=1, ddof=1),
        mean_us=first.mean(axis=2),
        read_std_us=(first - second).std(axis=2, ddof=1) / np.sqrt(2),
    )
