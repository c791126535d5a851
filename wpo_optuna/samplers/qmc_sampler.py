"""Optuna's quasi-Monte Carlo search, going through its sequence once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.samplers import QMCSampler
from optuna.samplers._qmc import _SUGGESTED_STATES, _threading_lock

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial


class CachingQMCSampler(QMCSampler):
    """Proposes exactly what :class:`optuna.samplers.QMCSampler` proposes, for less.

    Optuna's sampler goes through the sequence from its beginning for every point, and through all
    trials to find the first. Here the sequence is kept where it is, and the search for the first
    trial ends with it.

    Args:
        options: see :class:`optuna.samplers.QMCSampler`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # A scipy engine for each number of parameters.
        self._engines: dict[int, Any] = {}

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """See :meth:`optuna.samplers.QMCSampler.infer_relative_search_space`."""
        for other in study._get_trials(deepcopy=False, use_cache=True):
            if other.state in _SUGGESTED_STATES:
                return dict(other.distributions)
        return super().infer_relative_search_space(study, trial)

    def _sample_qmc(self, study: Study, search_space: dict[str, BaseDistribution]) -> np.ndarray:
        index = self._find_sample_id(study, search_space)
        # Optuna's lock: scipy's Sobol engines do not bear being made by several threads at once.
        with _threading_lock:
            engine = self._engines.get(len(search_space))
            if engine is None or engine.num_generated > index:
                engine = self._engines[len(search_space)] = self._new_engine(len(search_space))
            # Other processes took the points between. (Sobol engines refuse to go no point on.)
            if index > engine.num_generated:
                engine.fast_forward(index - engine.num_generated)
            return engine.random(1)

    def _new_engine(self, dimension: int) -> Any:
        # scipy.stats takes long to import.
        from scipy.stats import qmc

        kind = qmc.Halton if self._qmc_type == "halton" else qmc.Sobol
        return kind(dimension, seed=self._seed, scramble=self._scramble)
