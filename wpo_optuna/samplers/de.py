"""Differential evolution as an Optuna sampler."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import secrets
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from optuna.distributions import (
    BaseDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.samplers.differential_evolution import (
    DifferentialEvolution,
    DifferentialEvolutionSettings,
    FloatArray,
    Initialisation,
    Strategy,
    is_integer,
    is_number,
)

if TYPE_CHECKING:
    from optuna.study import Study

_logger = logging.getLogger(__name__)

# System attribute of a trial: the candidate that it evaluates.
CANDIDATE_KEY = "de:candidate"

_Numerical = FloatDistribution | IntDistribution
_Space = dict[str, _Numerical]


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
    values: FloatArray


@dataclass(frozen=True)
class _Claim:
    """Which candidate a trial evaluates; ``settings`` and ``space`` are digests."""

    seed: int
    settings: str
    space: str
    generation: int
    index: int

    @classmethod
    def of(cls, trial: FrozenTrial) -> _Claim | None:
        stored = trial.system_attrs.get(CANDIDATE_KEY)
        return stored and cls(**{name: stored[name] for name in cls.__dataclass_fields__})


def candidate_of(trial: FrozenTrial) -> Hashable:
    """What identifies the candidate of differential evolution that a trial evaluates.

    Args:
        trial: any trial.

    Returns:
        a tuple that is equal for trials of the same candidate; None if the trial evaluates none.
    """
    claim = _Claim.of(trial)
    return claim and tuple(asdict(claim).values())


class DESampler(BaseSampler):
    """A sampler that runs scipy's differential evolution.

    Differential evolution keeps a population of points. In every generation each member gets a
    rival, made by adding differences of other members to a good point (mutation) and exchanging
    coordinates with the member (crossover); the better of the two stays.

    With the same settings and bounds the sampler proposes exactly the points of
    ``scipy.optimize.differential_evolution(..., rng=seed, updating="deferred", polish=False)``, in
    the same order. Parameters are evolved as floating-point numbers: logarithmic ones in their
    logarithm, integers and steps between half a step below their lowest and half a step above
    their highest value, rounded for the objective alone.

    .. note::
        The search space is ``search_space`` if given, and the first trial is then the first
        candidate. Otherwise it is what all completed trials have in common, sorted by name, and
        trials are random until one is completed. Categorical parameters, and those that some
        trials lack or suggest from another range, are sampled by ``independent_sampler``.
        Whenever the common space shrinks, a new evolution begins in what is left of it.

    .. note::
        **The state is in the trials.** Each says in a system attribute which candidate it
        evaluates, and a sampler replays the evolution from the finished ones. Another process goes
        on where the first one stopped or died, and the completed trials are those of an
        uninterrupted run. Settings other than those of the study's trials are refused, but for
        ``tol`` and ``atol``. Trials that evaluate no candidate, such as enqueued ones, are ignored.

    .. note::
        **Several processes and threads** may work on one study, with equal settings. A sampler
        that notices others takes free candidates, which nobody has finished or is evaluating, in
        random order; where there is none, it has one evaluated once more that is being evaluated,
        and the trial finished first counts. So nobody waits, and a process that dies leaves
        nothing behind.

    .. note::
        **Trials without a value.** A candidate whose trial failed is evaluated again, and counts
        as infinitely bad after ``max_attempts`` failures. A pruned trial counts with the value
        that Optuna gives it, its last report, and as infinitely bad if there is none. (Where all
        members are infinite, scipy evaluates the same population once more; here the evolution
        goes on.)

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
        independent_sampler: samples what is not evolved. None draws at random, seeded by ``seed``
            and the candidate, so that a resumed study repeats these values too.
        warn_independent_sampling: whether to warn, once for each parameter, that it is sampled
            independently.

    Raises:
        InvalidArgument: an argument cannot be used, or, when sampling, the study was begun with
            other settings.

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
        independent_sampler: BaseSampler | None = None,
        warn_independent_sampling: bool = True,
    ) -> None:
        self._settings = DifferentialEvolutionSettings(
            strategy, popsize, init, mutation, recombination
        )
        _check_options(seed, tol, atol, max_attempts, search_space)
        self._seed = None if seed is None else int(seed)
        self._own_seed = int(np.random.SeedSequence().generate_state(1)[0])
        self._tol, self._atol = tol, atol
        self._search_space = None if search_space is None else _evolvable(search_space)
        self._max_attempts = max_attempts
        self._independent_sampler = independent_sampler
        self._warn_independent_sampling = warn_independent_sampling
        self._definition = self._settings.describe() | {
            "max_attempts": max_attempts,
            "search_space": _digest_of_space(search_space) if search_space else "inferred",
        }
        self._digest = _digest(self._definition)
        self._digested: tuple[_Space, str] | None = None
        self._start_empty()

    def _start_empty(self) -> None:
        self._readings: weakref.WeakKeyDictionary[Study, _Reading] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()
        self._warned_of: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        unpicklable = ("_readings", "_lock", "_warned_of")
        return {name: value for name, value in self.__dict__.items() if name not in unpicklable}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_empty()

    # Sampling

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The parameters that are evolved."""
        with self._lock:
            return dict(self._space(self._read(study)))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Gives the trial a candidate and returns its parameters."""
        with self._lock:
            claim, params = self._claim(study, trial, _evolvable(search_space))
        if claim is not None:
            stored = asdict(claim)
            if claim.generation == 0:
                stored["definition"] = self._definition
            study._storage.set_trial_system_attr(trial._trial_id, CANDIDATE_KEY, stored)
        for name in search_space.keys() - params.keys():
            params[name] = self._draw(study, trial, claim, name, search_space[name])
        return params

    def _claim(
        self, study: Study, trial: FrozenTrial, space: _Space
    ) -> tuple[_Claim | None, dict[str, Any]]:
        """A candidate for a trial, and its parameters; none if it cannot evaluate any."""
        reading = self._read(study)
        evolution = self._evolution(reading, space)
        claim = _Claim.of(trial)
        if claim is None:
            reading.own[trial.number] = reading.n_finished + len(reading.own)
            if evolution.size == 0 or "fixed_params" in trial.system_attrs or trial.params:
                # Nothing to evolve, or its creator has set parameters.
                return None, {}
            claim = evolution.claim(evolution.choose(reading))
            evolution.present.running[trial.number] = claim.index
        elif evolution.size == 0 or claim != evolution.claim(claim.index):
            return None, {}
        return claim, evolution.params(claim.index)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Samples a parameter that is not evolved."""
        claim = _Claim.of(trial)
        if claim is not None:
            self._warn_of(trial, param_name)
        return self._draw(study, trial, claim, param_name, param_distribution)

    def _draw(
        self,
        study: Study,
        trial: FrozenTrial,
        claim: _Claim | None,
        name: str,
        distribution: BaseDistribution,
    ) -> Any:
        sampler = self._independent_sampler
        if sampler is None:
            with self._lock:
                reading = self._read(study)
            # A draw lost with its process is made again by the next one.
            draw = reading.own.get(trial.number, trial.number)
            place = [claim.generation, claim.index, claim.space] if claim else [draw]
            seed = claim.seed if claim else self._seed_for(reading)
            sampler = RandomSampler(seed=int(_digest([seed, *place, name])[:8], 16))
        return sampler.sample_independent(study, trial, name, distribution)

    def _warn_of(self, trial: FrozenTrial, name: str) -> None:
        if self._warn_independent_sampling and name not in self._warned_of:
            self._warned_of.add(name)
            _logger.warning(
                f"The parameter {name!r} is sampled independently, beginning with trial "
                f"{trial.number}, and takes no part in the differential evolution, which knows "
                "numerical parameters that every trial suggests from the same range."
            )

    def reseed_rng(self) -> None:
        """Reseeds the independent sampler; all threads of a study share one evolution."""
        if self._independent_sampler is not None:
            self._independent_sampler.reseed_rng()

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
        """Passes on to the independent sampler."""
        if self._independent_sampler is not None:
            self._independent_sampler.after_trial(study, trial, state, values)

    # The evolution. All of these raise InvalidArgument if the study has other settings.

    def candidates_left(self, study: Study) -> int:
        """How many candidates of the present generation nobody evaluates yet.

        While the search space is unknown, 1: one completed trial will tell it.
        """
        with self._lock:
            reading, evolution = self._look(study)
            return len(evolution.free(reading)) if evolution.size else 1

    def generation(self, study: Study) -> int:
        """The generation whose candidates are being evaluated; 0 is the initial population."""
        with self._lock:
            return self._look(study)[1].generation

    def population(self, study: Study) -> Population | None:
        """The population after the last finished generation; None while the space is unknown."""
        with self._lock:
            evolution = self._look(study)[1]
            return evolution.population() if evolution.size else None

    def converged(self, study: Study) -> bool:
        """Whether the values of the population agree: std <= atol + tol |mean|.

        As in scipy, the population after the last finished generation counts, never the initial
        one, and never one with an infinite value.
        """
        with self._lock:
            algorithm = self._look(study)[1].algorithm
            return algorithm is not None and algorithm.converged(self._tol, self._atol)

    def stop_when_converged(self, study: Study, trial: FrozenTrial) -> None:
        """A callback for ``Study.optimize`` that stops it once :meth:`converged` says so."""
        if self.converged(study):
            study.stop()

    def _look(self, study: Study) -> tuple[_Reading, _Evolution]:
        reading = self._read(study)
        return reading, self._evolution(reading, self._space(reading))

    def _read(self, study: Study) -> _Reading:
        reading = self._readings.get(study)
        if reading is None:
            if len(study.directions) > 1:
                raise ValueError("DESampler knows one objective, and this study has several.")
            reading = self._readings[study] = _Reading()
        reading.refresh(study, self._check)
        return reading

    def _space(self, reading: _Reading) -> _Space:
        return self._search_space or _evolvable(reading.common_space or {})

    def _evolution(self, reading: _Reading, space: _Space) -> _Evolution:
        known = self._digested
        if known is None or list(space.items()) != list(known[0].items()):
            known = self._digested = (space, _digest_of_space(space))
        seed = self._seed_for(reading)
        key = (seed, known[1])
        if key not in reading.evolutions:
            origin = _Claim(seed, self._digest, known[1], 0, 0)
            reading.evolutions[key] = _Evolution(
                origin, space, self._settings, self._max_attempts, reading.generations[key]
            )
        sign = -1 if reading.maximises else 1
        reading.evolutions[key].catch_up(sign)
        return reading.evolutions[key]

    def _seed_for(self, reading: _Reading) -> int:
        if self._seed is not None:
            return self._seed
        return reading.first.seed if reading.first else self._own_seed

    def _check(self, study: Study, claim: _Claim) -> None:
        """Refuses a study that was begun with other settings."""
        own: dict[str, Any] = dict(self._definition)
        theirs: dict[str, Any] = {}
        if self._seed is not None and claim.seed != self._seed:
            own, theirs = {"seed": self._seed}, {"seed": claim.seed}
        elif claim.settings == self._digest:
            return
        for trial in study.get_trials(deepcopy=False):
            stored = trial.system_attrs.get(CANDIDATE_KEY, {})
            if stored.get("settings") == claim.settings:
                theirs = stored.get("definition", {}) | theirs
        names = [name for name in own if name in theirs and own[name] != theirs[name]]
        here = ", ".join(f"{name} = {_shown(own[name])}" for name in names) or "sampler"
        there = ", ".join(f"{name} = {_shown(theirs[name])}" for name in names) or "other settings"
        raise InvalidArgument(
            f"{here}: the study {study.study_name!r} was begun with {there}, and its differential "
            "evolution can only be continued with the same; use these or start another study."
        )


@dataclass
class _Generation:
    """What a study's trials say of the candidates of one generation.

    Attributes:
        finished: for each index, the trial that was finished first.
        running: for each trial that is not finished, by number, its index.
        failures: for each index, how many trials failed.
    """

    finished: dict[int, FrozenTrial] = field(default_factory=dict)
    running: dict[int, int] = field(default_factory=dict)
    failures: Counter[int] = field(default_factory=Counter)

    def note(self, trial: FrozenTrial, index: int) -> None:
        if not trial.state.is_finished():
            self.running[trial.number] = index
            return
        self.running.pop(trial.number, None)
        if trial.state == TrialState.FAIL:
            self.failures[index] += 1
        elif index not in self.finished or _end(trial) < _end(self.finished[index]):
            self.finished[index] = trial


class _Reading:
    """What has been read of one study's trials.

    Attributes:
        maximises: whether large values are better.
        generations: what is known of each evolution (seed and space) and generation.
        evolutions: those that were needed, in the state of their last use.
        common_space: what all completed trials have in common; None before the first.
        first: the claim of the earliest trial.
        n_finished: how many trials are finished.
        own: trials that were sampled here and are not finished, by number, and how many were
            before them.
        leftovers: numbers of trials that were running at the first reading. As long as nobody
            else shows a sign of life, their process is taken for dead.
        has_company: whether others work on the study at the same time.
    """

    def __init__(self) -> None:
        self.maximises = False
        self.generations: defaultdict[tuple[int, str], defaultdict[int, _Generation]]
        self.generations = defaultdict(lambda: defaultdict(_Generation))
        self.evolutions: dict[tuple[int, str], _Evolution] = {}
        self.common_space: dict[str, BaseDistribution] | None = None
        self.first: _Claim | None = None
        self.n_finished = 0
        self.own: dict[int, int] = {}
        self.leftovers: set[int] = set()
        self.has_company = False
        self._first_number = -1
        self._n_read: int | None = None
        # Trials that are not finished, by their place, and whether their claim is noted.
        self._open: dict[int, bool] = {}

    def refresh(self, study: Study, check: Callable[[Study, _Claim], None]) -> None:
        """Reads what is new."""
        self.maximises = study.direction == StudyDirection.MAXIMIZE
        trials = study.get_trials(deepcopy=False)
        for place in [*self._open, *range(self._n_read or 0, len(trials))]:
            trial = trials[place]
            is_finished = trial.state.is_finished()
            if self._open.get(place) and not is_finished:
                continue
            claim = _Claim.of(trial)
            if claim is not None:
                check(study, claim)
                self._note(trial, claim)
            if is_finished:
                self._open.pop(place, None)
                self.own.pop(trial.number, None)
                self.n_finished += 1
                self._narrow_space(trial)
            else:
                self._open[place] = claim is not None
        self._n_read = len(trials)

    def _note(self, trial: FrozenTrial, claim: _Claim) -> None:
        self.generations[claim.seed, claim.space][claim.generation].note(trial, claim.index)
        if self.first is None or trial.number < self._first_number:
            self.first, self._first_number = claim, trial.number
        if self._n_read is None:
            if not trial.state.is_finished():
                self.leftovers.add(trial.number)
        elif trial.number not in self.own and trial.state != TrialState.FAIL:
            self.has_company = True
            self.leftovers.clear()

    def _narrow_space(self, trial: FrozenTrial) -> None:
        if trial.state != TrialState.COMPLETE or self.common_space == trial.distributions:
            return
        known = trial.distributions if self.common_space is None else self.common_space
        self.common_space = {
            name: known[name]
            for name in sorted(known)
            if trial.distributions.get(name) == known[name]
        }


class _Evolution:
    """One evolution, brought as far as the finished trials of a study allow.

    Args:
        origin: what all its claims have in common.
        space: the search space; if it is empty, so is the evolution.
        settings: how to evolve; an initial population is in units of the parameters.
        max_attempts: as :class:`DESampler`.
        generations: what is known of each generation.
    """

    def __init__(
        self,
        origin: _Claim,
        space: _Space,
        settings: DifferentialEvolutionSettings,
        max_attempts: int,
        generations: defaultdict[int, _Generation],
    ) -> None:
        self._origin, self._space, self._max_attempts = origin, space, max_attempts
        self._generations = generations
        self.algorithm: DifferentialEvolution | None = None
        if space:
            bounds = [_bounds(distribution) for distribution in space.values()]
            settings = replace(settings, init=_encoded_init(settings.init, space))
            self.algorithm = DifferentialEvolution(bounds, settings, origin.seed)
            self._candidates = self._decoded(self.algorithm.points())

    @property
    def size(self) -> int:
        return self.algorithm.size if self.algorithm else 0

    @property
    def generation(self) -> int:
        return self.algorithm.generation if self.algorithm else 0

    @property
    def present(self) -> _Generation:
        return self._generations[self.generation]

    def claim(self, index: int) -> _Claim:
        return replace(self._origin, generation=self.generation, index=index)

    def params(self, index: int) -> dict[str, Any]:
        return dict(self._candidates[index])

    def population(self) -> Population:
        assert self.algorithm is not None
        members = self._decoded(self.algorithm.population_points())
        return Population(self.generation, tuple(members), self._sign * self.algorithm.energies)

    def catch_up(self, sign: int) -> None:
        """Goes on to the first generation that is not finished yet.

        Args:
            sign: 1 if small values are better, -1 if large ones are.
        """
        self._sign = sign
        while self.algorithm and not self._unsettled():
            energies = np.full(self.size, np.inf)
            for index, trial in self._generations.pop(self.generation).finished.items():
                if trial.value is not None:
                    energies[index] = sign * trial.value
                    self._take_over(index, trial)
            self.algorithm.tell(energies)
            self._candidates = self._decoded(self.algorithm.points())

    def _take_over(self, index: int, trial: FrozenTrial) -> None:
        """Makes what a trial evaluated the candidate.

        It is the same, unless NumPy's random numbers have changed with its version, or another
        process has counted another trial of an earlier candidate whose value is noisy.
        """
        assert self.algorithm is not None
        proposed = self._candidates[index]
        for column, (name, distribution) in enumerate(self._space.items()):
            is_evaluated = trial.distributions.get(name) == distribution
            if is_evaluated and not math.isclose(trial.params[name], proposed[name]):
                low, high = _bounds(distribution)
                x = _encoded(trial.params[name], distribution)
                self.algorithm.candidates[index, column] = (x - low) / (high - low)

    def choose(self, reading: _Reading) -> int:
        """The candidate to be evaluated next."""
        if free := self.free(reading):
            return secrets.choice(free) if reading.has_company else free[0]
        # All are being evaluated: one of those that the fewest trials evaluate.
        unsettled, n_running = self._unsettled(), Counter(self.present.running.values())
        fewest = min(n_running[index] for index in unsettled)
        return secrets.choice([index for index in unsettled if n_running[index] == fewest])

    def free(self, reading: _Reading) -> list[int]:
        """The candidates that nobody evaluates, nor has finished."""
        running = self.present.running.items()
        taken = {index for number, index in running if number not in reading.leftovers}
        return [index for index in self._unsettled() if index not in taken]

    def _unsettled(self) -> list[int]:
        finished, failures = self.present.finished, self.present.failures
        return [
            index
            for index in range(self.size)
            if index not in finished and failures[index] < self._max_attempts
        ]

    def _decoded(self, points: FloatArray) -> list[dict[str, Any]]:
        columns = [_decoded(x, d) for x, d in zip(points.T, self._space.values(), strict=True)]
        return [dict(zip(self._space, row, strict=True)) for row in zip(*columns, strict=True)]


# Search spaces


def _evolvable(space: Mapping[str, BaseDistribution]) -> _Space:
    """The numerical parameters of a search space that can take more than one value."""
    return {
        name: distribution
        for name, distribution in space.items()
        if isinstance(distribution, _Numerical) and not distribution.single()
    }


def _bounds(distribution: _Numerical) -> tuple[float, float]:
    """The range of a parameter's coordinate: half a step more than its own, or its logarithm."""
    half_step = (distribution.step or 0) / 2
    low, high = distribution.low - half_step, distribution.high + half_step
    return (math.log(low), math.log(high)) if distribution.log else (low, high)


