"""Choosing one of Optuna's samplers, or differential evolution, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wpo_optuna.errors import check_choice, check_options

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

SAMPLER_NAMES = ("de", "cmaes", "tpe", "random", "qmc", "nsga2", "nsga3")

# Optuna's classes, and what they are given besides the seed. Trials of a batch are asked before
# any of them is told, which TPE has to know.
_OPTUNAS: dict[str, tuple[str, dict[str, Any]]] = {
    "cmaes": ("CmaEsSampler", {"warn_independent_sampling": False}),
    "tpe": ("TPESampler", {"constant_liar": True, "multivariate": True}),
    "random": ("RandomSampler", {}),
    "nsga2": ("NSGAIISampler", {}),
    "nsga3": ("NSGAIIISampler", {}),
    "qmc": (
        "QMCSampler",
        {"scramble": True, "warn_independent_sampling": False, "warn_asynchronous_seeding": False},
    ),
}


def make_sampler(
    name: str,
    *,
    seed: int = 0,
    search_space: Mapping[str, BaseDistribution] | None = None,
    n_earlier_trials: int = 0,
    n_earlier_sessions: int = 0,
    **options: Any,
) -> BaseSampler:
    """Makes a sampler for a study that may have trials already.

    Differential evolution and quasi-Monte Carlo continue their own sequence and take the seed as
    it is. TPE, CMA-ES and random search would propose the same points again if their generator
    restarted, in a later process or in another one at the same time, so that theirs is seeded by
    the seed and these numbers together.

    Args:
        name: ``"de"``, ``"cmaes"``, ``"tpe"``, ``"random"``, ``"qmc"``, ``"nsga2"`` or
            ``"nsga3"``.
        seed: seed of the search.
        search_space: the parameters, where they are known beforehand (differential evolution
            then starts with the first trial).
        n_earlier_trials: number of trials the study already has.
        n_earlier_sessions: number of samplers made for the study before this one.
        options: further arguments of the sampler's constructor.

    Raises:
        InvalidArgument: no sampler has this name, or it has no such option.
    """
    check_choice("sampler", name, SAMPLER_NAMES)
    import optuna

    from wpo_optuna.samplers.de import DESampler

    if name == "de":
        check_options(DESampler, options, "sampler 'de'")
        return DESampler(seed=seed, search_space=search_space, **options)
    class_name, defaults = _OPTUNAS[name]
    sampler = getattr(optuna.samplers, class_name)
    check_options(sampler, options, f"sampler {name!r}")
    earlier = (n_earlier_trials, n_earlier_sessions)
    if name != "qmc" and any(earlier):
        seed = int(np.random.SeedSequence([seed, *earlier]).generate_state(1)[0])
    return sampler(seed=seed, **(defaults | options))
