"""What a study found, as one HTML page with figures: measured once, drawn from what is stored."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wpo_optuna.report.measurements import Measurements, measure
    from wpo_optuna.report.page import ReportFiles, write_report

__all__ = ["Measurements", "ReportFiles", "measure", "write_report"]


def __getattr__(name: str) -> Any:
    """Imports torch and matplotlib once a name is used: the command's help answers at once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "measurements" if name in ("Measurements", "measure") else "page"
    return getattr(import_module(f"{__name__}.{module}"), name)
