"""Opening a study: the stored one if it is about the same problem, else a new one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.engine_choice import choose_engine
from wpo_optuna.problem.fingerprint import differences
from wpo_optuna.samplers import make_sampler
from wpo_optuna.study import attributes
from wpo_optuna.study.description import about, keep, names_in
from wpo_optuna.study.environment import versions
from wpo_optuna.study.mirror import Mirror
from wpo_optuna.study.objective import HypercubeObjective, MeanConductance, SecondObjective
from wpo_optuna.study.settings import DE_OPTIONS, GRADIENT, RunSettings

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage

    from wpo_optuna.problem import WeightProgrammingProblem

_MOST_DIFFERENCES_TOLD = 4
# Options that decide when a search ends, and not what it proposes.
_STOPPING_OPTIONS = {"tol", "atol", "max_attempts", "warn_independent_sampling"}
_FUNCTION = "function "
# User attribute: how many processes have worked on the study.
_SESSIONS = "sessions"
# The loss of a point is never undefined: an engine that fails has lost its device or its memory,
# which says nothing against the candidates of that batch.
_NO_LIMIT = 1_000_000


def open_study(
    problem: WeightProgrammingProblem,
    storage: BaseStorage,
    study_name: str,
    settings: RunSettings,
    sampler_options: Mapping[str, Any] | None,
    parent_study: str | None = None,
    second: SecondObjective | None = None,
) -> Mirror:
    """The study with its objective and sampler; whatever can fail comes before it is written.

    Args:
        problem: what is optimised.
        storage: where the study is, or is to be, stored.
        study_name: its name.
        settings: how it is carried out.
        sampler_options: arguments of the sampler; None takes the stored study's, or the defaults.
        parent_study: study under whose MLflow run this one's is put.
        second: the second objective, if it is not the mean conductance.

    Raises:
        InvalidArgument: the stored study is about something else, or an option cannot be used.
        WeightProgrammingError: the baseline cannot be evaluated.
    """
    study = None
    with suppress(KeyError):
        study = optuna.load_study(study_name=study_name, storage=storage)
    stored: Mapping[str, Any] = {} if study is None else study.user_attrs
    if study is not None:
        _check_same(study, storage, problem, settings, sampler_options, second)
    options = _options_in_force(settings, stored, sampler_options)
    names = problem.hypercube.names if study is None else names_in(study, problem.hypercube)
    sampler = _make_sampler(problem, settings, options, study, names)
    # Other engines would judge the trials of a stored study differently.
    engine_name = settings.engine or stored.get(attributes.ENGINE)
    needs_gradients = settings.sampler == GRADIENT or settings.max_conductance is not None
    if engine_name is None and needs_gradients:
        engine_name = "expected"
    is_checked = attributes.SELF_CHECK in stored
    chosen = choose_engine(
        problem,
        engine_name,
        device=settings.device,
        check=settings.self_check and not is_checked,
        n_trials=settings.n_trials,
    )
    if settings.objective == "tnmse,conductance":
        second = MeanConductance(chosen.engine)
    baseline = stored.get(attributes.BASELINE)
    objective = HypercubeObjective(problem, chosen.engine, baseline, second)
    _ = objective.baseline  # fails here, if it does
    if not _is_begun(stored):
        study = optuna.create_study(
            study_name=study_name, storage=storage, load_if_exists=True,
            directions=objective.directions,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # it is no user's concern
            study.set_metric_names(["loss"] if second is None else ["loss", second.name])
        keep(
            study,
            {
                attributes.SAMPLER: settings.sampler,
                attributes.OBJECTIVE: _objectives(settings, second),
                attributes.SAMPLER_OPTIONS: _storable(options),
                attributes.SEED: settings.seed,
                attributes.DESCRIPTION: problem.description,
                attributes.VERSIONS: versions(),
                attributes.PARENT_STUDY: parent_study,
                **about(objective, names),
            },
        )
        # Another process may have begun the study at the same time: what was written last counts.
        stored = study.user_attrs
        _check_same(study, storage, problem, settings, sampler_options, second)
        objective = HypercubeObjective(problem, chosen.engine, stored[attributes.BASELINE], second)
    assert study is not None
    self_check = None if chosen.self_check is None else chosen.self_check.to_json()
    sessions = stored.get(_SESSIONS, 0) + 1
    keep(study, {attributes.SELF_CHECK: self_check, _SESSIONS: sessions})
    return Mirror(study, storage, objective, sampler, names)


def _check_same(
    study: Study,
    storage: BaseStorage,
    problem: WeightProgrammingProblem,
    settings: RunSettings,
    sampler_options: Mapping[str, Any] | None,
    second: SecondObjective | None,
) -> None:
    """Refuses to go on with a study that was made for something else."""
    name, stored = study.study_name, study.user_attrs
    if not _is_begun(stored):
        if not study.get_trials(deepcopy=False):
            return  # made by hand, or cut off before its first trial
        raise InvalidArgument(
            f"study_name = {name!r}: this study was not made by wpo_optuna; give another "
            f"name, such as study_name = {_free_name(name, storage)!r}."
        )
    told: list[str] = []
    if stored[attributes.FINGERPRINT] != problem.fingerprint:
        told = differences(stored[attributes.DESCRIPTION], problem.description)
    objective, wanted = stored.get(attributes.OBJECTIVE, "tnmse"), _objectives(settings, second)
    if objective != wanted:
        told.append(f"objective was {objective}, now {wanted}")
    for attribute in (attributes.SAMPLER, attributes.SEED, attributes.ENGINE):
        was, now = stored[attribute], getattr(settings, attribute)
        if now not in (None, was):
            told.append(f"{attribute} was {was}, now {now}")
    if sampler_options is not None:
        was, now = stored[attributes.SAMPLER_OPTIONS], _storable(sampler_options)
        told += [
            f"{option} was {was.get(option, 'not given')}, now {now.get(option, 'not given')}"
            for option in sorted((was.keys() | now.keys()) - _STOPPING_OPTIONS)
            if was.get(option) != now.get(option)
        ]
    if told:
        # The problem has a seed, too, which is usually the same.
        listed = "; ".join(list(dict.fromkeys(told))[:_MOST_DIFFERENCES_TOLD])
        raise InvalidArgument(
            f"study_name = {name!r}: this study is about something else ({listed}); give "
            "the settings it was started with, or another name, such as "
            f"study_name = {_free_name(name, storage)!r}."
        )


def _objectives(settings: RunSettings, second: SecondObjective | None) -> str:
    """What is optimised, a user's metric by its name."""
    if settings.objective == "tnmse,metric" and second is not None:
        return f"tnmse,{second.name}"
    return settings.objective


