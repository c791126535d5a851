"""What the trials of a study say about an evolution, and the evolution as far as they bring it.

Each trial says in a system attribute which candidate it evaluates. Nothing else is stored, so that
the trials alone tell, to every process and after any interruption, which candidates are finished,
which are being evaluated, and which are free.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from secrets import choice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from optuna.distributions import (
    BaseDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.samplers.differential_evolution import (
    DifferentialEvolution,
    DifferentialEvolutionSettings,
    FloatArray,
    Initialisation,
)

if TYPE_CHECKING:
    from optuna.study import Study

# System attribute of a trial: the candidate that it evaluates.
CANDIDATE_KEY = "de:candidate"

Numerical = FloatDistribution | IntDistribution
Space = dict[str, Numerical]


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


@dataclass(frozen=True, slots=True)
class Claim:
    """Which candidate a trial evaluates; ``settings`` and ``space`` are digests."""

    seed: int
    settings: str
    space: str
    generation: int
    index: int

    @classmethod
    def of(cls, trial: FrozenTrial) -> Claim | None:
        """The claim that a trial makes, if it makes one."""
        stored = trial.system_attrs.get(CANDIDATE_KEY)
        return stored and cls(*_claimed(stored))


_claimed = itemgetter(*Claim.__slots__)


@dataclass
class Generation:
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
        """Takes notice of a trial, running or finished."""
        if not trial.state.is_finished():
            self.running[trial.number] = index
            return
        self.running.pop(trial.number, None)
        if trial.state == TrialState.FAIL:
            self.failures[index] += 1
            return
        known = self.finished.setdefault(index, trial)
        if trial.datetime_complete < known.datetime_complete:  # type: ignore[operator]
            self.finished[index] = trial


class Reading:
    """What has been read of one study's trials.

    Args:
        sign: 1 if small values are better, -1 if large ones are.

    Attributes:
        generations: what is known of each evolution (seed and space) and generation.
        evolutions: those that were needed, in the state of their last use.
        common_space: what all completed trials have in common; None before the first.
        seed: of the first claim that was read.
        n_finished: how many trials are finished.
        own: trials that were sampled here and are not finished, by number, and how many were
            before them.
        has_company: whether others have been seen to work on the study at the same time.
        was_overtaken: whether somebody else was faster with a candidate, so that what follows it
            is somebody else's as well.
    """

    def __init__(self, sign: int) -> None:
        self.sign = sign
        self.generations: defaultdict[tuple[int, str], defaultdict[int, Generation]]
        self.generations = defaultdict(lambda: defaultdict(Generation))
        self.evolutions: dict[tuple[int, str], Evolution] = {}
        self.common_space: dict[str, BaseDistribution] | None = None
        self.seed: int | None = None
        self.n_finished = 0
        self.own: dict[int, int] = {}
        self.has_company = self.was_overtaken = False
        self._n_read: int | None = None
        # Trials that are not finished, by their place, and whether their claim is noted.
        self._open: dict[int, bool] = {}

    def refresh(self, study: Study, check: Callable[[Study, FrozenTrial, Claim], None]) -> None:
        """Reads what is new, and checks each claim before it is noted."""
        trials = study.get_trials(deepcopy=False)
        for place in [*self._open, *range(self._n_read or 0, len(trials))]:
            trial = trials[place]
            is_finished = trial.state.is_finished()
            if self._open.get(place) and not is_finished:
                continue
            claim = Claim.of(trial)
            if claim is not None:
                check(study, trial, claim)
                self.seed = claim.seed if self.seed is None else self.seed
                self.generations[claim.seed, claim.space][claim.generation].note(trial, claim.index)
                is_others = trial.number not in self.own and trial.state != TrialState.FAIL
                self.has_company |= self._n_read is not None and is_others
            self._open[place] = claim is not None
            if is_finished:
                del self._open[place]
                is_own = self.own.pop(trial.number, None) is not None
                self.was_overtaken |= is_own and trial.state == TrialState.FAIL
                self.n_finished += 1
                self._narrow_space(trial)
        self._n_read = len(trials)

    def _narrow_space(self, trial: FrozenTrial) -> None:
        known, present = self.common_space, trial.distributions
        if trial.state == TrialState.COMPLETE and known != present:
            names = sorted(present if known is None else known)
            same = (n for n in names if known is None or present.get(n) == known[n])
            self.common_space = {name: present[name] for name in same}


class Evolution:
    """One evolution, brought as far as the finished trials of a study allow.

    Args:
        origin: what all its claims have in common.
        space: the search space.
        settings: how to evolve; an initial population is in units of the parameters.
        max_attempts: after how many failures a candidate counts as infinitely bad.
        reading: what is known of the study.
    """

    def __init__(
        self,
        origin: Claim,
        space: Space,
        settings: DifferentialEvolutionSettings,
        max_attempts: int,
        reading: Reading,
    ) -> None:
        self._origin, self._space, self._max_attempts = origin, space, max_attempts
        self._generations = reading.generations[origin.seed, origin.space]
        self._sign = reading.sign
        bounds = [_bounds(distribution) for distribution in space.values()]
        settings = replace(settings, init=_encoded_init(settings.init, space))
        self.algorithm = DifferentialEvolution(bounds, settings, origin.seed)
        self._candidates: list[dict[str, Any]] = []
        self._last_chosen = -1

    @property
    def present(self) -> Generation:
        """What is known of the generation whose candidates are being evaluated."""
        return self._generations[self.algorithm.generation]

    def claim(self, index: int) -> Claim:
        """The claim of a candidate of the present generation."""
        return replace(self._origin, generation=self.algorithm.generation, index=index)

    def params(self, index: int) -> dict[str, Any]:
        """The parameters of a candidate of the present generation."""
        return dict(self._candidates[index])

    def population(self) -> Population:
        """The population after the last finished generation."""
        members = self._decoded(self.algorithm.population_points())
        values = self._sign * self.algorithm.energies
        return Population(self.algorithm.generation, tuple(members), values)

    def catch_up(self) -> None:
        """Goes on to the first generation that is not finished yet."""
        while not self._unsettled():
            energies = np.full(self.algorithm.size, np.inf)
            for index, trial in self.present.finished.items():
                if trial.value is not None:
                    energies[index] = self._sign * trial.value
            del self._generations[self.algorithm.generation]
            self.algorithm.tell(energies)
            self._candidates = []
        if not self._candidates:
            self._candidates = self._decoded(self.algorithm.points())

    def choose(self, reading: Reading) -> int:
        """The candidate to be evaluated next.

        In company it is the one after the last, which others who began elsewhere come upon late,
        and where somebody else has been, one that those on their way come upon late as well.
        """
        if free := self.free(reading):
            following = (self._last_chosen + 1) % self.algorithm.size
            is_on_its_way = following in free and not reading.was_overtaken
            if reading.has_company and not is_on_its_way:
                reading.was_overtaken = False
                following = choice(_late_in_longest_run(free))
            self._last_chosen = following if reading.has_company else free[0]
            return self._last_chosen
        # All are being evaluated: once more one of those that the fewest trials evaluate.
        unsettled, n_running = self._unsettled(), Counter(self.present.running.values())
        fewest = min(n_running[index] for index in unsettled)
        return choice([index for index in unsettled if n_running[index] == fewest])

    def free(self, reading: Reading) -> list[int]:
        """The candidates that nobody evaluates, nor has finished.

        As long as nobody else has been seen at work, trials begun elsewhere are those of a process
        that died.
        """
        running, own = self.present.running, reading.own
        known = running if reading.has_company else running.keys() & own.keys()
        taken = {running[number] for number in known}
        return [index for index in self._unsettled() if index not in taken]

    def _unsettled(self) -> list[int]:
        finished, failures = self.present.finished, self.present.failures
        return [
            index
            for index in range(self.algorithm.size)
            if index not in finished and failures[index] < self._max_attempts
        ]

    def _decoded(self, points: FloatArray) -> list[dict[str, Any]]:
        columns = [_decoded(x, d) for x, d in zip(points.T, self._space.values(), strict=True)]
        return [dict(zip(self._space, row, strict=True)) for row in zip(*columns, strict=True)]


def _late_in_longest_run(indices: Sequence[int]) -> list[int]:
    """The later half of the longest run of neighbours in ascending indices."""
    runs = [
        [index for _, index in run]
        for _, run in groupby(enumerate(indices), lambda numbered: numbered[1] - numbered[0])
    ]
    most = max(map(len, runs))
    longest = choice([run for run in runs if len(run) == most])
    return longest[len(longest) // 2 :]


def evolvable(space: Mapping[str, BaseDistribution]) -> Space:
    """The numerical parameters of a search space that can take more than one value."""
    return {
        name: distribution
        for name, distribution in space.items()
        if isinstance(distribution, Numerical) and not distribution.single()
    }


def _bounds(distribution: Numerical) -> tuple[float, float]:
    """The range of a parameter's coordinate: half a step more than its own, or its logarithm."""
    half_step = (distribution.step or 0) / 2
    low, high = distribution.low - half_step, distribution.high + half_step
    return (math.log(low), math.log(high)) if distribution.log else (low, high)


