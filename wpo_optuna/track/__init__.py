"""MLflow as a projection of the Optuna storage: whatever a study has there is brought to it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wpo_optuna.track.delivery import Delivered, deliver
    from wpo_optuna.track.destination import Destination, check_tracking_uri, refuse_file_of
    from wpo_optuna.track.follower import Follower, TrackingWarning
    from wpo_optuna.track.store import find_or_create_experiment
    from wpo_optuna.track.study_run import PARENT_TAG
    from wpo_optuna.track.tracker import MlflowTracker, page_of_experiment

_MODULES = {
    "PARENT_TAG": "study_run",
    "Delivered": "delivery",
    "Destination": "destination",
    "Follower": "follower",
    "MlflowTracker": "tracker",
    "TrackingWarning": "follower",
    "check_tracking_uri": "destination",
    "deliver": "delivery",
    "find_or_create_experiment": "store",
    "page_of_experiment": "tracker",
    "refuse_file_of": "destination",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Imports Optuna once a name is used that needs it: the command's help answers at once."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