def _is_begun(stored: Mapping[str, Any]) -> bool:
    """Whether a study says all that it needs to be gone on with."""
    return {attributes.SAMPLER, attributes.FINGERPRINT} <= stored.keys()


def _free_name(name: str, storage: BaseStorage) -> str:
    """A name like another one that no study has."""
    taken = {study.study_name for study in storage.get_all_studies()}
    return next(free for n in count(2) if (free := f"{name}-{n}") not in taken)


def _make_sampler(
    problem: WeightProgrammingProblem,
    settings: RunSettings,
    options: Mapping[str, Any],
    study: Study | None,
    names: tuple[str, ...],
) -> BaseSampler | None:
    if settings.sampler == GRADIENT:
        return None
    if settings.sampler == "de":
        options = {"max_attempts": _NO_LIMIT} | dict(options)
    return make_sampler(
        settings.sampler,
        seed=settings.seed,
        search_space=problem.hypercube.distributions(names),
        n_earlier_sessions=0 if study is None else study.user_attrs.get(_SESSIONS, 0),
        **options,
    )


def _storable(options: Mapping[str, Any]) -> dict[str, Any]:
    """A sampler's options as JSON can hold them: arrays as lists, functions by their name."""

    def storable(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            return value.tolist()
        module, name = getattr(value, "__module__", "?"), getattr(value, "__name__", "?")
        return f"{_FUNCTION}{module}.{name}"

    stored: dict[str, Any] = json.loads(json.dumps(dict(options), default=storable))
    return stored


def _options_in_force(
    settings: RunSettings, stored: Mapping[str, Any], given: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    if given is not None:
        return given
    if attributes.SAMPLER_OPTIONS not in stored:
        return DE_OPTIONS if settings.sampler == "de" else {}
    options: Mapping[str, Any] = stored[attributes.SAMPLER_OPTIONS]
    for name, value in options.items():
        if isinstance(value, str) and value.startswith(_FUNCTION):
            raise InvalidArgument(
                f"sampler_options: {name} was the {value} when the study began, which cannot be "
                "stored; give it again."
            )
    return options
