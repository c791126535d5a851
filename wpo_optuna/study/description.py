"""What a study says of itself in its storage: its problem, its engine, what its parameters are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wpo_optuna.study import attributes

if TYPE_CHECKING:
    from optuna import Study

    from wpo_optuna.hypercube import Hypercube
    from wpo_optuna.problem import WeightProgrammingProblem
    from wpo_optuna.study.objective import HypercubeObjective

_COORDINATES = (
    "Parameters are coordinates from 0 to 1 of what is searched, pairs and weights counted from 0: "
    "x_f_1 says where between f_min and f_max the factor of pair 1 lies, x_k_w how much of the "
    "largest weight's range is used, x_g_0_2 where g+ and g- of pair 0 lie at the weight 2, "
    "x_delta_g_0_2 how much of this weight the pair carries. The quantities themselves are user "
    "attributes of each trial: f_lst, g_lst (µS), k_w (µS per unit weight), tnmse and baseline (%)."
)


def keep(study: Study, values: Mapping[str, Any]) -> None:
    """Writes into a study's attributes what differs from them and is not None."""
    stored = study.user_attrs
    for name, value in values.items():
        if value is not None and stored.get(name) != value:
            study.set_user_attr(name, value)


def names_in(study: Study, hypercube: Hypercube) -> tuple[str, ...]:
    """The names that the hypercube's coordinates have in a study.

    Studies that were stored when coordinates had the names of the quantities keep these.
    """
    told = study.user_attrs
    if attributes.COORDINATES in told:
        return hypercube.names
    earlier = hypercube.earlier_names
    is_earlier = attributes.FINGERPRINT in told or any(
        earlier[0] in trial.params for trial in study.get_trials(deepcopy=False)
    )
    return earlier if is_earlier else hypercube.names


def about(objective: HypercubeObjective, names: tuple[str, ...]) -> dict[str, Any]:
    """The attributes that say what a study of an objective is about; the fingerprint comes last.

    Args:
        objective: the objective.
        names: the coordinates' names in the study, see :func:`names_in`.
    """
    problem = objective.problem
    is_of_today = names == problem.hypercube.names
    return {
        attributes.ENGINE: objective.engine.name,
        attributes.BASELINE: objective.baseline,
        attributes.PROBLEM: summary(problem),
        attributes.COORDINATES: _COORDINATES if is_of_today else None,
        attributes.FINGERPRINT: problem.fingerprint,
    }


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
        "devices": len(problem.on_each_device),
        "over": problem.over,
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