def _encoded(value: float, distribution: _Numerical) -> float:
    return math.log(value) if distribution.log else value


def _decoded(x: FloatArray, distribution: _Numerical) -> list[Any]:
    """The parameter's values at coordinates ``(S,)``."""
    values, low = np.exp(x) if distribution.log else x, distribution.low
    if distribution.step is not None:
        values = low + distribution.step * np.round((values - low) / distribution.step)
    values = np.clip(values, low, distribution.high)
    return (
        [int(v) for v in values] if isinstance(distribution, IntDistribution) else values.tolist()
    )


def _encoded_init(
    init: str | Initialisation | ArrayLike, space: _Space
) -> str | Initialisation | ArrayLike:
    """An initial population, or what makes it, in the coordinates of the search."""
    if isinstance(init, str):
        return init
    if callable(init):
        make, limits = init, np.array([(d.low, d.high) for d in space.values()], dtype=float)
        return lambda bounds, rng: _encoded_points(make(limits, rng), space)
    return _encoded_points(init, space)


def _encoded_points(points: ArrayLike, space: _Space) -> FloatArray:
    array = np.array(points, dtype=np.float64)
    for column, d in zip(array.T if array.ndim == 2 else (), space.values(), strict=False):
        if d.log:
            # A log parameter has no value below its lowest; the population is clipped anyway.
            np.log(np.maximum(column, d.low), out=column)
    return array


