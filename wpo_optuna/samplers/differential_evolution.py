"""Differential evolution with deferred updating, asked and told one generation at a time.

The algorithm and its random numbers are those of :func:`scipy.optimize.differential_evolution`
with ``updating="deferred"`` and ``polish=False``: the same settings, bounds and seed (scipy's
``rng``) give the same candidates. scipy drives the objective itself; here the caller does, so that
a generation can be evaluated anywhere and a search can be replayed from recorded values.

Sources: R. Storn and K. Price, "Differential Evolution - a simple and efficient heuristic for
global optimization over continuous spaces", Journal of Global Optimization 11, 1997; and the class
``DifferentialEvolutionSolver`` in ``scipy/optimize/_differentialevolution.py``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wpo_optuna.errors import InvalidArgument

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Strategy = Callable[..., ArrayLike]
Initialisation = Callable[[FloatArray, np.random.Generator], ArrayLike]

INITIALISATIONS = ("latinhypercube", "sobol", "halton", "random")

# Each member mutates with up to five others, which scipy draws for every strategy alike.
_PARTNERS = 5
_SMALLEST_POPULATION = 5


@dataclass(frozen=True, eq=False)
class DifferentialEvolutionSettings:
    """How to evolve; names, meanings and defaults as in scipy.

    Attributes:
        strategy: one of :data:`STRATEGIES`, or a callable ``strategy(candidate, population, rng)``
            that gets the index of a member and the population ``(S, d)`` in units of the bounds
            and returns a mutated point ``(d,)``.
        popsize: the population has ``popsize`` times d members, at least five. With
            ``init="sobol"`` it is rounded up to a power of two, and an array sets its own size.
        init: one of :data:`INITIALISATIONS`, an array ``(S, d)`` in units of the bounds (clipped
            to them), or a callable ``init(bounds, rng)`` that returns such an array for the bounds
            ``(d, 2)``.
        mutation: the weight F of a difference vector, in [0, 2). A pair is a range from which
            every generation draws its own F (dithering).
        recombination: probability CR of taking a coordinate from the mutated point, in [0, 1].

    Raises:
        InvalidArgument: a setting is out of range or unknown.
    """

    strategy: str | Strategy = "best1bin"
    popsize: int = 15
    init: str | Initialisation | ArrayLike = "latinhypercube"
    mutation: float | tuple[float, float] = (0.5, 1.0)
    recombination: float = 0.7

    def __post_init__(self) -> None:
        if not callable(self.strategy) and self.strategy not in STRATEGIES:
            raise InvalidArgument(
                f"strategy = {self.strategy!r}: one of {', '.join(STRATEGIES)} or a callable "
                "is needed."
            )
        if not is_integer(self.popsize) or self.popsize < 1:
            raise InvalidArgument(f"popsize = {self.popsize!r}: a positive integer is needed.")
        if isinstance(self.init, str) and self.init not in INITIALISATIONS:
            raise InvalidArgument(
                f"init = {self.init!r}: one of {', '.join(INITIALISATIONS)}, an array or a "
                "callable is needed."
            )
        if not _is_mutation(self.mutation):
            raise InvalidArgument(
                f"mutation = {self.mutation!r}: a number, or a pair of numbers, of at least 0 "
                "and below 2 is needed."
            )
        if not is_number(self.recombination) or not 0 <= self.recombination <= 1:
            raise InvalidArgument(
                f"recombination = {self.recombination!r}: a number from 0 to 1 is needed."
            )

    def describe(self) -> dict[str, object]:
        """The settings as values that JSON can hold; arrays by a digest, callables by name."""
        return {
            "strategy": _describe(self.strategy),
            "popsize": int(self.popsize),
            "init": _describe(self.init),
            "mutation": np.atleast_1d(np.asarray(self.mutation, dtype=float)).tolist(),
            "recombination": float(self.recombination),
        }


class DifferentialEvolution:
    """One run of differential evolution.

    Example::

        evolution = DifferentialEvolution(bounds, DifferentialEvolutionSettings(), seed=1)
        for _ in range(100):
            evolution.tell([function(x) for x in evolution.points()])

    Args:
        bounds: lower and upper bound of each coordinate ``(d, 2)``, finite.
        settings: how to evolve.
        seed: seed of the random numbers, as scipy's ``rng``.

    Attributes:
        generation: number of the generation whose candidates are to be evaluated; 0 is the
            initial population.
        candidates: its candidates ``(S, d)`` in the unit cube.
        population: the members ``(S, d)`` in the unit cube, the best one first; before the first
            generation has been told, its candidates.
        energies: the members' values ``(S,)``; infinite before the first generation is told.

    Raises:
        InvalidArgument: an initial population has the wrong shape or holds NaN.
    """

    def __init__(
        self, bounds: ArrayLike, settings: DifferentialEvolutionSettings, seed: int
    ) -> None:
        self._bounds = np.asarray(bounds, dtype=np.float64)
        self._settings = settings
        self._rng = np.random.default_rng(seed)
        self.candidates = _initial_population(self._bounds, settings, self._rng)
        self.population = self.candidates.copy()
        self.energies = np.full(self.size, np.inf)
        self.generation = 0
        # Shuffled again and again, never reset: scipy's draws depend on its earlier order.
        self._shuffled: IntArray = np.arange(self.size)

    @property
    def size(self) -> int:
        """Number S of members, and of candidates in every generation."""
        return len(self.candidates)

    def points(self) -> FloatArray:
        """The candidates ``(S, d)`` in units of the bounds."""
        return _from_unit_cube(self.candidates, self._bounds)

    def population_points(self) -> FloatArray:
        """The members ``(S, d)`` in units of the bounds, the best one first."""
        return _from_unit_cube(self.population, self._bounds)

    def tell(self, energies: ArrayLike) -> None:
        """Takes the values of all candidates and goes on to the next generation.

        Args:
            energies: values ``(S,)``, smaller is better; infinities are allowed, NaN is not.

        Raises:
            InvalidArgument: the number of values is wrong or one is NaN.
        """
        told = np.asarray(energies, dtype=np.float64)
        if told.shape != (self.size,) or np.isnan(told).any():
            raise InvalidArgument(
                f"energies of shape {told.shape}: {self.size} numbers, none of them NaN, are "
                "needed."
            )
        improved = told <= self.energies
        self.population = np.where(improved[:, np.newaxis], self.candidates, self.population)
        self.energies = np.where(improved, told, self.energies)
        self._move_best_to_front()
        self.candidates = self._breed()
        self.generation += 1

    def converged(self, tol: float, atol: float) -> bool:
        """Whether the population agrees: std(energies) <= atol + tol |mean(energies)|.

        Like scipy, never before the initial population has evolved once, nor while any member's
        value is infinite.
        """
        if self.generation < 2 or np.isinf(self.energies).any():
            return False
        spread, mean = np.std(self.energies), np.mean(self.energies)
        return bool(spread <= atol + tol * abs(mean))

    def _move_best_to_front(self) -> None:
        best = int(np.argmin(self.energies))
        self.energies[[0, best]] = self.energies[[best, 0]]
        self.population[[0, best]] = self.population[[best, 0]]

    def _breed(self) -> FloatArray:
        mutation = self._settings.mutation
        if isinstance(mutation, tuple | list):
            mutation = self._rng.uniform(min(mutation), max(mutation))
        strategy = self._settings.strategy
        if callable(strategy):
            children = self._mutate_with(strategy)
        else:
            mutants = _MUTATIONS[strategy[:-3]](self.population, self._draw_partners(), mutation)
            taken = self._draw_crossover(exponential=strategy.endswith("exp"))
            children = np.where(taken, mutants, self.population)
        outside = (children < 0) | (children > 1)
        if n_outside := np.count_nonzero(outside):
            children[outside] = self._rng.uniform(size=n_outside)
        return children

    def _draw_partners(self) -> IntArray:
        """For every member the indices ``(S, 5)`` of others, all different."""
        partners: list[IntArray] = []
        for member in range(self.size):
            self._rng.shuffle(self._shuffled)
            drawn = self._shuffled[: _PARTNERS + 1]
            partners.append(drawn[drawn != member][:_PARTNERS])
        return np.array(partners)

    def _draw_crossover(self, *, exponential: bool) -> NDArray[np.bool_]:
        """Which coordinates ``(S, d)`` come from the mutant; one always does."""
        size, dimension = self.population.shape
        start = self._rng.integers(dimension, size=(size,))
        taken = self._rng.uniform(size=(size, dimension)) < self._settings.recombination
        if not exponential:
            taken[np.arange(size), start] = True
            return taken
        # Exponential: an unbroken run of coordinates that begins at `start` and wraps round.
        taken[:, 0] = True
        run = np.logical_and.accumulate(taken, axis=1)
        columns = (start[:, np.newaxis] + np.arange(dimension)) % dimension
        crossover = np.zeros_like(run)
        np.put_along_axis(crossover, columns, run, axis=1)
        return crossover

    def _mutate_with(self, strategy: Strategy) -> FloatArray:
        population = self.population_points()
        mutants = np.array(
            [strategy(member, population, rng=self._rng) for member in range(self.size)],
            dtype=np.float64,
        )
        if mutants.shape != self.population.shape:
            raise InvalidArgument(
                f"strategy = {strategy!r}: it returned an array of shape {mutants.shape[1:]}, "
                f"a point of shape {self.population.shape[1:]} is needed."
            )
        return _to_unit_cube(mutants, self._bounds)


def _best1(population: FloatArray, partners: IntArray, f: float) -> FloatArray:
    a, b = population[partners[:, :2].T]
    return population[0] + f * (a - b)


def _best2(population: FloatArray, partners: IntArray, f: float) -> FloatArray:
    a, b, c, d = population[partners[:, :4].T]
    return population[0] + f * (a + b - c - d)


def _rand1(population: FloatArray, partners: IntArray, f: float) -> FloatArray:
    a, b, c = population[partners[:, :3].T]
    return a + f * (b - c)


def _rand2(population: FloatArray, partners: IntArray, f: float) -> FloatArray:
    a, b, c, d, e = population[partners[:, :5].T]
    return a + f * (b + c - d - e)


def _randtobest1(population: FloatArray, partners: IntArray, f: float) -> FloatArray:
    a, b, c = population[partners[:, :3].T]
    # Two steps, as scipy takes them: the rounding differs from that of a single sum.
    towards_best = a + f * (population[0] - a)
    return towards_best + f * (b - c)


def _currenttobest1(population: FloatArray, partners: IntArray, f: float) -> FloatArray:
    a, b = population[partners[:, :2].T]
    return population + f * (population[0] - population + a - b)


_MUTATIONS = {
    "best1": _best1,
    "best2": _best2,
    "rand1": _rand1,
    "rand2": _rand2,
    "randtobest1": _randtobest1,
    "currenttobest1": _currenttobest1,
}

STRATEGIES = tuple(
    f"{mutation}{crossover}" for mutation in _MUTATIONS for crossover in ("bin", "exp")
)


def _smallest_population(settings: DifferentialEvolutionSettings) -> int:
    if isinstance(settings.strategy, str) and settings.strategy.startswith("rand2"):
        # Five partners and the member itself; scipy fails on a population of five.
        return _PARTNERS + 1
    return _SMALLEST_POPULATION


def _initial_population(
    bounds: FloatArray, settings: DifferentialEvolutionSettings, rng: np.random.Generator
) -> FloatArray:
    dimension = len(bounds)
    if callable(settings.init):
        return _given_population(settings.init(bounds, rng), bounds, settings)
    if not isinstance(settings.init, str):
        return _given_population(settings.init, bounds, settings)
    size = max(_smallest_population(settings), settings.popsize * dimension)
    if settings.init == "sobol":
        size = 2 ** math.ceil(math.log2(size))
    if settings.init == "random":
        return rng.uniform(size=(size, dimension))
    if settings.init == "latinhypercube":
        return _latin_hypercube(size, dimension, rng)
    from scipy.stats import qmc  # Slow to import, and needed here alone.

    engine = qmc.Sobol if settings.init == "sobol" else qmc.Halton
    return engine(d=dimension, rng=rng).random(n=size)


def _latin_hypercube(size: int, dimension: int, rng: np.random.Generator) -> FloatArray:
    """Points ``(size, dimension)``, one in each of ``size`` equal slices of every coordinate."""
    slices = np.linspace(0.0, 1.0, size, endpoint=False)[:, np.newaxis]
    samples = rng.uniform(size=(size, dimension)) * (1.0 / size) + slices
    return np.stack([samples[rng.permutation(size), column] for column in range(dimension)], axis=1)


def _given_population(
    points: ArrayLike, bounds: FloatArray, settings: DifferentialEvolutionSettings
) -> FloatArray:
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != len(bounds) or np.isnan(array).any():
        raise InvalidArgument(
            f"init of shape {array.shape}: an array of shape (S, {len(bounds)}) without NaN, a "
            "point in each row, is needed."
        )
    smallest = _smallest_population(settings)
    if len(array) < smallest:
        raise InvalidArgument(
            f"init of shape {array.shape}: at least {smallest} points are needed."
        )
    return np.clip(_to_unit_cube(array, bounds), 0.0, 1.0)


def _from_unit_cube(unit: FloatArray, bounds: FloatArray) -> FloatArray:
    low, high = bounds.T
    # scipy's formula, rounding included; at the ends it can miss a bound by one rounding step.
    return np.clip(0.5 * (low + high) + (unit - 0.5) * np.fabs(low - high), low, high)


def _to_unit_cube(points: FloatArray, bounds: FloatArray) -> FloatArray:
    low, high = bounds.T
    return (points - 0.5 * (low + high)) * (1 / np.fabs(low - high)) + 0.5


def _describe(value: object) -> str:
    if isinstance(value, str):
        return value
    if callable(value):
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return f"{getattr(value, '__module__', '')}.{name}"
    array = np.ascontiguousarray(value, dtype=np.float64)
    digest = hashlib.sha256(array.tobytes()).hexdigest()[:16]
    return f"array {array.shape} {digest}"


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a value is an integer; True and False are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a real number; True and False are not."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _is_mutation(value: object) -> bool:
    pair = value if isinstance(value, tuple | list) else (value,)
    return (
        len(pair) in (1, 2)
        and (len(pair) == 2 or pair[0] is value)
        and all(is_number(f) and math.isfinite(f) and 0 <= f < 2 for f in pair)
    )