def _decoded(x: FloatArray, distribution: Numerical) -> list[Any]:
    """The parameter's values at coordinates ``(S,)``."""
    values, low = np.exp(x) if distribution.log else x, distribution.low
    if distribution.step is not None:
        values = low + distribution.step * np.round((values - low) / distribution.step)
    values = np.clip(values, low, distribution.high)
    is_integer = isinstance(distribution, IntDistribution)
    return [int(value) for value in values] if is_integer else values.tolist()


def _encoded_init(
    init: str | Initialisation | ArrayLike, space: Space
) -> str | Initialisation | ArrayLike:
    """An initial population, or what makes it, in the coordinates of the search."""
    if isinstance(init, str):
        return init
    if callable(init):
        make, limits = init, np.array([(d.low, d.high) for d in space.values()], dtype=float)
        return lambda bounds, rng: _encoded(make(limits, rng), space)
    return _encoded(init, space)


def _encoded(points: ArrayLike, space: Space) -> FloatArray:
    array = np.array(points, dtype=np.float64)
    for column, d in zip(array.T if array.ndim == 2 else (), space.values(), strict=False):
        if d.log:
            # A log parameter has no value below its lowest; the population is clipped anyway.
            np.log(np.maximum(column, d.low), out=column)
    return array


def digest(value: object) -> str:
    """Twelve hexadecimal digits that are equal for equal JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def digest_of_space(space: Mapping[str, BaseDistribution]) -> str:
    """As :func:`digest`; the order of the parameters counts."""
    return digest([[name, distribution_to_json(d)] for name, d in space.items()])
