"""What a process knows of a study's trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable

from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.sqlite.records import KnownDistributions, OpenTrial

_FINISHED = frozenset(state for state in TrialState if state.is_finished())


class StudyCache:
    """All trials of a study, as read or written by this process.

    Finished trials never change and are handed out as they are; open ones are kept apart, and
    copied when somebody asks.

    Args:
        study_id: The study's key in the database.
        directions: One for each objective.
    """

    def __init__(self, study_id: int, directions: list[StudyDirection]) -> None:
        self.study_id = study_id
        self.directions = directions
        #: The version of the database (see ``Database.version``) that this agrees with.
        self.version: tuple[int, int] | None = None
        self.open: dict[int, OpenTrial] = {}
        self.positions: dict[int, int] = {}
        self.distributions = KnownDistributions()
        self.newest_finished: FrozenTrial | None = None
        self._trial_ids: list[int] = []
        self._trials: list[FrozenTrial] = []
        self._outdated: set[int] = set()
        self._counts: Counter[TrialState] = Counter()
        self._best: FrozenTrial | None = None
        self._shared: dict[tuple, dict[str, BaseDistribution]] = {}

    # Reading

    @property
    def size(self) -> int:
        """The number of trials, which is the number of the next one."""
        return len(self._trials)

    @property
    def newest_trial_id(self) -> int:
        """The largest id among the study's trials, 0 if it has none."""
        return self._trial_ids[-1] if self._trial_ids else 0

    def trial(self, trial_id: int) -> FrozenTrial:
        """One trial; an open one as a fresh copy, which the caller may change."""
        open_trial = self.open.get(trial_id)
        if open_trial is not None:
            return open_trial.copied()
        return self._trials[self.positions[trial_id]]

    def shared(self, trial_ids: Iterable[int], first_number: int) -> list[FrozenTrial]:
        """These trials and all from a number on, open ones as copies shared until they change.

        Raises:
            KeyError: If one of the ids is not of this study.
        """
        positions = [self.positions[trial_id] for trial_id in trial_ids]
        positions += range(first_number, len(self._trials))
        for trial_id in self._outdated & {self._trial_ids[position] for position in positions}:
            self._current(self.open[trial_id])
        return [self._trials[position] for position in positions]

    def trial_id_of(self, number: int) -> int:
        """The id of the trial with this number.

        Raises:
            KeyError: If there is none.
        """
        if not 0 <= number < len(self._trial_ids):
            raise KeyError(f"No trial with number {number} exists.")
        return self._trial_ids[number]

    def trials(self, states: Container[TrialState] | None) -> list[FrozenTrial]:
        """The trials in any of these states, or all, in order of their numbers."""
        wanted = {state for state in TrialState if states is None or state in states}
        # Study.ask looks for waiting trials each time, and seldom are there any.
        if not any(self._counts[state] for state in wanted):
            return []
        if not wanted & _FINISHED:
            chosen = [trial for trial in self.open.values() if trial.state in wanted]
            chosen.sort(key=lambda trial: trial.position)
            return [self._current(trial) for trial in chosen]
        for trial_id in list(self._outdated):
            self._current(self.open[trial_id])
        if len(wanted) == len(TrialState):
            return self._trials.copy()
        return [trial for trial in self._trials if trial.state in wanted]

    def count(self, states: Container[TrialState] | None) -> int:
        """The number of trials in any of these states, or of all."""
        return sum(
            count for state, count in self._counts.items() if states is None or state in states
        )

    @property
    def best(self) -> FrozenTrial | None:
        """The completed trial with the best first value; the earliest of equals."""
        return self._best

    def _current(self, trial: OpenTrial) -> FrozenTrial:
        if trial.trial_id in self._outdated:
            self._trials[trial.position] = trial.copied()
            self._outdated.discard(trial.trial_id)
        return self._trials[trial.position]

    # Changing

    def add(self, trial: OpenTrial) -> None:
        """Append a trial that is newer than all others, or replace an open one."""
        known = self.open.get(trial.trial_id)
        if known is not None:
            trial.position = known.position
            self._counts[known.state] -= 1
        else:
            trial.position = len(self._trials)
            self.positions[trial.trial_id] = trial.position
            self._trial_ids.append(trial.trial_id)
            self._trials.append(_NOT_COPIED_YET)
        self._counts[trial.state] += 1
        self.open[trial.trial_id] = trial
        self._outdated.add(trial.trial_id)
        for name, distribution in trial.distributions.items():
            self.distributions.note(name, distribution)
        if trial.state.is_finished():
            self._finish(trial)

    def touch(self, trial: OpenTrial) -> None:
        """Note that an open trial was changed."""
        self._outdated.add(trial.trial_id)

    def set_state(self, trial: OpenTrial, state: TrialState) -> None:
        """Move an open trial into another state."""
        self._counts[trial.state] -= 1
        self._counts[state] += 1
        trial.state = state
        self._outdated.add(trial.trial_id)
        if state.is_finished():
            self._finish(trial)

    def _finish(self, trial: OpenTrial) -> None:
        del self.open[trial.trial_id]
        self._outdated.discard(trial.trial_id)
        trial.distributions = self._shared_distributions(trial.distributions)
        finished = trial.handed_over()
        self._trials[trial.position] = finished
        self.newest_finished = finished
        if finished.state == TrialState.COMPLETE and self._is_better(finished):
            self._best = finished

    def _shared_distributions(
        self, distributions: dict[str, BaseDistribution]
    ) -> dict[str, BaseDistribution]:
        # A search space is the same in most trials: one dictionary for all of them saves a
        # kilobyte per trial of 20 parameters.
        key = (tuple(distributions), tuple(map(id, distributions.values())))
        return self._shared.setdefault(key, distributions)

    def _is_better(self, trial: FrozenTrial) -> bool:
        if not trial.values:
            return False
        if self._best is None:
            return True
        new, old = trial.values[0], self._best.values[0]
        if new == old:
            return trial.number < self._best.number
        return new > old if self.directions[0] == StudyDirection.MAXIMIZE else new < old


_NOT_COPIED_YET = OpenTrial(-1, -1, TrialState.RUNNING, None).copied()
