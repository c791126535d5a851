"""Which trials of a study have finished since a sampler looked last."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class News:
    """What one look showed.

    Attributes:
        begins_anew: what was learned from all earlier looks is void: the study is another one,
            or writes were undone.
        finished: trials that were not finished at the last look, in the order of their numbers.
    """

    begins_anew: bool
    finished: list[FrozenTrial]


class TrialFeed:
    """Tells each finished trial once.

    Finished trials never change, so that a sampler that keeps what it needs of them need not read
    them at every ask. A look costs as much as there are new and unfinished trials.

    Attributes:
        unfinished: numbers of the trials that run or wait, at the last look.
    """

    def __init__(self) -> None:
        self._storage: weakref.ref[BaseStorage] | None = None
        self._study_id = -1
        self._rollbacks = 0
        self._start_empty()

    def _start_empty(self) -> None:
        self._n_seen = 0
        self._newest_finished: FrozenTrial | None = None
        self.unfinished: set[int] = set()

    def look(self, study: Study, trials: Sequence[FrozenTrial]) -> News | None:
        """Compares a study's trials with those of the last look.

        Args:
            study: the study.
            trials: all of its trials, in the order of their numbers.

        Returns:
            What is new; None if the trials are not numbered from zero without gaps, so that
            nothing can be said.
        """
        begins_anew = self._enter(study) or not self._continues_in(trials)
        if begins_anew:
            self._start_empty()
        if trials and trials[-1].number != len(trials) - 1:
            self._start_empty()
            return None
        candidates = [trials[number] for number in sorted(self.unfinished)]
        candidates += trials[self._n_seen :]
        finished = [trial for trial in candidates if trial.state.is_finished()]
        self.unfinished = {t.number for t in candidates if not t.state.is_finished()}
        self._n_seen = len(trials)
        if finished:
            self._newest_finished = finished[-1]
        return News(begins_anew, finished)

    def _enter(self, study: Study) -> bool:
        """Whether the study, or what it holds, is not what was looked at before."""
        # A storage that writes batches in transactions counts those that were undone.
        rollbacks = getattr(study._storage, "rollbacks", 0)
        known = None if self._storage is None else self._storage()
        if (
            known is study._storage
            and self._study_id == study._study_id
            and self._rollbacks == rollbacks
        ):
            return False
        self._storage = weakref.ref(study._storage)
        self._study_id = study._study_id
        self._rollbacks = rollbacks
        return True

    def _continues_in(self, trials: Sequence[FrozenTrial]) -> bool:
        # Shorter: read by another thread before the last look, or another study that got the key
        # of a deleted one.
        if len(trials) < self._n_seen:
            return False
        known = self._newest_finished
        return known is None or trials[known.number] is known or trials[known.number] == known
