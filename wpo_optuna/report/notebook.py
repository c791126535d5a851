"""The report's figures where nothing is written: in notebooks and programs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from wpo_optuna.notebook import image
from wpo_optuna.report import figures
from wpo_optuna.report.drawing import style
from wpo_optuna.report.measurements import measure
from wpo_optuna.report.record import read_study

if TYPE_CHECKING:
    from wpo_optuna.strategy import ProgrammingStrategy
    from wpo_optuna.study.scoring import StudyResult


def figures_of(result: StudyResult) -> dict[str, Figure]:
    """The figures of a study's report by name, as far as there is something to draw.

    What the study has not measured yet is measured, which takes a few seconds.
    """
    record, winner = read_study(result.study), result.scores.winning_trial
    if record.measurements is None or record.measurements.trial_number != winner:
        measured = measure(result.objective.problem, result.strategy, None, winning_trial=winner)
        record = replace(record, measurements=measured)
    with style():
        made = {figures.search_progress.__name__: figures.search_progress([record])}
        for figure_of, subject in figures.figures_of_study(record).items():
            made[figure_of.__name__] = figure_of(subject)
    return {name: figure for name, figure in made.items() if isinstance(figure, Figure)}


def image_of_strategy(strategy: ProgrammingStrategy) -> str:
    """The conductances of each pair over the weight, as a picture inside a page."""
    with style():
        return image(figures.strategy_curves(strategy), "conductances over the weight")
