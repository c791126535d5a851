"""A network of the user: reading it, what of it is analogue, its weights, applying a strategy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wpo_optuna.network.conductances import export_targets

__all__ = ["export_targets"]


def __getattr__(name: str) -> Any:
    """Imports aihwkit only once it is used."""
    if name != "export_targets":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from wpo_optuna.network.conductances import export_targets

    return export_targets
