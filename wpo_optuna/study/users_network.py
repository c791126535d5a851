"""The user's network beside a study of its weights, to see what strategies are worth in it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from wpo_optuna.evaluate.accuracy import NetworkSetup, set_up_network
from wpo_optuna.network.account import NetworkWarning
from wpo_optuna.network.analogue import Choice

if TYPE_CHECKING:
    from wpo_optuna.study.problem_setup import ProblemSetup
    from wpo_optuna.study.settings import StudySettings


def network_of(settings: StudySettings, setup: ProblemSetup) -> NetworkSetup:
    """The network that was given, on the study's hardware; warns if it is not the study's.

    Raises:
        InvalidArgument: one of the user's functions cannot be used.
    """
    assert settings.model is not None
    network = set_up_network(
        model=settings.model, data=settings.data, metric=settings.metric,
        rpu_config=settings.rpu_config, choice=Choice(settings.include, settings.exclude),
    )  # fmt: skip
    studied = [tensor.name for tensor in setup.checkpoint.account.analogue]
    told = network.network.account.disagreement(studied)
    if told is not None:
        warnings.warn(told, NetworkWarning, stacklevel=2)
    return network
