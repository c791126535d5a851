"""Choosing one of Optuna's samplers, or differential evolution, by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wpo_optuna.errors import InvalidArgument

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

SAMPLER_NAMES = ("de", "cmaes", "tpe", "random", "qmc")


def make_sampler(
    name: str,
    *,
    seed: int = 0,
    search_space: Mapping[str, BaseDistribution] | None = None,
    n_earlier_trials: int = 0,
    **options: Any,
) -> BaseSampler:
    """Makes a sampler for a study that may have trials already.

    Differential evolution and quasi-Monte Carlo continue their own sequence from the trials
    themselves and take the seed as it is. TPE, CMA-ES and random search would propose the same
    points again if their generator restarted, so that theirs is seeded by the seed and the number
    of earlier trials together.

    Args:
        name: ``"de"``, ``"cmaes"``, ``"tpe"``, ``"random"`` or ``"qmc"``.
        seed: seed of the search.
        search_space: the parameters, where they are known beforehand (differential evolution
            then starts with the first trial).
        n_earlier_trials: number of trials the study already has.
        options: further arguments of the sampler's constructor.

    Raises:
        InvalidArgument: no sampler has this name.
    """
    import optuna

    fresh_seed = _derived_seed(seed, n_earlier_trials)
    if name == "de":
        from wpo_optuna.samplers.de import DESampler

        return DESampler(
            seed=seed,
            search_space=None if search_space is None else dict(search_space),
            **options,
        )
    if name == "cmaes":
        return optuna.samplers.CmaEsSampler(
            seed=fresh_seed, warn_independent_sampling=False, **options
        )
    if name == "tpe":
        # Trials of a batch are asked before any of them is told.
        return optuna.samplers.TPESampler(
            seed=fresh_seed, **({"constant_liar": True, "multivariate": True} | options)
        )
    if name == "random":
        return optuna.samplers.RandomSampler(seed=fresh_seed, **options)
    if name == "qmc":
        return optuna.samplers.QMCSampler(
            seed=seed,
            warn_independent_sampling=False,
            warn_asynchronous_seeding=False,
            **({"scramble": True} | options),
        )
    close = difflib.get_close_matches(str(name), SAMPLER_NAMES, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise InvalidArgument(f"sampler = {name!r}: one of {', '.join(SAMPLER_NAMES)} is needed{hint}.")


def _derived_seed(seed: int, n_earlier_trials: int) -> int:
    """A seed of its own for each length of history; the given one for a new study."""
    if n_earlier_trials == 0:
        return seed
    return int(np.random.SeedSequence([seed, n_earlier_trials]).generate_state(1)[0])
