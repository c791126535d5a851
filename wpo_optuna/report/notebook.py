"""The report's figures where nothing is written: in notebooks and programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from wpo_optuna.notebook import image
from wpo_optuna.report import figures
from wpo_optuna.report.drawing import style
from wpo_optuna.report.measurements import measure
from wpo_optuna.report.record import StudyRecord, read_study

if TYPE_CHECKING:
    from wpo_optuna.strategy import ProgrammingStrategy
    from wpo_optuna.study.scoring import StudyResult


def figures_of(result: StudyResult) -> dict[str, Figure]:
    """The figures of a study's report by name, as far as there is something to draw.

    What the study has not measured yet is measured, which takes a few seconds.
    """
    record = _measured(result)
    drawn: list[tuple[Any, Any]] = [
        (figures.conductance_curves, record),
        (figures.search_progress, [record]),
        (figures.tnmse_over_time, record.measurements),
        (figures.weight_errors, record.measurements),
        (figures.weight_correlation, record.measurements),
        (figures.explored_factors, record),
        (figures.importance, record),
        (figures.devices, record.measurements),
        (figures.sensitivity, record.measurements),
    ]
    if record.knows_conductance:
        drawn.append((figures.front, record))
    with style():
        made = {figure_of.__name__: figure_of(subject) for figure_of, subject in drawn}
    return {name: figure for name, figure in made.items() if isinstance(figure, Figure)}


def _measured(result: StudyResult) -> StudyRecord:
    """The study, with measurements of the strategy that won."""
    record, winner = read_study(result.study), result.scores.winning_trial
    if record.measurements is not None and record.measurements.trial_number == winner:
        return record
    with TemporaryDirectory(prefix="wpo_measured_") as folder:
        problem = result.objective.problem
        measured = measure(problem, result.strategy, Path(folder), winning_trial=winner)
    return replace(record, measurements=measured)


def image_of_strategy(strategy: ProgrammingStrategy) -> str:
    """The conductances of each pair over the weight, as a picture inside a page."""
    with style():
        return image(figures.strategy_curves(strategy), "conductances over the weight")
