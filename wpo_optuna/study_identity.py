"""Which problem a stored study belongs to, and opening it again for the same one alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.study import Study

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.fingerprint import differences
from wpo_optuna.storage import transaction
from wpo_optuna.versions import versions

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from wpo_optuna.problem import WeightProgrammingProblem

FINGERPRINT = "problem_fingerprint"
DESCRIPTION = "problem_description"
PROBLEM = "problem"
SAMPLER = "sampler"
SAMPLER_OPTIONS = "sampler_options"
SEED = "seed"
ENGINE = "engine"
BASELINE = "baseline"
SELF_CHECK = "self_check"
PARENT_STUDY = "parent_study"
VERSIONS = "versions"

_MOST_DIFFERENCES_TOLD = 4


def find_study(storage: BaseStorage, study_name: str) -> Study | None:
    """The study of this name, or None; nothing is written."""
    try:
        return optuna.load_study(study_name=study_name, storage=storage)
    except KeyError:
        return None


def check_same_problem(
    study: Study, problem: WeightProgrammingProblem, sampler: str, seed: int
) -> None:
    """Refuses to go on with a study that was made for something else.

    Raises:
        InvalidArgument: the study's problem, sampler or seed differ; the message says how.
    """
    stored = study.user_attrs
    if FINGERPRINT not in stored:
        if study._storage.get_n_trials(study._study_id) == 0:
            return  # made by hand, or cut off before its first trial
        raise InvalidArgument(
            f"study_name = {study.study_name!r}: this study was not made by wpo_optuna; give "
            "another name."
        )
    told: list[str] = []
    if stored[FINGERPRINT] != problem.fingerprint:
        told = differences(stored[DESCRIPTION], problem.description)
    for name, value in ((SAMPLER, sampler), (SEED, seed)):
        if stored.get(name, value) != value:
            told.append(f"{name} was {stored[name]}, now {value}")
    if told:
        listed = "; ".join(told[:_MOST_DIFFERENCES_TOLD])
        more = len(told) - _MOST_DIFFERENCES_TOLD
        raise InvalidArgument(
            f"study_name = {study.study_name!r}: this study is about something else ({listed}"
            + (f"; and {more} more differences" if more > 0 else "")
            + "); give another name, or the settings it was started with."
        )


def create_study(
    storage: BaseStorage,
    study_name: str,
    problem: WeightProgrammingProblem,
    attributes: Mapping[str, Any],
) -> Study:
    """Makes the study, or adopts an empty one of this name, and says what it is about.

    Args:
        storage: where it is kept.
        study_name: its name.
        problem: what is optimised.
        attributes: further user attributes, by name.
    """
    study = optuna.create_study(
        study_name=study_name, storage=storage, direction="minimize", load_if_exists=True
    )
    with transaction(study):
        for name, value in attributes.items():
            study.set_user_attr(name, value)
        study.set_user_attr(PROBLEM, summary(problem))
        study.set_user_attr(DESCRIPTION, problem.description)
        study.set_user_attr(VERSIONS, versions())
        study.set_user_attr(FINGERPRINT, problem.fingerprint)
    return study


def summary(problem: WeightProgrammingProblem) -> dict[str, Any]:
    """The problem's settings in a form to read."""
    rpu_config = problem.rpu_config
    return {
        "n_weights": problem.weights.numel(),
        "max_abs_weight": problem.max_abs_weight,
        "f_lst": list(problem.f_lst),
        "g_min_us": problem.g_min,
        "g_max_us": problem.g_max,
        "t_steps_s": list(problem.t_steps),
        "baseline_converter": str(problem.g_converter_baseline),
        "noise_model": type(problem.noise_model).__name__,
        "drift_compensation": type(getattr(rpu_config, "drift_compensation", None)).__name__,
        "tile": [problem.test_in_features, problem.test_out_features],
        "symmetric": problem.symmetric,
        "nbins": problem.nbins,
        "g_err": problem.g_err,
        "f_min": problem.f_min,
        "f_max": problem.f_max,
        "use_max_kw": problem.use_max_kw,
        "loss_margin": problem.loss_margin,
        "baseline_iterations": problem.baseline_iterations,
        "dimension": problem.hypercube.dimension,
        "seed": problem.seed,
    }
