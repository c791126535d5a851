"""MLflow as a projection of the Optuna storage: whatever a study has there is brought to it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wpo_optuna.track.delivery import Delivered, deliver
    from wpo_optuna.track.destination import Destination, refuse_file_of
    from wpo_optuna.track.follower import Follower, TrackingWarning
    from wpo_optuna.track.study_run import PARENT_TAG
    from wpo_optuna.track.tracker import MlflowTracker, page_of_experiment

__all__ = [
    "PARENT_TAG",
    "Delivered",
    "Destination",
    "Follower",
    "MlflowTracker",
    "TrackingWarning",
    "deliver",
    "page_of_experiment",
    "refuse_file_of",
]


def __getattr__(name: str) -> Any:
    """Imports Optuna once a name is used that needs it: the command's help answers at once."""
    if name in __all__:
        for module in ("delivery", "destination", "follower", "study_run", "tracker"):
            found = import_module(f"{__name__}.{module}")
            if name in vars(found):
                return vars(found)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
