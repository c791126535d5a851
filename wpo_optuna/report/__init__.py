"""What a study found, as one HTML page with figures: measured once, drawn from what is stored."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wpo_optuna.report.measurements import Measurements, measure
    from wpo_optuna.report.page import ReportFiles, write_report

_MODULES = {
    "Measurements": "measurements",
    "ReportFiles": "page",
    "measure": "measurements",
    "write_report": "page",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Imports torch and matplotlib once a name is used: the command's help answers at once."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
