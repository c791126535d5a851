"""A study's mirror in memory: samplers work on it, and what they find is stored in batches.

The storage holds finished trials and is the only truth. The mirror holds the same trials in
Optuna's own in-memory storage, where proposing one costs little. Appending a batch to the storage
is one transaction, and the only place where processes that work on the same study meet: it drops
what another one has stored already and never exceeds the total. So no process waits for another or
has to know of it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import optuna
from optuna.samplers import BaseGASampler, CmaEsSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from wpo_optuna.loss.parallel import ParallelEngine
from wpo_optuna.samplers import DESampler, candidate_of
from wpo_optuna.storage import FinishedTrials
from wpo_optuna.study.attributes import PHASE, PHASE_INDEX, PHASE_TOTAL

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage

    from wpo_optuna.study.objective import Evaluation, HypercubeObjective

# The trials' user attributes that say what found them, and all that a search reads.
_ORIGIN = (PHASE, PHASE_TOTAL, PHASE_INDEX)
_READ = ("tnmse", *_ORIGIN)
# User attribute of a trial in memory: its number in the storage.
_NUMBER = "stored number"
# How many trials are read at once.
_PAGE = 1000


class Origin(NamedTuple):
    """What found a trial that no sampler proposed; no study has two trials of one origin.

    Attributes:
        phase: the kind of search.
        total: the total of trials that the study was to be brought to.
        number: its number among the trials of this search.
    """

    phase: str
    total: int
    number: int

    @classmethod
    def of(cls, trial: FrozenTrial) -> Origin | None:
        """A trial's origin; None if a sampler proposed it."""
        if PHASE not in trial.user_attrs:
            return None
        return cls(*(trial.user_attrs[name] for name in _ORIGIN))


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
        names: the coordinates' names in the study; None takes those of today.

    Attributes:
        study: the stored study.
        objective: as given.
        memory: the same trials in memory, with the sampler.
        n_complete: completed trials, those of other processes included as far as known.
        lowest: the lowest loss of these; infinite if there are none.
        on_stored: called with the trials that a batch added to the study, as they are stored.
    """

    def __init__(
        self,
        study: Study,
        storage: BaseStorage,
        objective: HypercubeObjective,
        sampler: BaseSampler | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.study = study
        self.objective = objective
        self._distributions = objective.problem.hypercube.distributions(names)
        self.on_stored: Callable[[Sequence[FrozenTrial]], object] = lambda trials: None
        self._storage, self._stored_id = storage, storage.get_study_id_from_name(study.study_name)
        self._memory_storage = InMemoryStorage()
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would tell of a new study
        self.memory = optuna.create_study(
            storage=self._memory_storage, sampler=sampler, study_name=study.study_name,
            directions=objective.directions,
        )  # fmt: skip
        optuna.logging.set_verbosity(verbosity)
        self._memory_id = self._memory_storage.get_study_id_from_name(study.study_name)
        self._sampler_state = storage.get_study_system_attrs(self._stored_id)
        for name, value in self._sampler_state.items():
            self._memory_storage.set_study_system_attr(self._memory_id, name, value)
        self._stored = FinishedTrials(study, _READ, identity_of)
        self.n_complete, self.lowest = 0, float("inf")
        with _without_garbage_collection():
            while trials := self._stored.read_new(_PAGE):
                self._add(trials)

    def completed(self) -> list[FrozenTrial]:
        """The completed trials of this hypercube, the lowest loss first; not to be changed."""
        trials = self.memory.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        # Those of other search spaces, added by hand, have no point in it.
        own = [t for t in trials if t.params.keys() == self._distributions.keys()]
        return sorted(own, key=lambda trial: (trial.values[0], trial.number))

    def number_of(self, trial: FrozenTrial) -> int:
        """The number in the storage of a completed trial."""
        return int(trial.user_attrs[_NUMBER])

    def trial(self, number: int) -> FrozenTrial:
        """The completed trial that has this number in the storage."""
        return next(trial for trial in self.completed() if self.number_of(trial) == number)

    def origins(self) -> set[Origin]:
        """The origins of all completed trials that no sampler proposed."""
        return {origin for t in self.completed() if (origin := Origin.of(t)) is not None}

    def sample_batch(self, n: int, total: int) -> None:
        """Evaluates points that the sampler proposes, and stores them as far as the total allows.

        Args:
            n: number of points, which are evaluated at once.
            total: of completed trials, which is not exceeded.
        """
        trials = [self.memory.ask(self._distributions) for _ in range(n)]
        in_memory = self.memory.get_trials(deepcopy=False)
        asked = [in_memory[trial.number] for trial in trials]
        for each in asked:
            each.distributions = self._distributions  # one dictionary for all trials
        evaluations = self.objective.evaluate([self.objective.point(t.params) for t in asked])
        finished = [self._finished(t.params, e) for t, e in zip(asked, evaluations, strict=True)]
        for before, after in zip(asked, finished, strict=True):
            after.system_attrs, after.datetime_start = before.system_attrs, before.datetime_start
        appended = self._stored.append(finished, total)
        stored = iter(appended.stored)
        for trial, evaluation, is_kept in zip(trials, evaluations, appended.kept, strict=True):
            # What another process was faster with comes back among its trials.
            if is_kept:
                trial.set_user_attr("tnmse", evaluation.tnmse)
                trial.set_user_attr(_NUMBER, next(stored).number)
                self.memory.tell(trial.number, evaluation.values)
                self.lowest = min(self.lowest, evaluation.loss)
            else:
                self.memory.tell(trial.number, state=TrialState.FAIL)
        self._add(appended.others)
        self._keep_sampler_state()
        self.n_complete = appended.n_complete
        self.on_stored(appended.stored)

    def record(
        self, x: NDArray[Any], tnmse: NDArray[Any], origins: Sequence[Origin], total: int
    ) -> None:
        """Stores points that were evaluated already, unless they are there.

        Args:
            x: points ``(n, d)``.
            tnmse: their TNMSE ``(n,)``.
            origins: what found them.
            total: of completed trials, which is not exceeded.
        """
        finished = []
        for point, evaluation, origin in zip(
            x.tolist(), self.objective.evaluate(x, tnmse=tnmse), origins, strict=True
        ):
            trial = self._finished(dict(zip(self._distributions, point, strict=True)), evaluation)
            trial.user_attrs |= zip(_ORIGIN, origin, strict=True)
            finished.append(trial)
        appended = self._stored.append(finished, total)
        self._add([*appended.others, *appended.stored])
        self.n_complete = appended.n_complete
        self.on_stored(appended.stored)

    def _finished(self, params: dict[str, Any], evaluation: Evaluation) -> FrozenTrial:
        trial = create_trial(
            values=evaluation.values,
            params=params,
            distributions=self._distributions,
            user_attrs=evaluation.attributes(),
        )
        trial.distributions = self._distributions  # likewise
        return trial

    def _add(self, trials: Sequence[FrozenTrial]) -> None:
        memory = self._memory_storage
        for trial in trials:
            trial_id = memory.create_new_trial(self._memory_id, template_trial=trial)
            read = {n: v for n, v in trial.user_attrs.items() if n in _READ}
            memory.get_trial(trial_id).user_attrs = read | {_NUMBER: trial.number}
            if trial.state == TrialState.COMPLETE:
                self.n_complete += 1
                self.lowest = min(self.lowest, trial.values[0])

    def _keep_sampler_state(self) -> None:
        """Stores what samplers keep with the study, such as where a sequence has got to."""
        if isinstance(self.memory.sampler, BaseGASampler):
            return  # it keeps the keys of trials, which are others in another mirror
        state = self._memory_storage.get_study_system_attrs(self._memory_id)
        if state != self._sampler_state:
            for name, value in state.items():
                self._storage.set_study_system_attr(self._stored_id, name, value)
            self._sampler_state = dict(state)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Keeps Python from looking through a million new objects again and again: none is garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def default_batch_size(mirror: Mirror) -> int:
    """How many trials to evaluate at once, if the user does not say.

    An engine's cost per trial falls with the batch until its arrays leave the cache. CMA-ES and
    TPE learn after each batch, so that theirs are small. aihwkit's tile gains nothing by a batch;
    the smaller it is, the less is evaluated twice where several workers share a study.
    """
    problem, engine = mirror.objective.problem, mirror.objective.engine
    if isinstance(mirror.memory.sampler, CmaEsSampler):
        # The population size of the algorithm: Hansen, "The CMA evolution strategy", 2016.
        return 4 + int(3 * np.log(problem.hypercube.dimension))
    if isinstance(mirror.memory.sampler, TPESampler):
        return 8
    if isinstance(mirror.memory.sampler, BaseGASampler):
        return mirror.memory.sampler.population_size or 1
    n_processes = engine.workers if isinstance(engine, ParallelEngine) else 1
    at_once = 4 * n_processes if n_processes > 1 else 1
    return {"expected": 256, "montecarlo": 64}.get(engine.name, at_once)


def sample(
    mirror: Mirror, *, total: int, batch_size: int, should_stop: Callable[[], bool] = lambda: False
) -> None:
    """Brings a study to a total number of completed trials.

    Args:
        mirror: the study, with its sampler.
        total: of completed trials, those of earlier runs and other processes included.
        batch_size: largest number of trials evaluated at once. Differential evolution's batches
            end with a generation, so that they hold the trials of a one-by-one loop.
        should_stop: asked before each batch.
    """
    while mirror.n_complete < total and not should_stop():
        sampler = mirror.memory.sampler
        n_possible = batch_size
        if isinstance(sampler, DESampler):
            n_possible = max(1, sampler.candidates_left(mirror.memory))
        elif mirror.n_complete == 0:
            n_possible = 1  # Optuna's samplers learn the search space from a completed trial
        mirror.sample_batch(min(n_possible, batch_size, total - mirror.n_complete), total)
