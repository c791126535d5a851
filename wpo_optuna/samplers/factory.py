"""Choosing one of Optuna's samplers, or differential evolution, by name."""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wpo_optuna.errors import InvalidArgument, check_options

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

SAMPLER_NAMES = ("de", "cmaes", "tpe", "random", "qmc")

# The releases whose private parts the caching samplers are made for.
_KNOWN_OPTUNA = ("5.0",)
_OPTUNAS = {
    "cmaes": "CmaEsSampler", "tpe": "TPESampler", "qmc": "QMCSampler", "random": "RandomSampler"
}  # fmt: skip


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

    Differential evolution and quasi-Monte Carlo continue their own sequence from the trials
    themselves and take the seed as it is. TPE, CMA-ES and random search would propose the same
    points again if their generator restarted, in a later process or in another one at the same
    time, so that theirs is seeded by the seed and these numbers together.

    Args:
        name: ``"de"``, ``"cmaes"``, ``"tpe"``, ``"random"`` or ``"qmc"``.
        seed: seed of the search.
        search_space: the parameters, where they are known beforehand (differential evolution
            then starts with the first trial).
        n_earlier_trials: number of trials the study already has.
        n_earlier_sessions: number of samplers made for the study before this one.
        options: further arguments of the sampler's constructor.

    Raises:
        InvalidArgument: no sampler has this name, or it has no such option.
    """
    import optuna

    if name in _OPTUNAS:
        check_options(getattr(optuna.samplers, _OPTUNAS[name]), options, f"sampler {name!r}")
    fresh_seed = _derived_seed(seed, n_earlier_trials, n_earlier_sessions)
    if name == "de":
        from wpo_optuna.samplers.de import DESampler

        check_options(DESampler, options, "sampler 'de'")
        return DESampler(
            seed=seed,
            search_space=None if search_space is None else dict(search_space),
            **options,
        )
    if name == "cmaes":
        return _class_of(name)(seed=fresh_seed, warn_independent_sampling=False, **options)
    if name == "tpe":
        # Trials of a batch are asked before any of them is told.
        return _class_of(name)(
            seed=fresh_seed, **({"constant_liar": True, "multivariate": True} | options)
        )
    if name == "random":
        return optuna.samplers.RandomSampler(seed=fresh_seed, **options)
    if name == "qmc":
        return _class_of(name)(
            seed=seed,
            warn_independent_sampling=False,
            warn_asynchronous_seeding=False,
            **({"scramble": True} | options),
        )
    close = difflib.get_close_matches(str(name), SAMPLER_NAMES, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise InvalidArgument(f"sampler = {name!r}: one of {', '.join(SAMPLER_NAMES)} is needed{hint}.")


def _class_of(name: str) -> Callable[..., BaseSampler]:
    """The class that does what Optuna's does, and faster where Optuna's inner workings are known.

    Args:
        name: ``"cmaes"``, ``"tpe"`` or ``"qmc"``.
    """
    import optuna

    if ".".join(optuna.__version__.split(".")[:2]) in _KNOWN_OPTUNA:
        module = importlib.import_module(f"wpo_optuna.samplers.{name}_sampler")
        return getattr(module, f"Caching{_OPTUNAS[name]}")
    warnings.warn(
        f"Optuna {optuna.__version__} is not known here ({', '.join(_KNOWN_OPTUNA)} is): its own "
        f"{name} sampler is used, whose cost per trial grows with the number of trials",
        stacklevel=3,
    )
    return getattr(optuna.samplers, _OPTUNAS[name])


def _derived_seed(seed: int, *earlier: int) -> int:
    """A seed of its own for each history; the given one for a new study."""
    if not any(earlier):
        return seed
    return int(np.random.SeedSequence([seed, *earlier]).generate_state(1)[0])
