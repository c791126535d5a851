"""What the tree-structured Parzen estimator needs of a study's trials, kept from ask to ask."""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.samplers._tpe.sampler import _get_infeasible_trial_score, _get_pruned_trial_score
from optuna.study import StudyDirection
from optuna.trial import TrialState

from wpo_optuna.samplers.trial_feed import TrialFeed

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial


class RankedTrials:
    """Finished trials, from good to bad.

    Ranks are Optuna's: completed trials by value, then pruned ones by step and last report, then
    those that violate constraints by how much; of equals the earlier one first.

    Attributes:
        n: how many there are.
    """

    def __init__(self) -> None:
        self.n = 0
        self._complete: list[tuple[float, int]] = []
        self._pruned: list[tuple[tuple[float, float], int]] = []
        self._infeasible: list[tuple[float, int]] = []

    def add(self, trial: FrozenTrial, study: Study, direction: StudyDirection) -> None:
        """Adds a completed or pruned trial of a study with one objective."""
        self.n += 1
        violation = _get_infeasible_trial_score(trial)
        if violation > 0:
            insort(self._infeasible, (violation, trial.number))
        elif trial.state == TrialState.PRUNED:
            insort(self._pruned, (_get_pruned_trial_score(trial, study), trial.number))
        else:
            assert trial.value is not None
            sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
            insort(self._complete, (sign * trial.value, trial.number))

    def best(self, n: int) -> list[int]:
        """The numbers of the best n trials, ascending."""
        numbers: list[int] = []
        ranks: Sequence[Sequence[tuple[Any, int]]] = (
            self._complete,
            self._pruned,
            self._infeasible,
        )
        for ranked in ranks:
            numbers += [number for _, number in ranked[: max(0, n - len(numbers))]]
        return sorted(numbers)


class ObservationTable:
    """The parameters of trials as numbers ``(d, trials)``, by trial number.

    Args:
        search_space: the d parameters.

    Attributes:
        n_taken: how many finished trials were written so far.
    """

    def __init__(self, search_space: dict[str, BaseDistribution]) -> None:
        self._search_space = dict(search_space)
        self.n_taken = 0
        self._values = np.empty((len(search_space), 0))
        # Trials without all of the parameters are never observed.
        self._is_written = np.zeros(0, dtype=bool)

    def take_in(self, finished: Sequence[FrozenTrial], n_trials: int) -> None:
        """Writes the finished trials after the first :attr:`n_taken`.

        Args:
            finished: all finished trials to observe, in the order in which they were noticed.
            n_trials: how many trials the study has.
        """
        self._reserve(n_trials)
        for trial in finished[self.n_taken :]:
            row = self._row(trial.params)
            if row is not None:
                self._values[:, trial.number] = row
                self._is_written[trial.number] = True
            self.n_taken += 1

    def split(
        self, below: Sequence[int], running: Mapping[int, Mapping[str, Any]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Observations ``(d, n)`` of good trials, and of all others, by number.

        Args:
            below: numbers of the good ones.
            running: parameters of trials that are not finished, by number; they are no good ones.
        """
        others = self._is_written.copy()
        for number, params in running.items():
            row = self._row(params)
            if row is not None:
                self._values[:, number] = row
                others[number] = True
        others[list(below)] = False
        good = [number for number in below if self._is_written[number]]
        return self._values[:, good], self._values[:, np.flatnonzero(others)]

    def _row(self, params: Mapping[str, Any]) -> list[float] | None:
        if not self._search_space.keys() <= params.keys():
            return None
        return [
            distribution.to_internal_repr(params[name])
            for name, distribution in self._search_space.items()
        ]

    def _reserve(self, n_trials: int) -> None:
        n_present = len(self._is_written)
        if n_trials <= n_present:
            return
        n_more = max(n_trials - n_present, n_present, 64)
        self._values = np.pad(self._values, ((0, 0), (0, n_more)))
        self._is_written = np.pad(self._is_written, (0, n_more))


class TPEHistory:
    """The finished trials of one study with one objective, ranked and as numbers."""

    def __init__(self) -> None:
        self._feed = TrialFeed()
        self._start_empty()

    def _start_empty(self) -> None:
        self.ranked = RankedTrials()
        self._finished: list[FrozenTrial] = []
        self._tables: dict[tuple[str, ...], ObservationTable] = {}
        self._n_trials = 0

    def take_in(
        self, study: Study, direction: StudyDirection, trials: Sequence[FrozenTrial]
    ) -> bool:
        """Notes what has finished since the last call; False if the trials cannot be followed."""
        news = self._feed.look(study, trials)
        if news is None or news.begins_anew:
            self._start_empty()
        if news is None:
            return False
        self._n_trials = len(trials)
        for trial in news.finished:
            if trial.state != TrialState.FAIL:
                self._finished.append(trial)
                self.ranked.add(trial, study, direction)
        return True

    def running(self, trials: Sequence[FrozenTrial], but: int) -> list[FrozenTrial]:
        """The running trials among those that were just taken in, except the one numbered so."""
        numbers = sorted(self._feed.unfinished - {but})
        return [trials[n] for n in numbers if trials[n].state == TrialState.RUNNING]

    def split(
        self,
        search_space: dict[str, BaseDistribution],
        n_below: int,
        running: Mapping[int, Mapping[str, Any]],
    ) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
        """Observations by parameter: of the best finished trials, and of all others.

        Args:
            search_space: the parameters.
            n_below: how many are the best.
            running: parameters of the running trials to observe, by number.
        """
        below, above = self._table(search_space).split(self.ranked.best(n_below), running)
        names = list(search_space)
        return dict(zip(names, below, strict=True)), dict(zip(names, above, strict=True))

    def _table(self, search_space: dict[str, BaseDistribution]) -> ObservationTable:
        names = tuple(search_space)
        table = self._tables.get(names)
        if table is None:
            # Optuna sees to it that a parameter stays of its kind, so that only bounds may change,
            # on which the numbers do not depend.
            table = self._tables[names] = ObservationTable(search_space)
        table.take_in(self._finished, self._n_trials)
        return table
