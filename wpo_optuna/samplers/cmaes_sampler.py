"""Optuna's CMA-ES, reading each trial once and storing each state once."""

from __future__ import annotations

import pickle
import threading
from bisect import insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import cmaes
import numpy as np
from optuna._transform import _SearchSpaceTransform
from optuna.samplers import CmaEsSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.samplers.shared_space import SharedSearchSpace
from wpo_optuna.samplers.trial_feed import TrialFeed

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    Optimizer: TypeAlias = cmaes.CMA | cmaes.SepCMA | cmaes.CMAwM


class CachingCmaEsSampler(CmaEsSampler):
    """Proposes exactly what :class:`optuna.samplers.CmaEsSampler` proposes, for less.

    Optuna's sampler scans all trials at every ask, and as long as no trial of a generation is
    completed, every ask repeats the update of the distribution that precedes the generation and
    stores the updated optimizer once more. Here an ask reads only the trials that are new, the
    update is made once and stored in the first trial that needs it; the other trials name that
    trial in a system attribute of a few bytes.

    What is stored is the state of Optuna's sampler in Optuna's attributes, so that the one can go
    on where the other stopped.

    Pruned trials, if ``consider_pruned_trials`` is set, and studies with a Hyperband pruner, which
    shows samplers a part of the trials at a time, are left to Optuna's implementation.

    Args:
        options: see :class:`optuna.samplers.CmaEsSampler`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._search_space = SharedSearchSpace()
        self._start_empty()

    def _start_empty(self) -> None:
        # Kept for work in memory alone: a thread that holds a storage's transaction may want it.
        self._lock = threading.Lock()
        self._history = _History(self._attr_prefix)
        self._restored: _Restored | None = None
        self._updated: _Updated | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_lock", "_history", "_restored", "_updated"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_empty()

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See :meth:`optuna.samplers.CmaEsSampler.sample_relative`."""
        self._raise_error_if_multi_objective(study)
        if self._consider_pruned_trials or type(study) is not Study or not search_space:
            return super().sample_relative(study, trial, search_space)
        trials = study._get_trials(deepcopy=False, use_cache=True)
        direction = study.direction
        with self._lock:
            if not self._take_in(study, trials):
                proposal = None
            elif self._history.n_complete < self._n_startup_trials:
                return {}
            else:
                proposal = self._propose(trials, trial, search_space, direction)
        if proposal is None:
            return super().sample_relative(study, trial, search_space)
        self._store(study, trial, proposal)
        return proposal.params

    def _take_in(self, study: Study, trials: list[FrozenTrial]) -> bool:
        is_known = self._history.take_in(study, trials)
        if self._history.began_anew:
            self._restored = self._updated = None
        return is_known

    def _propose(
        self,
        trials: Sequence[FrozenTrial],
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
        direction: StudyDirection,
    ) -> _Proposal | None:
        """What Optuna's sampler would do; None if that is for Optuna's sampler to say."""
        trans = _SearchSpaceTransform(
            search_space, transform_step=not self._with_margin, transform_0_1=True
        )
        restored = self._restore(trials)
        if restored is None:
            # Also where the update is known already: it takes a random number.
            optimizer = self._init_optimizer(trans, direction)
        else:
            optimizer = restored.optimizer
        if optimizer.dim != len(trans.bounds):
            return None
        attributes: dict[str, Any] = {}
        updated: _Updated | None = None
        solutions = self._history.solutions[optimizer.generation][: optimizer.population_size]
        if len(solutions) == optimizer.population_size:
            source = None if restored is None else restored.holder
            basis = _Basis(source, tuple(solutions), search_space)
            if self._updated is None or self._updated.basis != basis:
                # The restored state stays as it is: the solutions may change with time.
                told = optimizer if restored is None else pickle.loads(restored.state)
                told.tell([_solution(trials[n], told, trans, direction) for n in solutions])
                stored = self._split_optimizer_str(pickle.dumps(told).hex())
                self._updated = _Updated(basis, told, stored)
            updated = self._updated
            optimizer = updated.optimizer
            attributes = self._attributes_of(updated, trial)
        optimizer._rng.seed(self._cma_rng.rng.randint(1, 2**16) + trial.number)
        point = optimizer.ask()
        if isinstance(optimizer, cmaes.CMAwM):
            point, x_for_tell = point
            attributes["x_for_tell"] = x_for_tell.tolist()
        attributes[self._attr_key_generation] = optimizer.generation
        return _Proposal(trans.untransform(point), attributes, updated)

    def _attributes_of(self, updated: _Updated, trial: FrozenTrial) -> dict[str, Any]:
        """What a trial that needs an update keeps of it."""
        # A trial that repeats a failed one has got its attributes: they must not outlive.
        is_repeated = self._history.optimizer_key in trial.system_attrs
        if updated.holder in (None, trial.number) or is_repeated:
            return dict(updated.stored)
        return {self._history.holder_key: updated.holder}

    def _restore(self, trials: Sequence[FrozenTrial]) -> _Restored | None:
        for number in reversed(self._history.carriers):
            holder = self._history.holder_of(trials[number])
            if self._restored is not None and self._restored.holder == holder:
                return self._restored
            # In a copied study the holder may be missing, or be another trial.
            attributes = trials[holder].system_attrs if holder < len(trials) else {}
            stored = {
                key: value
                for key, value in attributes.items()
                if key.startswith(self._attr_key_optimizer)
            }
            if stored:
                state = bytes.fromhex(self._concat_optimizer_attrs(stored))
                self._restored = _Restored(holder, state, pickle.loads(state))
                return self._restored
        return None

    def _store(self, study: Study, trial: FrozenTrial, proposal: _Proposal) -> None:
        try:
            for key, value in proposal.attributes.items():
                study._storage.set_trial_system_attr(trial._trial_id, key, value)
        except BaseException:
            with self._lock:
                # No other trial may rely on a state that was perhaps not stored.
                self._updated = None
            raise
        with self._lock:
            updated = self._updated
            # Only now may trials of other threads name this one: a part of a state is no state.
            if updated is not None and updated is proposal.updated and updated.holder is None:
                self._updated = replace(updated, holder=trial.number)


