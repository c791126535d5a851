"""The front of a study with two objectives: strategies of which none is better in both."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wpo_optuna.strategy import ProgrammingStrategy
from wpo_optuna.study.scoring import comparable, strategy_of

if TYPE_CHECKING:
    from wpo_optuna.study.mirror import Mirror

FRONT_FILE = "front.csv"


@dataclass(frozen=True)
class FrontPoint:
    """A strategy of the front.

    Attributes:
        trial_number: its trial.
        tnmse: its TNMSE, as the engine says.
        second: value of the second objective, such as the mean conductance in µS per weight.
        strategy: the strategy.
    """

    trial_number: int
    tnmse: float
    second: float
    strategy: ProgrammingStrategy


def front_of(mirror: Mirror) -> tuple[FrontPoint, ...]:
    """The front of a study, by ascending second objective; empty if there is one objective."""
    objective = mirror.objective
    if objective.second is None:
        return ()
    points = [
        FrontPoint(
            mirror.number_of(trial),
            float(trial.user_attrs["tnmse"]),
            float(trial.values[1]),
            comparable(strategy_of(objective, trial), objective.problem),
        )
        for trial in mirror.memory.best_trials
    ]
    return tuple(sorted(points, key=lambda point: point.second))


def write_front(points: Sequence[FrontPoint], name: str, folder: Path) -> Path:
    """Writes ``front.csv``, and each strategy into the folder ``front`` beside it.

    Args:
        points: the front.
        name: of the second objective.
        folder: the study's results folder.

    Returns:
        path of the table.
    """
    path = folder / FRONT_FILE
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "tnmse", name, "strategy"])
        for point in points:
            strategy = Path("front") / f"trial-{point.trial_number}.json"
            point.strategy.save(folder / strategy)
            row = [point.trial_number, point.tnmse, point.second, strategy.as_posix()]
            writer.writerow(row)
    return path
