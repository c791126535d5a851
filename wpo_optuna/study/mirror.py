"""A study's mirror in memory: samplers work on it, and what they find is stored in batches.

The storage holds finished trials and is the only truth. The mirror holds the same trials in
Optuna's own in-memory storage, where proposing one costs little. Appending a batch to the storage
is one transaction, and the only place where processes that work on the same study meet: it drops
what another one has stored already and never exceeds the total. So no process waits for another or
has to know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from wpo_optuna.samplers import candidate_of
from wpo_optuna.storage import FinishedTrials
from wpo_optuna.study.attributes import PHASE, PHASE_INDEX, PHASE_TOTAL

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage

    from wpo_optuna.study.objective import Evaluation, HypercubeObjective

# The trials' user attributes that a search reads.
_READ = ("tnmse", PHASE, PHASE_TOTAL, PHASE_INDEX)
# User attribute of a trial in memory: its number in the storage.
_NUMBER = "stored number"

OnFinished = Callable[[Sequence[FrozenTrial]], None]


@dataclass(frozen=True)
class Origin:
    """What found a trial that no sampler proposed; no study has two trials of one origin.

    Attributes:
        phase: the kind of search.
        total: the total of trials that the study was to be brought to.
        index: number among the trials of this search.
    """

    phase: str
    total: int
    index: int

    def attributes(self) -> dict[str, Any]:
        """The trial's user attributes."""
        return {PHASE: self.phase, PHASE_TOTAL: self.total, PHASE_INDEX: self.index}

    @classmethod
    def of(cls, trial: FrozenTrial) -> Origin | None:
        """A trial's origin; None if a sampler proposed it."""
        values = trial.user_attrs
        if PHASE not in values:
            return None
        return cls(values[PHASE], values[PHASE_TOTAL], values[PHASE_INDEX])


def identity_of(trial: FrozenTrial) -> Hashable:
    """What makes a trial the same as another process's: its origin, its candidate, or its point."""
    return Origin.of(trial) or candidate_of(trial) or hash(tuple(trial.params.values()))


class Mirror:
    """A stored study in memory.

    Args:
        study: the stored study.
        storage: the storage it is in.
        objective: knows the parameters and evaluates points.
        sampler: proposes points; None where only found ones are recorded.

    Attributes:
        study: the stored study.
        objective: as given.
        memory: the same trials in memory, with the sampler.
        n_complete: completed trials, those of other processes included as far as known.
    """

    def __init__(
        self,
        study: Study,
        storage: BaseStorage,
        objective: HypercubeObjective,
        sampler: BaseSampler | None = None,
    ) -> None:
        self.study = study
        self.objective = objective
        self._storage, self._stored_id = storage, storage.get_study_id_from_name(study.study_name)
        self._memory_storage = InMemoryStorage()
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would tell of a new study
        self.memory = optuna.create_study(
            storage=self._memory_storage, sampler=sampler, study_name=study.study_name
        )
        optuna.logging.set_verbosity(verbosity)
        self._memory_id = self._memory_storage.get_study_id_from_name(study.study_name)
        self._sampler_state = storage.get_study_system_attrs(self._stored_id)
        for name, value in self._sampler_state.items():
            self._memory_storage.set_study_system_attr(self._memory_id, name, value)
        self._stored = FinishedTrials(study, _READ)
        self.n_complete = 0
        self._add(self._stored.read_new())

    def completed(self) -> list[FrozenTrial]:
        """The completed trials; not to be changed."""
        return self.memory.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def number_of(self, trial: FrozenTrial) -> int:
        """The number in the storage of a completed trial."""
        return int(trial.user_attrs[_NUMBER])

    def trial(self, number: int) -> FrozenTrial:
        """The completed trial that has this number in the storage."""
        return next(trial for trial in self.completed() if self.number_of(trial) == number)

    def origins(self) -> set[Origin]:
        """The origins of all completed trials that no sampler proposed."""
        return {origin for trial in self.completed() if (origin := Origin.of(trial)) is not None}

    def ask(self, n: int) -> list[Trial]:
        """Trials with proposed points."""
        return [self.memory.ask(self.objective.distributions) for _ in range(n)]

    def evaluate(self, trials: Sequence[Trial], total: int) -> list[FrozenTrial]:
        """Evaluates asked trials at once and stores them, as far as the total allows.

        Args:
            trials: from :meth:`ask`.
            total: of completed trials, which is not exceeded.

        Returns:
            those that were stored, as they are stored.
        """
        evaluations = self.objective.evaluate([self.objective.point(t.params) for t in trials])
        asked = self.memory.get_trials(deepcopy=False)
        finished = [
            self._finished(trial.params, evaluation, {}, asked[trial.number])
            for trial, evaluation in zip(trials, evaluations, strict=True)
        ]
        appended = self._stored.append(finished, total, identity_of)
        stored = iter(appended.stored)
        for trial, evaluation, kept in zip(trials, evaluations, appended.kept, strict=True):
            # What another process was faster with comes back among its trials.
            if kept:
                trial.set_user_attr("tnmse", evaluation.tnmse)
                trial.set_user_attr(_NUMBER, next(stored).number)
                self.memory.tell(trial.number, evaluation.loss)
            else:
                self.memory.tell(trial.number, state=TrialState.FAIL)
        self._add(appended.others)
        self.n_complete = appended.n_complete
        self._keep_sampler_state()
        return appended.stored

    def record(
        self,
        x: NDArray[Any],
        tnmse: NDArray[Any],
        origins: Sequence[Origin],
        total: int,
    ) -> list[FrozenTrial]:
        """Stores points that were evaluated already, unless they are there.

        Args:
            x: points ``(n, d)``.
            tnmse: their TNMSE ``(n,)``.
            origins: what found them.
            total: of completed trials, which is not exceeded.

        Returns:
            those that were stored, as they are stored.
        """
        if not len(x):
            return []
        evaluations = self.objective.evaluate(x, tnmse=tnmse)
        names = self.objective.distributions
        finished = [
            self._finished(dict(zip(names, point, strict=True)), evaluation, origin.attributes())
            for point, evaluation, origin in zip(x.tolist(), evaluations, origins, strict=True)
        ]
        appended = self._stored.append(finished, total, identity_of)
        self._add([*appended.others, *appended.stored])
        self.n_complete = appended.n_complete
        return appended.stored

    def _finished(
        self,
        params: dict[str, Any],
        evaluation: Evaluation,
        attributes: Mapping[str, Any],
        asked: FrozenTrial | None = None,
    ) -> FrozenTrial:
        distributions: dict[str, BaseDistribution] = self.objective.distributions
        trial = create_trial(
            value=evaluation.loss,
            params=params,
            distributions=distributions,
            user_attrs=evaluation.attributes() | dict(attributes),
            system_attrs=None if asked is None else asked.system_attrs,
        )
        if asked is not None:
            trial.datetime_start = asked.datetime_start
        return trial

    def _add(self, trials: Sequence[FrozenTrial]) -> None:
        for trial in map(copy, trials):  # those of storages in memory are the storage's own
            read = {n: v for n, v in trial.user_attrs.items() if n in _READ}
            trial.user_attrs = read | {_NUMBER: trial.number}
            self.memory.add_trial(trial)
            self.n_complete += trial.state == TrialState.COMPLETE

    def _keep_sampler_state(self) -> None:
        """Stores what samplers keep with the study, such as where a sequence has got to."""
        state = self._memory_storage.get_study_system_attrs(self._memory_id)
        if state != self._sampler_state:
            for name, value in state.items():
                self._storage.set_study_system_attr(self._stored_id, name, value)
            self._sampler_state = dict(state)
