"""Which coordinates of the hypercube mattered, by Optuna's PED-ANOVA."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from wpo_optuna.report.figures import colours
from wpo_optuna.report.figures.drawing import Illustration, Omission, Width, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from optuna.trial import FrozenTrial

    from wpo_optuna.report.reporting.study_record import StudyRecord

TITLE = "Importance of the coordinates"

# PED-ANOVA compares the best tenth with all: of fewer trials it would be a handful.
LEAST_TRIALS = 50
# So many take less than two seconds.
MOST_TRIALS = 1000
_MOST_BARS = 20


def illustrate(record: StudyRecord) -> Illustration | Omission:
    """The figure of a study's trials."""
    trials = _suitable(record)
    if len(trials) < LEAST_TRIALS:
        return Omission(
            TITLE,
            f"Importance needs at least {LEAST_TRIALS} trials proposed by the sampler; there are "
            f"{len(trials)}.",
        )
    used = trials
    if len(trials) > MOST_TRIALS:
        spread = np.linspace(0, len(trials) - 1, MOST_TRIALS).round().astype(int)
        used = [trials[i] for i in spread]
    importance = _importance(used)
    if not importance:
        return Omission(TITLE, "The best trials do not differ from the others in any coordinate.")
    of_how_many = f"{len(used)}"
    if len(used) < len(trials):
        of_how_many += f" of {len(trials)} trials, spread evenly over the study"
    else:
        of_how_many += " trials"
    caption = (
        "How much each coordinate of the hypercube sets the best tenth of the trials apart from "
        f"the others (PED-ANOVA of Optuna, {of_how_many}): f_p is the factor of pair p, k_w the "
        "scale, g_p_k the place of pair p on its line of equal weight at knot k, delta_g_p_k the "
        "share of the weight that the pair carries there. Pairs and knots are counted from 0."
    )
    shown = dict(list(importance.items())[:_MOST_BARS])
    if len(shown) < len(importance):
        caption += f" The {len(shown)} most important of {len(importance)} are shown."
    return Illustration("importance", TITLE, caption, lambda width: _draw(shown, width))


def _suitable(record: StudyRecord) -> list[FrozenTrial]:
    """Trials of the study's own search space that were not made from others."""
    space = max((trial.params.keys() for trial in record.frozen), key=len)
    return [
        trial
        for trial, is_polished in zip(record.frozen, record.trials.is_polished, strict=True)
        if trial.params
        and trial.params.keys() == space
        and trial.value is not None
        and math.isfinite(trial.value)
        and not is_polished
    ]


def _importance(trials: list[FrozenTrial]) -> dict[str, float]:
    """Importance of each coordinate, highest first; empty if none has any."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(level)
    study.add_trials(trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(), normalize=False
        )
    total = sum(found.values())
    if not (math.isfinite(total) and total > 0):
        return {}
    return {name: value / total for name, value in found.items()}


def _draw(importance: dict[str, float], width: Width) -> Figure:
    names, values = list(importance), list(importance.values())
    figure, (axes,) = panels(1, width, 0.6 + 0.21 * len(names))
    axes.barh(names[::-1], [100 * value for value in values[::-1]], color=colours.OPTIMISED)
    axes.set_xlabel("importance (%)")
    axes.grid(axis="y", visible=False)
    axes.margins(y=0.02)
    return figure
