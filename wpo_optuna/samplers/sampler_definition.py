"""What all samplers of one study must agree on, and how it is compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.samplers.differential_evolution import is_integer, is_number
from wpo_optuna.samplers.evolution_replay import evolvable


@dataclass(frozen=True, eq=False)
class SamplerDefinition:
    """The settings that decide which candidates a sampler proposes, the seed apart.

    Attributes:
        values: the settings by name, as JSON can hold them.
    """

    values: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """Equal for equal settings."""
        return digest(self.values)

    def difference(
        self, study_name: str, seed: int | None, stored_seed: int, stored: Mapping[str, Any] | None
    ) -> str:
        """A sentence that says how a study's settings differ from these.

        Args:
            study_name: the study.
            seed: the sampler's seed; None agrees with every other.
            stored_seed: the seed of the study's trials.
            stored: their settings, where the study holds them.
        """
        own = dict(self.values)
        if seed is not None and seed != stored_seed:
            own["seed"] = seed
        theirs = dict(stored or {}) | {"seed": stored_seed}
        names = [name for name in own if stored is None or own[name] != theirs.get(name)]
        if "seed" in own:
            names = ["seed"]
        here = ", ".join(f"{name} = {_shown(own[name])}" for name in names)
        there = ", ".join(f"{name} = {_shown(theirs.get(name))}" for name in names)
        if stored is None and names != ["seed"]:
            there = "other settings"
        return (
            f"{here}: the study {study_name!r} was begun with {there}, and its differential "
            "evolution can only be continued with the same; use these or start another study."
        )


def check_options(
    seed: int | None,
    tol: float,
    atol: float,
    max_attempts: int,
    stale_after: float,
    search_space: Mapping[str, BaseDistribution] | None,
) -> None:
    """Checks the options of :class:`~wpo_optuna.samplers.de.DESampler` that are its own.

    Raises:
        InvalidArgument: one of them cannot be used.
    """
    if seed is not None and (not is_integer(seed) or seed < 0):
        raise InvalidArgument(f"seed = {seed!r}: None or an integer of at least 0 is needed.")
    for name, value in (("tol", tol), ("atol", atol), ("stale_after", stale_after)):
        if not is_number(value) or not value >= 0:
            raise InvalidArgument(f"{name} = {value!r}: a number of at least 0 is needed.")
    if not is_integer(max_attempts) or max_attempts < 1:
        raise InvalidArgument(f"max_attempts = {max_attempts!r}: a positive integer is needed.")
    if search_space is None:
        return
    for name, distribution in search_space.items():
        if not isinstance(distribution, BaseDistribution):
            raise InvalidArgument(
                f"search_space[{name!r}] = {distribution!r}: an optuna distribution is needed."
            )
    if not evolvable(dict(search_space)):
        raise InvalidArgument(
            f"search_space = {dict(search_space)!r}: at least one numerical parameter with more "
            "than one value is needed."
        )


def digest(value: Any) -> str:
    """Twelve hexadecimal digits that are equal for equal JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def digest_of_space(space: Mapping[str, BaseDistribution]) -> str:
    """As :func:`digest`, for a search space; the order of the parameters counts."""
    return digest([[name, distribution_to_json(d)] for name, d in space.items()])


def _shown(value: Any) -> str:
    if isinstance(value, list) and len(value) == 1:
        return str(value[0])
    return str(value)
