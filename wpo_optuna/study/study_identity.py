"""Which problem a stored study belongs to, and opening it again for the same one alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.study import Study

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.problem.fingerprint import differences
from wpo_optuna.storage import transaction
from wpo_optuna.study.environment import versions

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

FINGERPRINT = "problem_fingerprint"
DESCRIPTION = "problem_description"
PROBLEM = "problem"
SAMPLER = "sampler"
SAMPLER_OPTIONS = "sampler_options"
SEED = "seed"
ENGINE = "engine"
BASELINE = "baseline"
SELF_CHECK = "self_check"
VERSIONS = "versions"

_MOST_DIFFERENCES_TOLD = 4

# Options that decide when a search ends, and not what it proposes.
_STOPPING_OPTIONS = {"tol", "atol", "max_attempts", "stale_after", "warn_independent_sampling"}
_FUNCTION = "function "
# System attribute: how many processes have worked on the study.
_SESSIONS = "wpo:sessions"


def find_study(storage: BaseStorage, study_name: str) -> Study | None:
    """The study of this name, or None; nothing is written."""
    try:
        return optuna.load_study(study_name=study_name, storage=storage)
    except KeyError:
        return None


def check_same_problem(
    study: Study,
    problem: WeightProgrammingProblem,
    sampler: str,
    seed: int,
    sampler_options: Mapping[str, Any] | None,
) -> None:
    """Refuses to go on with a study that was made for something else.

    Raises:
        InvalidArgument: the study's problem, sampler or seed differ, or an option of the sampler
            that decides what it proposes; the message says how.
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
        # The problem has a seed, too, which is usually the same.
        is_told = any(phrase.startswith(f"{name} was ") for phrase in told)
        if stored.get(name, value) != value and not is_told:
            told.append(f"{name} was {stored[name]}, now {value}")
    if sampler_options is not None and SAMPLER_OPTIONS in stored:
        told += _changed_options(stored[SAMPLER_OPTIONS], storable_options(sampler_options))
    if told:
        listed = "; ".join(told[:_MOST_DIFFERENCES_TOLD])
        more = len(told) - _MOST_DIFFERENCES_TOLD
        raise InvalidArgument(
            f"study_name = {study.study_name!r}: this study is about something else ({listed}"
            + (f"; and {more} more differences" if more > 0 else "")
            + "); give another name, or the settings it was started with."
        )


def _changed_options(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    names = sorted((stored.keys() | given.keys()) - _STOPPING_OPTIONS)
    return [
        f"{name} was {stored.get(name, 'not given')}, now {given.get(name, 'not given')}"
        for name in names
        if stored.get(name) != given.get(name)
    ]


def storable_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """A sampler's options as JSON can hold them: arrays as lists, functions by their name."""
    return {name: _storable(value) for name, value in options.items()}


def _storable(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    if callable(value):
        return f"{_FUNCTION}{getattr(value, '__module__', '?')}.{getattr(value, '__name__', '?')}"
    return value


def restored_options(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler's options of a stored study, to go on with.

    Raises:
        InvalidArgument: one of them was a function, which no storage keeps.
    """
    for name, value in stored.items():
        if isinstance(value, str) and value.startswith(_FUNCTION):
            raise InvalidArgument(
                f"sampler_options: {name} was the {value} when the study began, which cannot be "
                "stored; give it again."
            )
    # JSON has no tuples, and scipy's dithering is one.
    return {
        name: tuple(value) if name == "mutation" and isinstance(value, list) else value
        for name, value in stored.items()
    }


def count_session(study: Study) -> int:
    """How many processes have begun to work on the study before this one; each is counted once."""
    storage, study_id = study._storage, study._study_id
    with transaction(study):
        n_before = int(storage.get_study_system_attrs(study_id).get(_SESSIONS, 0))
        storage.set_study_system_attr(study_id, _SESSIONS, n_before + 1)
    return n_before


def create_study(
    storage: BaseStorage,
    study_name: str,
    problem: WeightProgrammingProblem,
    attributes: Mapping[str, Any],
) -> Study:
    """Makes the study, or adopts an empty one of this name, and says what it is about.

    If another process was faster, what it said stays.

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
        if FINGERPRINT in study.user_attrs:
            return study
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
