"""Opening a study: the stored one if it is about the same problem, else a new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.engine_choice import choose_engine
from wpo_optuna.samplers import make_sampler
from wpo_optuna.study import study_identity as identity
from wpo_optuna.study.objective import HypercubeObjective
from wpo_optuna.study.study_plan import DE_OPTIONS, GRADIENT, StudyPlan
from wpo_optuna.track.delivery.description import PARENT_STUDY

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage

    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

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
        _check_same_problem(study, problem, plan)
    stored: Mapping[str, Any] = {} if study is None else study.user_attrs
    options = _sampler_options(plan, stored)

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
            identity.SAMPLER_OPTIONS: identity.storable_options(options),
            identity.SEED: plan.seed,
            identity.ENGINE: chosen.engine.name,
            identity.BASELINE: objective.baseline,
        }
        if plan.parent_study is not None:
            attributes[PARENT_STUDY] = plan.parent_study
        study = identity.create_study(storage, study_name, problem, attributes)
        # Another process may have begun the same study meanwhile: what it wrote is everybody's.
        _check_same_problem(study, problem, plan)
        objective = _objective_of(study, objective, plan)
    if chosen.self_check is not None:
        # Of a resumed study too, if it was begun without, so that it is checked once.
        study.set_user_attr(identity.SELF_CHECK, chosen.self_check.to_json())
    sampler = _sampler(plan, options, study, problem)
    if sampler is not None:
        study.sampler = sampler
    return study, objective


def _check_same_problem(study: Study, problem: WeightProgrammingProblem, plan: StudyPlan) -> None:
    identity.check_same_problem(study, problem, plan.sampler, plan.seed, plan.sampler_options)


def _objective_of(
    study: Study, objective: HypercubeObjective, plan: StudyPlan
) -> HypercubeObjective:
    """The objective with the study's own engine and baseline."""
    stored = study.user_attrs
    engine = objective.engine
    if stored[identity.ENGINE] != engine.name:
        engine = choose_engine(
            objective.problem, stored[identity.ENGINE], device=plan.device, check=False
        ).engine
    return HypercubeObjective(objective.problem, engine, stored[identity.BASELINE])


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
    return identity.restored_options(stored[identity.SAMPLER_OPTIONS])


def _sampler(
    plan: StudyPlan,
    options: Mapping[str, Any],
    study: Study,
    problem: WeightProgrammingProblem,
) -> BaseSampler | None:
    if plan.sampler == GRADIENT:
        return None
    if plan.sampler == "de":
        # The loss of a point is never undefined: an engine that fails has lost its device or its
        # memory, which says nothing against the candidates of that batch.
        options = {"max_attempts": _NO_LIMIT} | dict(options)
    return make_sampler(
        plan.sampler,
        seed=plan.seed,
        search_space=problem.hypercube.distributions(),
        n_earlier_trials=len(study.get_trials(deepcopy=False)),
        n_earlier_sessions=identity.count_session(study),
        **options,
    )
