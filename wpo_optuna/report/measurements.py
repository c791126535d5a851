"""What a report shows of the weights and the hardware, measured when a study has been scored.

A stored study says what its problem was, but weights and hardware themselves are not stored. What
a report draws of them is measured while they are there, and lies in a file beside the strategy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator, TypeAdapter

from wpo_optuna.loss.engine_choice import drawing_engine
from wpo_optuna.loss.parallel import one_thread
from wpo_optuna.study.estimate import Estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.loss.base import DrawingEngine
    from wpo_optuna.problem import WeightProgrammingProblem
    from wpo_optuna.strategy import ProgrammingStrategy

MEASUREMENTS_FILE = "measurements.json"
DRAWS = 16

_SIGNIFICANT_DIGITS = 5  # figures show no more
_N_CURVE_POINTS = 81
_N_HISTOGRAM_BINS = 60
# Draws of these measurements alone: no search and no scoring has their seeds.
_SEED_OFFSET = 104_729

# Figures of single weights have a panel for each time; of more times, these many are shown.
_MOST_PANELS = 4
_N_ERROR_BINS = 61
_OUTSIDE_BINS = 5e-3
# The band of errors holds 95 % of the weights, in groups of equal width over the target weight.
_BAND = (0.025, 0.5, 0.975)
_N_GROUPS = 25

_MOST_READS = 8  # times at which devices are read: more lines cannot be told apart
_N_TARGETS = 41
_DEVICES_PER_TARGET = 5000


def _plain(values: Any) -> Any:
    """Nested lists of numbers with five digits; None for what is not finite."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, list):
        return [_plain(value) for value in values]
    return float(f"{values:.{_SIGNIFICANT_DIGITS}g}") if math.isfinite(values) else None


# An array that is kept in a file; what was not finite is read back as NaN.
Array = Annotated[
    NDArray[np.float64],
    PlainValidator(lambda values: np.array(values, dtype=np.float64)),
    PlainSerializer(_plain),
]


@dataclass(frozen=True)
class WeightErrors:
    """Errors of programmed weights, all relative to the largest absolute weight m.

    All but the first are about S of the T times, see :func:`times_shown`.

    Attributes:
        tnmse: 100 times the mean of ``((α w − W) / m)²`` at each time, and its 95 % interval
            ``(T, 3)``: mean, low, high.
        standard_deviation: of the errors ``(S,)``.
        correlation: Pearson's, of acting and target weights ``(S,)``.
        edges: edges of the bins of the distribution of errors ``(B + 1,)``.
        density: share of the errors in each bin ``(S, B)``.
        targets: mean target weight of G groups of weights ``(G,)``, ascending.
        band: the 2.5 %, 50 % and 97.5 % quantiles of the errors in each group ``(S, 3, G)``.
    """

    tnmse: Array
    standard_deviation: Array
    correlation: Array
    edges: Array
    density: Array
    targets: Array
    band: Array


@dataclass(frozen=True)
class DeviceModel:
    """Statistics of devices programmed to G targets and read at S times.

    Attributes:
        g_target_us: the targets ``(G,)`` in µS, ascending.
        programmed_mean_us: mean conductance after programming ``(G,)`` in µS.
        programmed_std_us: its standard deviation from device to device.
        t_s: times after programming ``(S,)`` in s.
        mean_us: mean conductance read at each time ``(S, G)`` in µS.
        read_std_us: standard deviation ``(S, G)`` in µS of repeated reads of one device.
    """

    g_target_us: Array
    programmed_mean_us: Array
    programmed_std_us: Array
    t_s: Array
    mean_us: Array
    read_std_us: Array


@dataclass(frozen=True)
class Programming:
    """A way to program weights, and what becomes of them.

    Attributes:
        f: significance factor of each pair ``(P,)``.
        g_us: conductances ``(2P, N)`` in µS at weights evenly spaced from the most negative to the
            most positive, ordered g+ of pair 0, g- of pair 0, ...
        errors: errors of the weights over time.
    """

    f: Array
    g_us: Array
    errors: WeightErrors


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
        baseline: the baseline.
        trial_number: the winning trial.
        optimised: its strategy.
    """

    fingerprint: str
    engine: str
    draws: int
    t_s: Array
    histogram: Array
    devices: DeviceModel | None
    baseline: Programming
    trial_number: int
    optimised: Programming

    def save(self, folder: Path) -> Path:
        """Writes the file into a study's results folder, which is made, and returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / MEASUREMENTS_FILE
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(TypeAdapter(Measurements).dump_json(self))
        partial.replace(path)
        return path

    @classmethod
    def load(cls, folder: Path) -> Measurements | None:
        """What was saved in a folder, but for digits that no figure shows; None if there is none.

        A file that cannot be read, or that another version wrote, counts as none.
        """
        try:
            return TypeAdapter(cls).validate_json((folder / MEASUREMENTS_FILE).read_bytes())
        except (OSError, ValueError):
            return None