@dataclass(frozen=True)
class _Proposal:
    """A point, the system attributes to be kept with it, and the update it was sampled after."""

    params: dict[str, Any]
    attributes: dict[str, Any]
    updated: _Updated | None


@dataclass(frozen=True)
class _Restored:
    """An optimizer as a trial holds it, in bytes and ready to be asked."""

    holder: int
    state: bytes
    optimizer: Optimizer


@dataclass(frozen=True)
class _Basis:
    """What an update follows from.

    Attributes:
        source: number of the trial that holds the optimizer before; None for a new one.
        solutions: numbers of the trials that it is told.
        search_space: the parameters.
    """

    source: int | None
    solutions: tuple[int, ...]
    search_space: dict[str, BaseDistribution]


@dataclass(frozen=True)
class _Updated:
    """An optimizer after an update, as it is before it is stored and restored.

    (Storing rounds it: of a covariance matrix that is not quite symmetric, half is kept.)

    Attributes:
        basis: what it follows from.
        optimizer: ready to be asked.
        stored: the system attributes that hold it.
        holder: number of the trial that was the first to have stored it; None as long as there is
            none.
    """

    basis: _Basis
    optimizer: Optimizer
    stored: dict[str, str]
    holder: int | None = None


class _History:
    """What CMA-ES needs of the completed trials.

    Attributes:
        n_complete: how many there are.
        carriers: numbers of those that hold an optimizer or name the trial that does, ascending.
        solutions: numbers of those of each generation, ascending.
        optimizer_key: the first of the system attributes that hold an optimizer.
        holder_key: the system attribute that names the trial that holds it instead.
        began_anew: whether the last look made void what was known before.
    """

    def __init__(self, attr_prefix: str) -> None:
        self.optimizer_key = f"{attr_prefix}optimizer:0"
        self.holder_key = f"wpo:{attr_prefix}holder"
        self._generation_key = f"{attr_prefix}generation"
        self._feed = TrialFeed()
        self._start_empty()

    def _start_empty(self) -> None:
        self.n_complete = 0
        self.carriers: list[int] = []
        self.solutions: defaultdict[int, list[int]] = defaultdict(list)

    def take_in(self, study: Study, trials: list[FrozenTrial]) -> bool:
        """Notes what has finished since; False if the trials cannot be followed."""
        news = self._feed.look(study, trials)
        self.began_anew = news is None or news.begins_anew
        if self.began_anew:
            self._start_empty()
        if news is None:
            return False
        for trial in news.finished:
            if trial.state == TrialState.COMPLETE:
                self._note(trial)
        return True

    def _note(self, trial: FrozenTrial) -> None:
        self.n_complete += 1
        attributes = trial.system_attrs
        if self.optimizer_key in attributes or self.holder_key in attributes:
            insort(self.carriers, trial.number)
        if self._generation_key in attributes:
            insort(self.solutions[attributes[self._generation_key]], trial.number)

    def holder_of(self, carrier: FrozenTrial) -> int:
        """The number of the trial that holds the optimizer which a carrier was sampled from."""
        if self.optimizer_key in carrier.system_attrs:
            return carrier.number
        return carrier.system_attrs[self.holder_key]


def _solution(
    trial: FrozenTrial,
    optimizer: Optimizer,
    trans: _SearchSpaceTransform,
    direction: StudyDirection,
) -> tuple[np.ndarray, float]:
    """A completed trial as an optimizer wants to be told it."""
    assert trial.value is not None
    if isinstance(optimizer, cmaes.CMAwM):
        x = np.array(trial.system_attrs["x_for_tell"])
    else:
        x = trans.transform(trial.params)
    return x, trial.value if direction == StudyDirection.MINIMIZE else -trial.value
