"""Differential evolution as an Optuna sampler."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.samplers.differential_evolution import (
    DifferentialEvolutionSettings,
    Initialisation,
    Strategy,
    is_integer,
    is_number,
)
from wpo_optuna.samplers.evolution import (
    CANDIDATE_KEY,
    Claim,
    Evolution,
    Population,
    Reading,
    Space,
    digest,
    digest_of_space,
    evolvable,
)

if TYPE_CHECKING:
    from optuna.study import Study

_logger = logging.getLogger(__name__)


def candidate_of(trial: FrozenTrial) -> Hashable:
    """What identifies the candidate of differential evolution that a trial evaluates.

    Args:
        trial: any trial.

    Returns:
        a value that is equal for trials of the same candidate; None if the trial evaluates none.
    """
    return Claim.of(trial)


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
        **Defaults** are scipy's: ``popsize=15``, ``mutation=(0.5, 1.0)``, ``recombination=0.7``. A
        study of weight programming, :func:`wpo_optuna.run_study`, has other ones, with which it
        gets further in some thousand trials: ``popsize=5``, ``mutation=(0.3, 0.8)``,
        ``recombination=0.9``; and it ends by its number of trials unless ``tol`` or ``atol`` is
        given. Studies of one's own have them with
        ``DESampler(**wpo_optuna.study.settings.DE_OPTIONS)``.

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
        self._search_space = None if search_space is None else evolvable(search_space)
        self._max_attempts = max_attempts
        self._independent_sampler = independent_sampler
        self._warn_independent_sampling = warn_independent_sampling
        self._definition = self._settings.describe() | {
            "max_attempts": max_attempts,
            "search_space": digest_of_space(search_space) if search_space else "inferred",
        }
        self._digest = digest(self._definition)
        self._digested: tuple[Space, str] = ({}, "")
        self._warned_of: set[str] = set()
        self._start_empty()

    def _start_empty(self) -> None:
        self._readings: weakref.WeakKeyDictionary[Study, Reading] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readings": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_empty()

    # Sampling

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The parameters that are evolved."""
        with self._lock:
            return dict(self._search_space or self._space(self._read(study)))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Gives the trial a candidate and returns its parameters."""
        claim: Claim | None = None
        params: dict[str, Any] = {}
        with self._lock:
            reading = self._read(study)
            evolution = self._evolution(reading, evolvable(search_space))
            reading.own[trial.number] = reading.n_finished + len(reading.own)
            is_set_by_creator = "fixed_params" in trial.system_attrs or bool(trial.params)
            if evolution is not None and not is_set_by_creator:
                claim = evolution.claim(evolution.choose(reading))
                evolution.present.running[trial.number] = claim.index
                params = evolution.params(claim.index)
        if claim is not None:
            definition = {"definition": self._definition} if claim.generation == 0 else {}
            stored = asdict(claim) | definition
            study._storage.set_trial_system_attr(trial._trial_id, CANDIDATE_KEY, stored)
        for name in search_space.keys() - params.keys():
            params[name] = self.sample_independent(study, trial, name, search_space[name])
        return params

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Samples a parameter that is not evolved."""
        claim = Claim.of(trial)
        if claim and self._warn_independent_sampling and param_name not in self._warned_of:
            self._warned_of.add(param_name)
            _logger.warning(
                f"The parameter {param_name!r} is sampled independently, beginning with trial "
                f"{trial.number}, and takes no part in the differential evolution, which knows "
                "numerical parameters that every trial suggests from the same range."
            )
        sampler = self._independent_sampler
        if sampler is None:
            with self._lock:
                reading = self._read(study)
            # A draw lost with its process is made again by the next one.
            draw = reading.own.get(trial.number, trial.number)
            place = [claim.generation, claim.index, claim.space] if claim else [draw]
            seed = claim.seed if claim else self._seed_for(reading)
            sampler = RandomSampler(seed=int(digest([seed, *place, param_name])[:8], 16))
        return sampler.sample_independent(study, trial, param_name, param_distribution)

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
            return len(evolution.free(reading)) if evolution else 1

    def generation(self, study: Study) -> int:
        """The generation whose candidates are being evaluated; 0 is the initial population."""
        with self._lock:
            evolution = self._look(study)[1]
            return evolution.algorithm.generation if evolution else 0

    def population(self, study: Study) -> Population | None:
        """The population after the last finished generation; None while the space is unknown."""
        with self._lock:
            evolution = self._look(study)[1]
            return evolution.population() if evolution else None

    def converged(self, study: Study) -> bool:
        """Whether the values of the population agree: std <= atol + tol |mean|.

        As in scipy, the population after the last finished generation counts, never the initial
        one, and never one with an infinite value.
        """
        with self._lock:
            evolution = self._look(study)[1]
            return bool(evolution and evolution.algorithm.converged(self._tol, self._atol))

    def stop_when_converged(self, study: Study, trial: FrozenTrial) -> None:
        """A callback for ``Study.optimize`` that stops it once :meth:`converged` says so."""
        if self.converged(study):
            study.stop()

    def _look(self, study: Study) -> tuple[Reading, Evolution | None]:
        reading = self._read(study)
        return reading, self._evolution(reading, self._space(reading))

    def _read(self, study: Study) -> Reading:
        reading = self._readings.get(study)
        if reading is None:
            if len(study.directions) > 1:
                raise ValueError("DESampler knows one objective, and this study has several.")
            sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
            reading = self._readings[study] = Reading(sign)
        reading.refresh(study, self._check)
        return reading

    def _space(self, reading: Reading) -> Space:
        return self._search_space or evolvable(reading.common_space or {})

    def _evolution(self, reading: Reading, space: Space) -> Evolution | None:
        if not space:
            return None
        if list(space.items()) != list(self._digested[0].items()):
            self._digested = (space, digest_of_space(space))
        origin = Claim(self._seed_for(reading), self._digest, self._digested[1], 0, 0)
        key = (origin.seed, origin.space)
        if key not in reading.evolutions:
            reading.evolutions[key] = Evolution(
                origin, space, self._settings, self._max_attempts, reading
            )
        reading.evolutions[key].catch_up()
        return reading.evolutions[key]

    def _seed_for(self, reading: Reading) -> int:
        if self._seed is not None:
            return self._seed
        return self._own_seed if reading.seed is None else reading.seed

    def _check(self, study: Study, trial: FrozenTrial, claim: Claim) -> None:
        """Refuses a study that was begun with other settings."""
        if claim.settings == self._digest and self._seed in (None, claim.seed):
            return
        stored = trial.system_attrs[CANDIDATE_KEY]
        theirs = {"seed": claim.seed} | stored.get("definition", {})
        own = {"seed": claim.seed if self._seed is None else self._seed} | self._definition
        names = [name for name in theirs if own.get(name) != theirs[name]]
        here = ", ".join(f"{name} = {own.get(name)}" for name in names) or "sampler"
        there = ", ".join(f"{name} = {theirs[name]}" for name in names) or "other settings"
        raise InvalidArgument(
            f"{here}: the study {study.study_name!r} was begun with {there}, and its differential "
            "evolution can only be continued with the same; use these or start another study."
        )


def _check_options(
    seed: int | None,
    tol: float,
    atol: float,
    max_attempts: int,
    search_space: Mapping[str, BaseDistribution] | None,
) -> None:
    def check(name: str, value: object, is_right: bool, needed: str) -> None:
        if not is_right:
            raise InvalidArgument(f"{name} = {value!r}: {needed} is needed.")

    is_seed = seed is None or (is_integer(seed) and seed >= 0)
    check("seed", seed, is_seed, "None or an integer of at least 0")
    check("tol", tol, is_number(tol) and tol >= 0, "a number of at least 0")
    check("atol", atol, is_number(atol) and atol >= 0, "a number of at least 0")
    is_positive = is_integer(max_attempts) and max_attempts >= 1
    check("max_attempts", max_attempts, is_positive, "a positive integer")
    if search_space is None:
        return
    needed = "at least one numerical parameter with more than one value"
    check("search_space", dict(search_space), bool(evolvable(search_space)), needed)
