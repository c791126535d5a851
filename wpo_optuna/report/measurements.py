"""What a report shows of the weights and the hardware, measured when a study has been scored.

A stored study says what its problem was, but weights and hardware themselves are not stored. What
a report draws of them is measured while they are there, and lies in a file beside the strategy.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from wpo_optuna.loss.engine_choice import drawing_engine
from wpo_optuna.loss.threads import one_thread
from wpo_optuna.report.device_model import DeviceModel, sample_device_model
from wpo_optuna.report.weight_errors import (
    DRAWS,
    WeightErrors,
    measure_weight_errors,
    times_shown,
)

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem
    from wpo_optuna.strategy import ProgrammingStrategy

MEASUREMENTS_FILE = "measurements.json"

_N_CURVE_POINTS = 81
_N_HISTOGRAM_BINS = 60
_MOST_READS = 8  # times at which devices are read: more lines cannot be told apart
_SIGNIFICANT_DIGITS = 5  # figures show no more
# Draws of these measurements alone: no search and no scoring has their seeds.
_SEED_OFFSET = 104_729


@dataclass(frozen=True)
class Programming:
    """A way to program weights, and what becomes of them.

    Attributes:
        f: significance factor of each pair ``(P,)``.
        g_us: conductances ``(2P, N)`` in µS at weights evenly spaced from the most negative to the
            most positive, ordered g+ of pair 0, g- of pair 0, ...
        errors: errors of the weights over time.
    """

    f: NDArray[np.float64]
    g_us: NDArray[np.float64]
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
    t_s: NDArray[np.float64]
    histogram: NDArray[np.float64]
    devices: DeviceModel | None
    baseline: Programming
    trial_number: int
    optimised: Programming

    def save(self, folder: Path) -> Path:
        """Writes the file into a study's results folder, which is made, and returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / MEASUREMENTS_FILE
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(_plain(self)) + "\n", encoding="utf-8")
        partial.replace(path)
        return path

    @classmethod
    def load(cls, folder: Path) -> Measurements | None:
        """What was saved in a folder, but for digits that no figure shows; None if there is none.

        A file that is not readable, or was written by another version, counts as none.
        """
        try:
            stored = json.loads((folder / MEASUREMENTS_FILE).read_text(encoding="utf-8"))
            devices = stored["devices"]
            return cls(
                **stored
                | {
                    "t_s": _array(stored["t_s"]),
                    "histogram": _array(stored["histogram"]),
                    "devices": devices and DeviceModel(**_arrays(devices)),
                    "baseline": _programming(stored["baseline"]),
                    "optimised": _programming(stored["optimised"]),
                }
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


def measure(
    problem: WeightProgrammingProblem,
    strategy: ProgrammingStrategy,
    folder: Path,
    *,
    winning_trial: int,
    show_progress: bool = False,
) -> Measurements:
    """Measures what a report shows of hardware, baseline and winner, and saves it.

    What the folder holds already of the same problem, and of the same strategy, is not measured
    again.

    Args:
        problem: the problem.
        strategy: the winner's strategy.
        folder: the study's results folder.
        winning_trial: number of the winner's trial.
        show_progress: whether to show progress on a terminal.
    """
    known = Measurements.load(folder)
    if known is not None and known.fingerprint != problem.fingerprint:
        known = None
    with one_thread():
        measured = _measure(problem, strategy, winning_trial, known, show_progress)
    measured.save(folder)
    return measured


def _measure(
    problem: WeightProgrammingProblem,
    strategy: ProgrammingStrategy,
    winning_trial: int,
    known: Measurements | None,
    show_progress: bool,
) -> Measurements:
    f, g_us = _rounded(strategy.f_lst), _rounded(strategy.g_lst)
    if known is not None and _is_of(known.optimised, f, g_us):
        return replace(known, trial_number=winning_trial)
    engine = drawing_engine(problem)
    total = DRAWS * (1 if known else 2)
    with tqdm(
        total=total, desc="measuring errors over time", unit="draw", leave=False,
        disable=None if show_progress else True,
    ) as bar:  # fmt: skip

        def errors_of(converter: BaseConductanceConverter, what: int) -> WeightErrors:
            return measure_weight_errors(engine, converter, _seed(problem, what), bar.update)

        optimised = Programming(f, g_us, errors_of(strategy.to_converter(), winning_trial + 1))
        if known is not None:
            return replace(known, trial_number=winning_trial, optimised=optimised)
        baseline = Programming(*_curves(problem), errors_of(problem.g_converter_baseline, 0))
    weights = problem.test_weights.double().numpy().ravel() / problem.max_abs_weight
    return Measurements(
        fingerprint=problem.fingerprint,
        engine=engine.name,
        draws=DRAWS,
        t_s=np.array(problem.t_steps),
        histogram=np.histogram(weights, _N_HISTOGRAM_BINS, (-1, 1))[0] / weights.size,
        devices=_devices(problem),
        baseline=baseline,
        trial_number=winning_trial,
        optimised=optimised,
    )


def _is_of(measured: Programming, f: NDArray[np.float64], g_us: NDArray[np.float64]) -> bool:
    return np.array_equal(measured.f, f) and np.array_equal(measured.g_us, g_us)


def _devices(problem: WeightProgrammingProblem) -> DeviceModel | None:
    t_s = [problem.t_steps[i] for i in times_shown(len(problem.t_steps), _MOST_READS)]
    try:
        return sample_device_model(problem, t_s, _seed(problem, 0))
    # A noise model may serve aihwkit's tile only, and fails otherwise as it likes.
    except Exception:
        return None


def _curves(problem: WeightProgrammingProblem) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The baseline's factors (P,) and its curves (2P, N) in µS."""
    converter = problem.g_converter_baseline
    weights = torch.linspace(-1, 1, _N_CURVE_POINTS)
    # aihwkit's converters span the matrix at hand, whose largest weight is here m.
    conductances, _ = converter.convert_to_conductances(weights * problem.max_abs_weight)
    g = np.array([g.double().numpy() for g in conductances])
    return np.asarray(getattr(converter, "f_lst", [1.0] * (len(g) // 2)), dtype=np.float64), g


def _seed(problem: WeightProgrammingProblem, what: int) -> int:
    sequence = np.random.SeedSequence([problem.seed, _SEED_OFFSET, what])
    return int(sequence.generate_state(1)[0])


def _plain(value: Any) -> Any:
    """Plain values: arrays as lists of numbers with five digits, None for what is not finite."""
    if is_dataclass(value):
        return {name: _plain(part) for name, part in vars(value).items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.{_SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None
    return value


def _rounded(values: Any) -> NDArray[np.float64]:
    return _array(_plain(np.asarray(values, dtype=np.float64)))


def _array(values: Any) -> NDArray[Any]:
    """Reverses :func:`_plain`; what was not finite is NaN, whole numbers stay whole."""
    array = np.array(values)
    return array if array.dtype == np.int64 else array.astype(np.float64)


def _arrays(stored: dict[str, Any]) -> dict[str, NDArray[Any]]:
    return {name: _array(values) for name, values in stored.items()}


def _programming(stored: dict[str, Any]) -> Programming:
    errors = WeightErrors(**_arrays(stored["errors"]))
    return Programming(_array(stored["f"]), _array(stored["g_us"]), errors)
