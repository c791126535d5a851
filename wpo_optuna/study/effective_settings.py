"""The settings of a study with everything that was left open filled in."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from wpo_optuna.hardware import format_duration
from wpo_optuna.study.problem_setup import times_of

if TYPE_CHECKING:
    from wpo_optuna.study.objective import HypercubeObjective
    from wpo_optuna.study.problem_setup import ProblemSetup
    from wpo_optuna.study.settings import Settings

_Text = TypeVar("_Text", str, str | None)


def effective_settings(
    settings: Settings, setup: ProblemSetup, n_trials: int, objective: HypercubeObjective
) -> Settings:
    """What a study was run with: a configuration that repeats it, from any directory.

    Args:
        settings: as the user wrote them.
        setup: the problem they stand for.
        n_trials: the budget they stand for.
        objective: has the engine that was chosen.
    """
    return dataclasses.replace(
        settings,
        weights=_absolute(settings.weights),
        rpu_config=_absolute(settings.rpu_config),
        baseline=_absolute(settings.baseline),
        model=_absolute(settings.model),
        data=_absolute(settings.data),
        metric=_absolute(settings.metric),
        t_steps=",".join(map(format_duration, times_of(settings))),
        g_min=setup.problem.g_min,
        g_max=setup.problem.g_max,
        engine=objective.engine.name,
        n_trials=n_trials if settings.maxiter is None else None,
        study_name=settings.study_name or f"{setup.label}-{settings.sampler}",
    )


def _absolute(text: _Text) -> _Text:
    """A file, or the file of a function, by its absolute path; anything else as it is."""
    if text is None:
        return text
    path, colon, function = text.rpartition(":")
    if colon and path.endswith(".py") and Path(path).is_file():
        return f"{Path(path).resolve()}:{function}"
    return str(Path(text).resolve()) if text and Path(text).exists() else text
