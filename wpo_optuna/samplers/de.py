"""Differential evolution as an Optuna sampler."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from numpy.typing import ArrayLike, NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.samplers.candidate_claims import (
    CLAIM_KEY,
    FAILED_KEY,
    INDEPENDENT,
    Claim,
    Evolution,
)
from wpo_optuna.samplers.claim_desk import ClaimDesk, Search
from wpo_optuna.samplers.differential_evolution import (
    DifferentialEvolutionSettings,
    Initialisation,
    Strategy,
)
from wpo_optuna.samplers.evolution_replay import (
    EvolutionReplay,
    IndependentDraws,
    SearchSpace,
    evolvable,
)
from wpo_optuna.samplers.sampler_definition import (
    SamplerDefinition,
    check_options,
    digest,
    digest_of_space,
)

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Population:
    """The members of an evolution after its last finished generation.

    Attributes:
        generation: number of finished generations.
        params: the members' parameters, the best one first.
        values: their objective values ``(S,)``; not finite before the first generation is
            finished.
    """

    generation: int
    params: tuple[dict[str, Any], ...]
    values: NDArray[np.float64]


class DESampler(BaseSampler):
    """A sampler that runs scipy's differential evolution.

    Differential evolution keeps a population of points. In every generation each member gets a
    rival, made by adding differences of other members to a good point (mutation) and exchanging
    coordinates with the member (crossover); the better of the two stays. It needs no gradients,
    is hardly misled by local minima, and evaluates a whole generation independently.

    With the same settings and bounds the sampler proposes exactly the points of
    ``scipy.optimize.differential_evolution(..., rng=seed, updating="deferred", polish=False)``, in
    the same order. Parameters are evolved as floating-point numbers: logarithmic ones in their
    logarithm, integers and steps between half a step below their lowest and half a step above
    their highest value, rounded for the objective alone.

    .. note::
        The search space is ``search_space`` if given, and the first trial is then the first
        candidate. Otherwise it is what all completed trials have in common, sorted by name, and
        trials are random until one is completed: :meth:`Study.ask` does not show its
        ``fixed_distributions`` to samplers. Categorical parameters, and those that some trials
        lack or suggest from another range, are sampled by ``independent_sampler``. Whenever the
        common space shrinks, a new evolution begins in what is left of it.

    .. note::
        **The state is in the trials.** Each trial keeps in a system attribute which candidate it
        evaluates, and a sampler replays the evolution from the completed trials. Another process
        with another sampler object of the same settings goes on where the first one stopped or
        died, and the completed trials are those of an uninterrupted run. A sampler whose settings
        differ from those of the study's trials is refused; ``seed=None`` takes over the study's
        seed, and ``tol``, ``atol`` and ``stale_after`` may differ. Trials without a claim, such as
        enqueued ones or those of other samplers, are ignored.

    .. note::
        **Several processes and threads** may work on one study, with equal settings. No
        candidate is evaluated twice and none is left out. The next generation begins when the
        last candidate of the present one is finished; until then whoever asks waits. If a process
        dies, its trials are failed and their candidates are evaluated again: at once on the same
        host, and on other hosts when Optuna's heartbeat says so or, without heartbeat, after
        ``stale_after`` seconds. So the process that asks has to live until the trial is told.

        Asking never blocks where the generation waits for trials that were asked outside of
        ``Study.optimize`` by the same process: that trial is sampled independently, and takes no
        part in the evolution. A loop that asks several trials before it tells them can avoid this
        by asking no more than :meth:`candidates_left`, inside the same transaction if the storage
        has any.

    .. note::
        **Trials without a value.** A candidate whose trial failed is evaluated again, and counts
        as infinitely bad after ``max_attempts`` failures that were told (NaN is one of them);
        trials that lost their process are not counted. A pruned trial counts with the value that
        Optuna gives it, its last report, and as infinitely bad if there is none. Infinite values
        are allowed. (Where all members are infinite, scipy evaluates the same population once
        more; here the evolution goes on.)

    Sources: R. Storn and K. Price, Journal of Global Optimization 11, 1997; scipy's
    ``differential_evolution``. Only studies with one objective are supported.

    Args:
        seed: seed of the random numbers, scipy's ``rng``. None takes over the seed of the study's
            trials, or a random one if there are none.
        strategy: how rivals are made: ``"best1bin"``, ``"rand1exp"``, ... (see
            :data:`~wpo_optuna.samplers.differential_evolution.STRATEGIES`), or a callable as
            scipy takes it, ``strategy(candidate, population, rng)``.
        popsize: the population has ``popsize`` times d members for d parameters, at least five.
        init: ``"latinhypercube"``, ``"sobol"`` (population rounded up to a power of two),
            ``"halton"``, ``"random"``, an array ``(S, d)`` of points in units of the parameters,
            in the order of the search space, or a callable ``init(bounds, rng)`` that returns one
            for bounds ``(d, 2)``.
        mutation: weight of the differences, in [0, 2); a pair is a range from which each
            generation draws its own weight.
        recombination: probability of taking a coordinate from the mutated point, in [0, 1].
        tol: relative tolerance of :meth:`converged`.
        atol: absolute tolerance of :meth:`converged`.
        search_space: the parameters to be evolved, in scipy's order of coordinates. None finds
            them out from the completed trials.
        max_attempts: how often a candidate is evaluated before its failures count.
        stale_after: how long, in seconds, a trial may run on a host about which nothing can be
            known (another one without heartbeat, or another container) before it is failed.
        independent_sampler: samples what is not evolved. None draws at random, seeded by ``seed``
            and the candidate, so that a resumed study repeats these values too.
        warn_independent_sampling: whether to warn, once for each parameter, that it is sampled
            independently.

    Raises:
        InvalidArgument: an argument cannot be used. Sampling raises it too, if the study was
            begun with other settings.

    Example:
        .. testcode::

            import optuna
            from wpo_optuna import DESampler


            def objective(trial):
                x = trial.suggest_float("x", -5, 5)
                y = trial.suggest_float("y", -5, 5)
                return x**2 + y**2


            study = optuna.create_study(sampler=DESampler(seed=1))
            study.optimize(objective, n_trials=500)
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        strategy: str | Strategy = "best1bin",
        popsize: int = 15,
        init: str | Initialisation | ArrayLike = "latinhypercube",
        mutation: float | tuple[float, float] = (0.5, 1.0),
        recombination: float = 0.7,
        tol: float = 0.01,
        atol: float = 0.0,
        search_space: Mapping[str, BaseDistribution] | None = None,
        max_attempts: int = 3,
        stale_after: float = 3600.0,
        independent_sampler: BaseSampler | None = None,
        warn_independent_sampling: bool = True,
    ) -> None:
        self._settings = DifferentialEvolutionSettings(
            strategy, popsize, init, mutation, recombination
        )
        check_options(seed, tol, atol, max_attempts, stale_after, search_space)
        self._seed = None if seed is None else int(seed)
        self._own_seed = int(np.random.SeedSequence().generate_state(1)[0])
        self._tol = tol
        self._atol = atol
        self._search_space = None if search_space is None else dict(search_space)
        self._max_attempts = max_attempts
        self._stale_after = stale_after
        self._independent_sampler = independent_sampler
        self._warn_independent_sampling = warn_independent_sampling
        self._definition = SamplerDefinition(
            self._settings.describe()
            | {
                "max_attempts": max_attempts,
                "search_space": digest_of_space(search_space) if search_space else "inferred",
            }
        )
        self._start_empty()

    def _start_empty(self) -> None:
        self._desks: weakref.WeakKeyDictionary[BaseStorage, dict[int, ClaimDesk]]
        self._desks = weakref.WeakKeyDictionary()
        self._desks_lock = threading.Lock()
        self._process = os.getpid()
        self._warned_of: set[str] = set()
        self._digested: tuple[SearchSpace, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_desks", "_desks_lock", "_process", "_warned_of", "_digested"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_empty()

    def reseed_rng(self) -> None:
        """Reseeds the independent sampler.

        The evolution keeps its seed: all threads and processes of a study share one evolution.
        """
        if self._independent_sampler is not None:
            self._independent_sampler.reseed_rng()

    # Sampling

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The parameters that are evolved."""
        self._raise_error_if_multi_objective(study)
        if self._search_space is not None:
            return evolvable(self._search_space)
        desk = self._desk(study)
        desk.expect(trial)
        desk.refresh(study, in_full=False)
        return self._space(desk)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Claims a candidate for the trial and returns its parameters."""
        self._raise_error_if_multi_objective(study)
        space = evolvable(search_space)
        params = {} if _is_predetermined(trial, space) else self._claim(study, trial, space)
        for name, distribution in search_space.items():
            if name not in params:
                params[name] = self._sample_independent(study, trial, name, distribution)
        return params

    def _claim(self, study: Study, trial: FrozenTrial, space: SearchSpace) -> dict[str, Any]:
        desk = self._desk(study)
        desk.expect(trial)
        desk.refresh(study, in_full=False)
        seed = self._checked_seed(study, desk)
        params = desk.claim(study, trial, self._search(seed, space)) if space else None
        if params is None:
            params = desk.claim(study, trial, self._independent_draws(seed))
        return params or {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Samples a parameter that is not evolved."""
        self._raise_error_if_multi_objective(study)
        self._warn_of(study, trial, param_name)
        return self._sample_independent(study, trial, param_name, param_distribution)

    def _sample_independent(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        if self._independent_sampler is not None:
            return self._independent_sampler.sample_independent(study, trial, name, distribution)
        desk = self._desk(study)
        with desk.lock:
            claim = desk.book.claim_of(trial)
            seed = self._seed_in_force(desk) if claim is None else claim.candidate.evolution.seed
        sampler = RandomSampler(seed=int(digest([seed, _place(trial, claim), name])[:8], 16))
        return sampler.sample_independent(study, trial, name, distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Passes on to the independent sampler."""
        if self._independent_sampler is not None:
            self._independent_sampler.before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Marks a failure that was told, and passes on to the independent sampler."""
        if CLAIM_KEY in trial.system_attrs:
            self._desk(study).note_told(trial)
            if state == TrialState.FAIL:
                study._storage.set_trial_system_attr(trial._trial_id, FAILED_KEY, True)
        if self._independent_sampler is not None:
            self._independent_sampler.after_trial(study, trial, state, values)

    # The evolution

    def candidates_left(self, study: Study) -> int:
        """How many candidates of the present generation nobody evaluates yet.

        0 means that others are still being evaluated. To be sure of so many candidates, ask for
        them in the same transaction; a storage without transactions may give some to others.
        While the search space is unknown, 1: one completed trial will tell it.

        Raises:
            InvalidArgument: the study was begun with other settings.
        """
        desk, search = self._look(study)
        if search is None:
            return 1
        with desk.lock:
            return sum(1 for _ in desk.source(search).free(desk.book))

    def generation(self, study: Study) -> int:
        """The generation whose candidates are being evaluated; 0 is the initial population.

        Raises:
            InvalidArgument: the study was begun with other settings.
        """
        desk, search = self._look(study)
        if search is None:
            return 0
        with desk.lock:
            return desk.source(search).generation

    def population(self, study: Study) -> Population | None:
        """The population after the last finished generation; None while the space is unknown.

        Raises:
            InvalidArgument: the study was begun with other settings.
        """
        desk, search = self._look(study)
        if search is None:
            return None
        sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
        with desk.lock:
            replay = desk.source(search)
            assert isinstance(replay, EvolutionReplay)
            values = sign * replay.algorithm.energies
            return Population(replay.generation, tuple(replay.population()), values)

    def converged(self, study: Study) -> bool:
        """Whether the values of the population agree: std <= atol + tol |mean|.

        As in scipy, the population after the last finished generation counts, never the initial
        one, and never one with an infinite value.

        Raises:
            InvalidArgument: the study was begun with other settings.
        """
        desk, search = self._look(study)
        if search is None:
            return False
        with desk.lock:
            replay = desk.source(search)
            assert isinstance(replay, EvolutionReplay)
            return replay.algorithm.converged(self._tol, self._atol)

    def stop_when_converged(self, study: Study, trial: FrozenTrial) -> None:
        """A callback for ``Study.optimize`` that stops it once :meth:`converged` says so."""
        if self.converged(study):
            study.stop()

    def _look(self, study: Study) -> tuple[ClaimDesk, Search | None]:
        self._raise_error_if_multi_objective(study)
        desk = self._desk(study)
        desk.refresh(study, in_full=True)
        seed = self._checked_seed(study, desk)
        space = self._space(desk)
        return desk, self._search(seed, space) if space else None

    # What is searched

    def _desk(self, study: Study) -> ClaimDesk:
        if self._process != os.getpid():
            # A forked child: what its parent holds is held by another process now.
            self._start_empty()
        with self._desks_lock:
            desks = self._desks.setdefault(study._storage, {})
            desk = desks.get(study._study_id)
            if desk is None or desk.direction != study.direction:
                desk = ClaimDesk(study.direction, self._max_attempts, self._stale_after)
                desks[study._study_id] = desk
            return desk

    def _space(self, desk: ClaimDesk) -> SearchSpace:
        if self._search_space is not None:
            return evolvable(self._search_space)
        with desk.lock:
            return evolvable(desk.book.space or {})

    def _search(self, seed: int, space: SearchSpace) -> Search:
        evolution = Evolution(seed, self._definition.digest, self._digest_of(space))
        return Search(
            evolution,
            lambda: EvolutionReplay(evolution, space, self._settings, self._max_attempts),
            self._definition.values,
        )

    def _digest_of(self, space: SearchSpace) -> str:
        known = self._digested
        if known is None or not _are_identical(known[0], space):
            known = self._digested = (space, digest_of_space(space))
        return known[1]

    def _independent_draws(self, seed: int) -> Search:
        evolution = Evolution(seed, self._definition.digest, space="")
        return Search(
            evolution,
            lambda: IndependentDraws(evolution, self._max_attempts),
            self._definition.values,
        )

    def _checked_seed(self, study: Study, desk: ClaimDesk) -> int:
        with desk.lock:
            for first in desk.book.firsts():
                stored = first.evolution
                if stored.settings != self._definition.digest or self._seed not in (
                    None,
                    stored.seed,
                ):
                    raise InvalidArgument(
                        self._definition.difference(
                            study.study_name, self._seed, stored.seed, first.definition
                        )
                    )
            return self._seed_in_force(desk)

    def _seed_in_force(self, desk: ClaimDesk) -> int:
        if self._seed is not None:
            return self._seed
        firsts = desk.book.firsts()
        return firsts[0].evolution.seed if firsts else self._own_seed

    def _warn_of(self, study: Study, trial: FrozenTrial, name: str) -> None:
        if not self._warn_independent_sampling or name in self._warned_of:
            return
        desk = self._desk(study)
        with desk.lock:
            claim = desk.book.claim_of(trial)
        if claim is None or claim.candidate.generation == INDEPENDENT:
            return
        self._warned_of.add(name)
        _logger.warning(
            f"The parameter {name!r} is sampled independently, beginning with trial "
            f"{trial.number}, and takes no part in the differential evolution, which knows "
            "numerical parameters that every trial suggests from the same range."
        )


def _is_predetermined(trial: FrozenTrial, space: SearchSpace) -> bool:
    """Whether parameters of a trial were set by its creator: it cannot evaluate a candidate."""
    if Claim.of(trial) is not None:
        # It evaluates one already, in another process perhaps, which handed it on half-way.
        return False
    return "fixed_params" in trial.system_attrs or not space.keys().isdisjoint(trial.params)


def _are_identical(one: SearchSpace, other: SearchSpace) -> bool:
    """Whether two search spaces hold the same objects in the same order."""
    return list(one) == list(other) and all(one[name] is other[name] for name in one)


def _place(trial: FrozenTrial, claim: Claim | None) -> str:
    """What a trial's independent draws depend on, apart from the seed and the parameter."""
    if claim is None:
        return f"trial {trial.number}"
    candidate = claim.candidate
    return f"candidate {candidate.generation} {candidate.index} {candidate.evolution.space}"
