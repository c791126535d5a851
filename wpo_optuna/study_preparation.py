"""Opening a study: the stored one if it is about the same problem, else a new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wpo_optuna import study_identity as identity
from wpo_optuna.engine_choice import choose_engine
from wpo_optuna.errors import InvalidArgument
from wpo_optuna.objective import HypercubeObjective
from wpo_optuna.samplers import make_sampler
from wpo_optuna.study_plan import DE_OPTIONS, GRADIENT, StudyPlan

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage

    from wpo_optuna.problem import WeightProgrammingProblem

_NO_LIMIT = 1_000_000


def prepare(
    problem: WeightProgrammingProblem, storage: BaseStorage, study_name: str, plan: StudyPlan
) -> tuple[Study, HypercubeObjective]:
    """The study with its sampler, and its objective with engine and baseline.

    Whatever can fail comes before a new study is written.

    Raises:
        InvalidArgument: the stored study is about something else, or an option cannot be used.
    """
    study = identity.find_study(storage, study_name)
    if study is not None:
        identity.check_same_problem(study, problem, plan.sampler, plan.seed)
    stored: Mapping[str, Any] = {} if study is None else study.user_attrs
    options = _sampler_options(plan, stored)
    sampler = _sampler(plan, options, study, problem)

    chosen = choose_engine(
        problem,
        _engine_name(plan, stored, study_name),
        device=plan.device,
        check=plan.self_check and identity.SELF_CHECK not in stored,
    )
    objective = HypercubeObjective(problem, chosen.engine, stored.get(identity.BASELINE))
    if study is None or identity.FINGERPRINT not in stored:
        attributes = {
            identity.SAMPLER: plan.sampler,
            identity.SAMPLER_OPTIONS: dict(options),
            identity.SEED: plan.seed,
            identity.ENGINE: chosen.engine.name,
            identity.BASELINE: objective.baseline,
        }
        if chosen.self_check is not None:
            attributes[identity.SELF_CHECK] = chosen.self_check.to_json()
        if plan.parent_study is not None:
            attributes[identity.PARENT_STUDY] = plan.parent_study
        study = identity.create_study(storage, study_name, problem, attributes)
    if sampler is not None:
        study.sampler = sampler
    return study, objective


def _engine_name(plan: StudyPlan, stored: Mapping[str, Any], study_name: str) -> str | None:
    """The engine of the stored study, as others would judge its trials differently."""
    stored_name = stored.get(identity.ENGINE)
    if stored_name is None or plan.engine in (None, stored_name):
        return plan.engine or stored_name or ("expected" if plan.sampler == GRADIENT else None)
    raise InvalidArgument(
        f"engine = {plan.engine!r}: the trials of study {study_name!r} were evaluated by "
        f"{stored_name!r}; go on with that, or give another study name."
    )


def _sampler_options(plan: StudyPlan, stored: Mapping[str, Any]) -> Mapping[str, Any]:
    if plan.sampler_options is not None:
        return plan.sampler_options
    if identity.SAMPLER_OPTIONS not in stored:
        return DE_OPTIONS if plan.sampler == "de" else {}
    # JSON has no tuples, and scipy's dithering is one.
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in stored[identity.SAMPLER_OPTIONS].items()
    }


def _sampler(
    plan: StudyPlan,
    options: Mapping[str, Any],
    study: Study | None,
    problem: WeightProgrammingProblem,
) -> BaseSampler | None:
    if plan.sampler == GRADIENT:
        return None
    if plan.sampler == "de":
        # The loss of a point is never undefined: an engine that fails has lost its device or its
        # memory, which says nothing against the candidates of that batch.
        options = {"max_attempts": _NO_LIMIT} | dict(options)
    n_earlier = 0 if study is None else len(study.get_trials(deepcopy=False))
    return make_sampler(
        plan.sampler,
        seed=plan.seed,
        search_space=problem.hypercube.distributions(),
        n_earlier_trials=n_earlier,
        **options,
    )