def measure(
    problem: WeightProgrammingProblem,
    strategy: ProgrammingStrategy,
    folder: Path,
    *,
    winning_trial: int,
) -> Measurements:
    """Measures what a report shows of hardware, baseline and winner, and saves it.

    Args:
        problem: the problem.
        strategy: the winner's strategy.
        folder: the study's results folder.
        winning_trial: number of the winner's trial.
    """
    engine, converter = drawing_engine(problem), problem.g_converter_baseline
    weights = problem.test_weights.double().numpy().ravel() / problem.max_abs_weight
    with one_thread():
        of_baseline = measure_weight_errors(engine, converter, _seed(problem, 0))
        of_winner = measure_weight_errors(
            engine, strategy.to_converter(), _seed(problem, winning_trial + 1)
        )
    measured = Measurements(
        fingerprint=problem.fingerprint,
        engine=engine.name,
        draws=DRAWS,
        t_s=np.array(problem.t_steps),
        histogram=np.histogram(weights, _N_HISTOGRAM_BINS, (-1, 1))[0] / weights.size,
        devices=_devices(problem),
        baseline=Programming(*_curves(problem), of_baseline),
        trial_number=winning_trial,
        optimised=Programming(np.array(strategy.f_lst), np.array(strategy.g_lst), of_winner),
    )
    measured.save(folder)
    return measured


def _curves(problem: WeightProgrammingProblem) -> tuple[Array, Array]:
    """The baseline's factors (P,) and its curves (2P, N) in µS."""
    converter = problem.g_converter_baseline
    weights = torch.linspace(-1, 1, _N_CURVE_POINTS)
    # aihwkit's converters span the matrix at hand, whose largest weight is here m.
    conductances, _ = converter.convert_to_conductances(weights * problem.max_abs_weight)
    g = np.array([g.double().numpy() for g in conductances])
    return np.asarray(getattr(converter, "f_lst", [1.0] * (len(g) // 2)), dtype=np.float64), g


def _devices(problem: WeightProgrammingProblem) -> DeviceModel | None:
    t_s = [problem.t_steps[i] for i in times_shown(len(problem.t_steps), _MOST_READS)]
    try:
        return sample_device_model(problem, t_s, _seed(problem, 0))
    # A noise model may serve aihwkit's tile only, and fails otherwise as it likes.
    except Exception:
        return None


def _seed(problem: WeightProgrammingProblem, what: int) -> int:
    sequence = np.random.SeedSequence([problem.seed, _SEED_OFFSET, what])
    return int(sequence.generate_state(1)[0])


def times_shown(n_times: int, most: int = _MOST_PANELS) -> NDArray[np.int64]:
    """Indices of the times that are shown: all, or so many evenly spread with both ends."""
    return np.linspace(0, n_times - 1, min(n_times, most)).round().astype(np.int64)


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
    errors = errors[times_shown(len(errors))]
    reach = np.nanquantile(np.abs(errors), 1 - _OUTSIDE_BINS, axis=(1, 2)).max() or 1.0
    edges = np.linspace(-reach, reach, _N_ERROR_BINS + 1)
    group = np.clip(((target + 1) / 2 * _N_GROUPS).astype(int), 0, _N_GROUPS - 1)
    members = [group == index for index in np.unique(group)]
    quantiles = [np.quantile(errors[:, :, m], _BAND, axis=(1, 2)) for m in members]
    return WeightErrors(
        tnmse=np.array([(e.mean, e.low, e.high) for e in estimates]),
        standard_deviation=errors.std(axis=(1, 2), dtype=np.float64),
        correlation=np.array([_correlation(target, drawn) for drawn in errors]),
        edges=edges,
        density=np.array([np.histogram(drawn, edges)[0] / drawn.size for drawn in errors]),
        targets=np.array([target[m].mean() for m in members]),
        band=np.array(quantiles).transpose(2, 1, 0),
    )


def _correlation(target: NDArray[np.floating], errors: NDArray[np.floating]) -> float:
    """Pearson's correlation of target weights (n,) and acting ones, from all errors (draws, n)."""
    repeated = np.tile(target, len(errors))
    with np.errstate(invalid="ignore", divide="ignore"):  # all weights alike: NaN
        return float(np.corrcoef(repeated, repeated + errors.ravel())[0, 1])


def sample_device_model(
    problem: WeightProgrammingProblem, t_s: Sequence[float], seed: int
) -> DeviceModel:
    """Samples the noise model's own methods, thousands of devices for each target.

    Args:
        problem: its noise model is sampled from g_min to g_max.
        t_s: times after programming in s.
        seed: seed of the sample; torch's generator stays as it is.
    """
    model = problem.noise_model
    targets = torch.linspace(problem.g_min, problem.g_max, _N_TARGETS)
    g_target = targets[:, None].repeat(1, _DEVICES_PER_TARGET)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        # torch.manual_seed would also seed the generators of other devices, for good.
        torch.default_generator.manual_seed(seed)
        # A model may change what it is given, so everything is handed over as a copy.
        programmed = model.apply_programming_noise_to_conductance(g_target.clone())
        nu = model.generate_drift_coefficients(g_target.clone())

        def read(t: float) -> Array:
            kept = None if nu is None else nu.clone()
            g = model.apply_drift_noise_to_conductance(programmed.clone(), kept, t)
            return g.double().cpu().numpy()

        # Two reads of the same devices differ by the noise of both.
        reads = [(read(t), read(t)) for t in t_s]
    g = programmed.double().cpu().numpy()
    return DeviceModel(
        g_target_us=targets.double().numpy(),
        programmed_mean_us=np.nanmean(g, axis=1),
        programmed_std_us=np.nanstd(g, axis=1, ddof=1),
        t_s=np.asarray(t_s, dtype=np.float64),
        mean_us=np.array([np.nanmean(first, axis=1) for first, _ in reads]),
        read_std_us=np.array([np.nanstd(a - b, axis=1, ddof=1) / np.sqrt(2) for a, b in reads]),
    )
