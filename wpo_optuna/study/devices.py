"""What a strategy for several devices is worth on each of them, and what it gives up there."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wpo_optuna.hardware.device_spread import ScaledNoiseModel
from wpo_optuna.loss.engine_choice import drawing_engine
from wpo_optuna.loss.expected import ExpectedEngine
from wpo_optuna.loss.over_devices import EngineOverDevices
from wpo_optuna.strategy import ProgrammingStrategy
from wpo_optuna.study.estimate import Estimate, score
from wpo_optuna.study.gradients import refined
from wpo_optuna.study.objective import HypercubeObjective

if TYPE_CHECKING:
    from wpo_optuna.loss import LossEngine
    from wpo_optuna.problem import WeightProgrammingProblem
    from wpo_optuna.study.mirror import Mirror

DEVICES_FILE = "devices.csv"

# The study's best trials, among which one for a single device is looked for: all that matter
# where an engine takes no time for them, and so many where it draws.
_N_EXPECTED, _N_DRAWN = 1000, 32


@dataclass(frozen=True)
class DeviceScore:
    """Scores on one of several devices.

    Attributes:
        name: the noise model, and by what factors it differs from aihwkit's.
        baseline: TNMSE of the baseline there.
        common: that of the strategy for all devices.
        own: that of a strategy for this device alone, from the same study: of its best trials the
            one that is best there, refined where the engine has gradients.
    """

    name: str
    baseline: Estimate
    common: Estimate
    own: Estimate

    @property
    def improvement(self) -> float:
        """By what fraction the common strategy's TNMSE is lower than the baseline's."""
        return 1 - self.common.mean / self.baseline.mean

    @property
    def lost(self) -> float:
        """By what fraction the common strategy's TNMSE is higher than with one of its own."""
        return self.common.mean / self.own.mean - 1


def score_devices(
    mirror: Mirror,
    strategy: ProgrammingStrategy,
    seed: int,
    on_draws: Callable[[int], object] = lambda n: None,
) -> tuple[DeviceScore, ...]:
    """Scores a strategy on each of its problem's devices, if there are several.

    On each device all strategies meet the same noise.

    Args:
        mirror: the study.
        strategy: the one for all devices.
        seed: seed of the draws.
        on_draws: told the number of draws after each round.
    """
    problem, engine = mirror.objective.problem, mirror.objective.engine
    if not isinstance(engine, EngineOverDevices):
        return ()
    best = mirror.completed()[:_N_EXPECTED]
    points = np.array([mirror.objective.point(trial.params) for trial in best])
    scores = []
    for alone, of_device in zip(problem.on_each_device, engine.engines, strict=True):
        own = _best_for(alone, of_device, points)
        drawing = drawing_engine(alone)
        converters = alone.g_converter_baseline, strategy.to_converter(), own.to_converter()
        estimates = [score(drawing, converter, seed, on_draws) for converter in converters]
        scores.append(DeviceScore(_name(alone), *estimates))
    return tuple(scores)


def _best_for(
    problem: WeightProgrammingProblem, engine: LossEngine, points: NDArray[np.float64]
) -> ProgrammingStrategy:
    """The best strategy for one device, from the points (n, d) of the best trials for all."""
    if isinstance(engine, ExpectedEngine):
        points = points[engine.tnmse(points).argsort(kind="stable")]
        best = refined(HypercubeObjective(problem, engine), points, 1)[0][0]
    else:
        points = points[:_N_DRAWN]
        best = points[engine.tnmse(points).argmin()]
    strategy = problem.hypercube.decode(best)
    assert isinstance(strategy, ProgrammingStrategy)
    return strategy


def _name(problem: WeightProgrammingProblem) -> str:
    model = problem.noise_model
    return str(model) if isinstance(model, ScaledNoiseModel) else type(model).__name__


def write_devices(scores: Sequence[DeviceScore], folder: Path) -> Path:
    """Writes the scores as ``devices.csv`` into a study's results folder."""
    path = folder / DEVICES_FILE
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        kinds = ("baseline", "common", "own")
        ends = ("", "_low", "_high")
        columns = [f"{kind}_tnmse{end}" for kind in kinds for end in ends]
        writer.writerow(["device", *columns, "improvement_percent", "lost_percent"])
        for device in scores:
            estimates = [getattr(device, kind) for kind in kinds]
            numbers = [n for e in estimates for n in (e.mean, e.low, e.high)]
            percent = 100 * device.improvement, 100 * device.lost
            writer.writerow([device.name, *numbers, *percent])
    return path
