"""Replaying an evolution from the values that a study's trials hold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from wpo_optuna.errors import WeightProgrammingError
from wpo_optuna.samplers.candidate_claims import INDEPENDENT, Candidate, ClaimBook, Evolution
from wpo_optuna.samplers.differential_evolution import (
    DifferentialEvolution,
    DifferentialEvolutionSettings,
)

SearchSpace = dict[str, BaseDistribution]


def evolvable(space: SearchSpace) -> SearchSpace:
    """The numerical parameters of a search space that can take more than one value."""
    return {
        name: distribution
        for name, distribution in space.items()
        if isinstance(distribution, FloatDistribution | IntDistribution)
        and not distribution.single()
    }


class EvolutionReplay:
    """One evolution, as far as the finished trials of its study have brought it.

    Args:
        evolution: names it.
        space: its search space, numerical parameters with more than one value.
        settings: how to evolve; an initial population is in units of the parameters.
        max_attempts: as :class:`~wpo_optuna.samplers.de.DESampler`.
    """

    def __init__(
        self,
        evolution: Evolution,
        space: SearchSpace,
        settings: DifferentialEvolutionSettings,
        max_attempts: int,
    ) -> None:
        self.evolution = evolution
        self._space = space
        self._transform = _SearchSpaceTransform(space)
        self._is_continuous = all(map(_is_continuous, space.values()))
        self._max_attempts = max_attempts
        self.algorithm = DifferentialEvolution(
            self._transform.bounds, _with_transformed_init(settings, space), evolution.seed
        )
        self._points = self.algorithm.points()
        self._n_settled_in_order = 0
        self._checked_generation = -1

    @property
    def generation(self) -> int:
        """The generation whose candidates are being evaluated."""
        return self.algorithm.generation

    def catch_up(self, book: ClaimBook) -> None:
        """Goes on to the first generation that is not finished yet.

        Raises:
            WeightProgrammingError: a completed trial did not evaluate the candidate it claims.
        """
        self._check_against(book)
        while self._is_finished(book):
            told = book.record(self.evolution, self.generation).energies
            # Absent are the candidates whose attempts are used up.
            energies = [told.get(index, np.inf) for index in range(self.algorithm.size)]
            book.forget(self.evolution, self.generation)
            self.algorithm.tell(energies)
            self._points = self.algorithm.points()
            self._n_settled_in_order = 0
            self._check_against(book)

    def free(self, book: ClaimBook, trial_number: int | None = None) -> Iterator[int]:
        """The candidates that nobody evaluates, nor has finished, except trial ``trial_number``."""
        record = book.record(self.evolution, self.generation)
        for index in range(self._n_settled_in_order, self.algorithm.size):
            if record.is_free(index, self._max_attempts, trial_number):
                yield index

    def params(self, candidate: Candidate) -> dict[str, Any]:
        """The parameters of a candidate of the present generation."""
        assert candidate == self._candidate(candidate.index)
        return self._untransform(self._points[candidate.index])

    def population(self) -> list[dict[str, Any]]:
        """The members' parameters, the best one first."""
        return [self._untransform(point) for point in self.algorithm.population_points()]

    def _untransform(self, point: NDArray[np.float64]) -> dict[str, Any]:
        params = {} if self._is_continuous else self._transform.untransform(point)
        for (name, distribution), x in zip(self._space.items(), point.tolist(), strict=True):
            if _is_continuous(distribution):
                # Optuna's transform would leave out the upper bound, which scipy does reach.
                value = math.exp(x) if distribution.log else x
                params[name] = min(max(value, distribution.low), distribution.high)
        return params

    def _candidate(self, index: int) -> Candidate:
        return Candidate(self.evolution, self.generation, index)

    def _is_finished(self, book: ClaimBook) -> bool:
        record = book.record(self.evolution, self.generation)
        while self._n_settled_in_order < self.algorithm.size:
            if not record.is_settled(self._n_settled_in_order, self._max_attempts):
                return False
            self._n_settled_in_order += 1
        return True

    def _check_against(self, book: ClaimBook) -> None:
        # NumPy does not promise that a generator's numbers stay the same in later versions. One
        # trial of each generation is enough: a deviation changes all its candidates.
        if self._checked_generation == self.generation:
            return
        found = book.record(self.evolution, self.generation).witness
        if found is None:
            return
        index, witness = found
        for name, expected in self.params(self._candidate(index)).items():
            if witness.distributions.get(name) != self._space[name]:
                continue
            if not math.isclose(witness.params[name], expected, rel_tol=1e-9, abs_tol=1e-12):
                raise WeightProgrammingError(
                    f"Trial {witness.number} holds {name} = {witness.params[name]!r} where "
                    f"candidate {index} of generation {self.generation} has {expected!r}: the "
                    "study was made with other versions of NumPy or SciPy, or changed by hand, "
                    "and differential evolution cannot continue it."
                )
        self._checked_generation = self.generation


class IndependentDraws:
    """Numbered random draws without end, for trials that evaluate no candidate.

    They are claimed like candidates, so that a draw lost with its process is made again.
    """

    generation = INDEPENDENT

    def __init__(self, evolution: Evolution, max_attempts: int) -> None:
        self.evolution = evolution
        self._max_attempts = max_attempts
        self._n_settled_in_order = 0

    def catch_up(self, book: ClaimBook) -> None:
        """Skips the finished draws."""
        record = book.record(self.evolution, self.generation)
        while record.is_settled(self._n_settled_in_order, self._max_attempts):
            self._n_settled_in_order += 1

    def free(self, book: ClaimBook, trial_number: int | None = None) -> Iterator[int]:
        """The draws, without end, that nobody evaluates, nor has finished."""
        record = book.record(self.evolution, self.generation)
        for index in itertools.count(self._n_settled_in_order):
            if record.is_free(index, self._max_attempts, trial_number):
                yield index

    def params(self, candidate: Candidate) -> dict[str, Any]:
        """No parameters: the independent sampler draws them."""
        return {}


def _with_transformed_init(
    settings: DifferentialEvolutionSettings, space: SearchSpace
) -> DifferentialEvolutionSettings:
    """The settings with an initial population in the coordinates of the search."""
    init = settings.init
    if isinstance(init, str):
        return settings
    if not callable(init):
        return replace(settings, init=_transformed(init, space))
    in_parameters = init
    limits = np.array([(d.low, d.high) for d in _numerical(space)], dtype=np.float64)

    def in_search_coordinates(
        bounds: NDArray[np.float64], rng: np.random.Generator
    ) -> NDArray[np.float64]:
        return _transformed(in_parameters(limits, rng), space)

    return replace(settings, init=in_search_coordinates)


def _transformed(points: ArrayLike, space: SearchSpace) -> NDArray[np.float64]:
    array = np.array(points, dtype=np.float64)
    if array.ndim == 2:
        for column, distribution in zip(array.T, _numerical(space), strict=False):
            if distribution.log:
                # A log parameter has no value below its lowest; the population is clipped anyway.
                np.log(np.maximum(column, distribution.low), out=column)
    return array


def _is_continuous(distribution: BaseDistribution) -> TypeGuard[FloatDistribution]:
    return isinstance(distribution, FloatDistribution) and distribution.step is None


def _numerical(space: SearchSpace) -> list[FloatDistribution | IntDistribution]:
    return [d for d in space.values() if isinstance(d, FloatDistribution | IntDistribution)]
