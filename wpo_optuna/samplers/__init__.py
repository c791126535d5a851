"""Optuna samplers for weight programming studies, by name, and differential evolution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wpo_optuna.samplers.factory import SAMPLER_NAMES, make_sampler

if TYPE_CHECKING:
    from wpo_optuna.samplers.de import DESampler, candidate_of

__all__ = ["SAMPLER_NAMES", "DESampler", "candidate_of", "make_sampler"]


def __getattr__(name: str) -> Any:
    """Imports Optuna only once a sampler is used."""
    if name not in ("DESampler", "candidate_of"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from wpo_optuna.samplers import de

    return getattr(de, name)
