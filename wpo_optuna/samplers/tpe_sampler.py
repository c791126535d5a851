"""Optuna's tree-structured Parzen estimator, reading each trial once."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import TPESampler
from optuna.samplers._tpe.sampler import default_gamma
from optuna.study import Study
from optuna.trial import TrialState

from wpo_optuna.samplers.shared_space import SharedSearchSpace
from wpo_optuna.samplers.tpe_history import TPEHistory
from wpo_optuna.samplers.tpe_screening import screened

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
    from optuna.trial import FrozenTrial

    Observations = dict[str, NDArray[np.float64]]

_OBSERVED = (TrialState.COMPLETE, TrialState.PRUNED)


class CachingTPESampler(TPESampler):
    """Proposes exactly what :class:`optuna.samplers.TPESampler` proposes, for less.

    Optuna's sampler ranks all trials at every ask and makes numbers of all their parameters. Here
    the finished trials are kept ranked and as numbers from ask to ask, only what is new is read,
    and the candidates are compared by :func:`~wpo_optuna.samplers.tpe_screening.screened`.

    Studies with several objectives, and those with a Hyperband pruner, which shows samplers a part
    of the trials at a time, are left to Optuna's implementation.

    Args:
        options: see :class:`optuna.samplers.TPESampler`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._search_space = SharedSearchSpace(include_pruned=True)
        self._start_empty()

    def _start_empty(self) -> None:
        # Kept for work in memory alone: a thread that holds a storage's transaction may want it.
        self._lock = threading.Lock()
        self._history = TPEHistory()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_lock"], state["_history"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_empty()

    def _sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if search_space == {}:
            return {}
        trials = study._get_trials(deepcopy=False, use_cache=True)
        observed = (t for t in trials if t.state in _OBSERVED)
        # Only whether there are enough counts, and that the first few trials tell.
        if len(list(itertools.islice(observed, self._n_startup_trials))) < self._n_startup_trials:
            return {}
        return self._sample(study, trial, search_space)

    def _sample(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if type(study) is not Study or study._is_multi_objective():
            return super()._sample(study, trial, search_space)
        trials = study._get_trials(deepcopy=False, use_cache=not self._constant_liar)
        split = self._split(study, trial, trials, search_space)
        if split is None:
            return super()._sample(study, trial, search_space)
        below, above = (
            self._parzen_estimator_cls(
                observations, search_space, self._parzen_estimator_parameters
            )
            for observations in split
        )
        samples = below.sample(self._rng.rng, self._n_ei_candidates)
        best = self._compare(samples, self._compute_acquisition_func(samples, below, above))
        return {name: d.to_external_repr(best[name]) for name, d in search_space.items()}

    def _split(
        self,
        study: Study,
        trial: FrozenTrial,
        trials: list[FrozenTrial],
        search_space: dict[str, BaseDistribution],
    ) -> tuple[Observations, Observations] | None:
        """What good trials and all others observed; None if the history cannot tell."""
        direction = study.direction
        with self._lock:
            if not self._history.take_in(study, direction, trials):
                return None
            running = self._history.running(trials, trial.number) if self._constant_liar else []
            gamma = self._gamma or default_gamma
            return self._history.split(
                search_space,
                gamma(self._history.ranked.n),
                {other.number: self._get_params(other, study) for other in running},
            )

    def _compute_acquisition_func(
        self,
        samples: dict[str, NDArray[np.float64]],
        mpe_below: _ParzenEstimator,
        mpe_above: _ParzenEstimator,
    ) -> NDArray[np.float64]:
        values = screened(samples, mpe_below, mpe_above)
        if values is None:
            return super()._compute_acquisition_func(samples, mpe_below, mpe_above)
        return values
