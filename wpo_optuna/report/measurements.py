"""What a report shows of the weights and the hardware, measured when a study has been scored.

A stored study says what its problem was, but weights and hardware themselves are not stored. What
a report draws of them is measured while they are there, and lies in a file beside the strategy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import TypeAdapter
from tqdm import tqdm

from wpo_optuna.loss.engine_choice import drawing_engine
from wpo_optuna.loss.threads import one_thread
from wpo_optuna.report.device_model import DeviceModel, sample_device_model
from wpo_optuna.report.stored_array import Array
from wpo_optuna.report.weight_errors import (
    DRAWS,
    WeightErrors,
    measure_weight_errors,
    times_shown,
)

if TYPE_CHECKING:
    from wpo_optuna.problem import WeightProgrammingProblem
    from wpo_optuna.strategy import ProgrammingStrategy

MEASUREMENTS_FILE = "measurements.json"

_N_CURVE_POINTS = 81
_N_HISTOGRAM_BINS = 60
_MOST_READS = 8  # times at which devices are read: more lines cannot be told apart
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

    f: Array
    g_us: Array
    errors: WeightErrors

    def is_of(self, strategy: ProgrammingStrategy) -> bool:
        """Whether this is that strategy, but for digits that are not kept."""
        f, g_us = np.array(strategy.f_lst), np.array(strategy.g_lst)
        return self.g_us.shape == g_us.shape and all(
            np.allclose(kept, given, rtol=1e-4, atol=1e-6)
            for kept, given in ((self.f, f), (self.g_us, g_us))
        )


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
    show_progress: bool = False,
) -> Measurements:
    """Measures what a report shows of hardware, baseline and winner, and saves it.

    If the folder has it already, of the same problem and strategy, nothing is measured again.

    Args:
        problem: the problem.
        strategy: the winner's strategy.
        folder: the study's results folder.
        winning_trial: number of the winner's trial.
        show_progress: whether to show progress on a terminal.
    """
    known = Measurements.load(folder)
    if known and known.fingerprint == problem.fingerprint and known.optimised.is_of(strategy):
        measured = replace(known, trial_number=winning_trial)
    else:
        with one_thread():
            measured = _measure(problem, strategy, winning_trial, show_progress)
    measured.save(folder)
    return measured


def _measure(
    problem: WeightProgrammingProblem,
    strategy: ProgrammingStrategy,
    winning_trial: int,
    show_progress: bool,
) -> Measurements:
    engine = drawing_engine(problem)
    of_winner = np.array(strategy.f_lst), np.array(strategy.g_lst)
    with tqdm(
        desc="measuring errors over time", total=2 * DRAWS, unit="draw", leave=False,
        disable=None if show_progress else True,
    ) as bar:  # fmt: skip
        baseline, optimised = (
            Programming(
                f, g_us, measure_weight_errors(engine, converter, _seed(problem, what), bar.update)
            )
            for what, converter, (f, g_us) in (
                (0, problem.g_converter_baseline, _curves(problem)),
                (winning_trial + 1, strategy.to_converter(), of_winner),
            )
        )
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


def _devices(problem: WeightProgrammingProblem) -> DeviceModel | None:
    t_s = [problem.t_steps[i] for i in times_shown(len(problem.t_steps), _MOST_READS)]
    try:
        return sample_device_model(problem, t_s, _seed(problem, 0))
    # A noise model may serve aihwkit's tile only, and fails otherwise as it likes.
    except Exception:
        return None


def _curves(problem: WeightProgrammingProblem) -> tuple[Array, Array]:
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