def _end(trial: FrozenTrial) -> datetime:
    assert trial.datetime_complete is not None
    return trial.datetime_complete


# Settings


def _check_options(
    seed: int | None,
    tol: float,
    atol: float,
    max_attempts: int,
    search_space: Mapping[str, BaseDistribution] | None,
) -> None:
    if seed is not None and (not is_integer(seed) or seed < 0):
        raise InvalidArgument(f"seed = {seed!r}: None or an integer of at least 0 is needed.")
    for name, value in (("tol", tol), ("atol", atol)):
        if not is_number(value) or not value >= 0:
            raise InvalidArgument(f"{name} = {value!r}: a number of at least 0 is needed.")
    if not is_integer(max_attempts) or max_attempts < 1:
        raise InvalidArgument(f"max_attempts = {max_attempts!r}: a positive integer is needed.")
    for name, distribution in (search_space or {}).items():
        if not isinstance(distribution, BaseDistribution):
            raise InvalidArgument(
                f"search_space[{name!r}] = {distribution!r}: an optuna distribution is needed."
            )
    if search_space is not None and not _evolvable(search_space):
        raise InvalidArgument(
            f"search_space = {dict(search_space)!r}: at least one numerical parameter with more "
            "than one value is needed."
        )


def _digest(value: object) -> str:
    """Twelve hexadecimal digits that are equal for equal JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _digest_of_space(space: Mapping[str, BaseDistribution]) -> str:
    return _digest([[name, distribution_to_json(d)] for name, d in space.items()])


def _shown(value: object) -> str:
    return str(value[0]) if isinstance(value, list) and len(value) == 1 else str(value)
