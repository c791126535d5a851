"""The parameters that all finished trials of a study have in common, kept from ask to ask."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study
from optuna.trial import TrialState

from wpo_optuna.samplers.trial_feed import TrialFeed

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


class SharedSearchSpace(IntersectionSearchSpace):
    """Finds what :class:`optuna.search_space.IntersectionSearchSpace` finds, for less.

    Optuna's class looks again at all trials after the first that is not finished: at every trial
    of a batch while it is asked, and at all trials for ever once a process left one unfinished.

    Args:
        include_pruned: whether pruned trials count.
    """

    def __init__(self, include_pruned: bool = False) -> None:
        super().__init__(include_pruned)
        self._counted = {TrialState.COMPLETE} | ({TrialState.PRUNED} if include_pruned else set())
        self._start_empty()

    def _start_empty(self) -> None:
        self._lock = threading.Lock()
        self._feed = TrialFeed()
        self._common: dict[str, BaseDistribution] | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_lock", "_feed", "_common"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_empty()

    def calculate(self, study: Study, use_cache: bool = False) -> dict[str, BaseDistribution]:
        """See :meth:`optuna.search_space.IntersectionSearchSpace.calculate`."""
        if type(study) is not Study or self._study_id not in (None, study._study_id):
            return super().calculate(study, use_cache)
        self._study_id = study._study_id
        trials = study._get_trials(deepcopy=False, use_cache=use_cache)
        with self._lock:
            news = self._feed.look(study, trials)
            if news is None or news.begins_anew:
                self._common = None
            if news is not None:
                # From the newest trial, as Optuna: equal choices may be of different types.
                for trial in reversed(news.finished):
                    self._narrow(trial)
                return dict(sorted((self._common or {}).items()))
        return super().calculate(study, use_cache)

    def _narrow(self, trial: FrozenTrial) -> None:
        if trial.state not in self._counted:
            return
        others = trial.distributions
        if self._common is None:
            self._common = dict(others)
        elif not all(_same(d, others.get(name)) for name, d in self._common.items()):
            self._common = {
                name: d for name, d in self._common.items() if _same(d, others.get(name))
            }


def _same(one: BaseDistribution, other: BaseDistribution | None) -> bool:
    return one is other or one == other
