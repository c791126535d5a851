"""Test functions of global optimisation, and what scipy makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from optuna.distributions import FloatDistribution
from scipy.optimize import differential_evolution

Function = Callable[[np.ndarray], float]


def sphere(x: np.ndarray) -> float:
    return float(np.sum(x**2))


def rosenbrock(x: np.ndarray) -> float:
    return float(np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2))


def rastrigin(x: np.ndarray) -> float:
    return float(10.0 * len(x) + np.sum(x**2 - 10.0 * np.cos(2.0 * np.pi * x)))


def ackley(x: np.ndarray) -> float:
    return float(
        -20.0 * np.exp(-0.2 * np.sqrt(np.mean(x**2)))
        - np.exp(np.mean(np.cos(2.0 * np.pi * x)))
        + 20.0
        + np.e
    )


FUNCTIONS: dict[str, tuple[Function, float, float]] = {
    "sphere": (sphere, -5.12, 5.12),
    "rosenbrock": (rosenbrock, -2.048, 2.048),
    "rastrigin": (rastrigin, -5.12, 5.12),
    "ackley": (ackley, -32.768, 32.768),
}

N_DIMENSIONS = 10
NAMES = [f"x{index}" for index in range(N_DIMENSIONS)]


def bounds(function: str, dimension: int = N_DIMENSIONS) -> list[tuple[float, float]]:
    _, low, high = FUNCTIONS[function]
    return [(low, high)] * dimension


def search_space(function: str, dimension: int = N_DIMENSIONS) -> dict[str, FloatDistribution]:
    _, low, high = FUNCTIONS[function]
    return {name: FloatDistribution(low, high) for name in NAMES[:dimension]}


def initial_array(function: str, dimension: int = N_DIMENSIONS) -> np.ndarray:
    """An initial population, some of it outside of the bounds."""
    _, low, high = FUNCTIONS[function]
    return np.random.default_rng(5).uniform(1.2 * low, 1.2 * high, (12, dimension))


def candidates_of_scipy(
    function: Function,
    limits: list[tuple[float, float]],
    n_generations: int,
    seed: int,
    **options: Any,
) -> np.ndarray:
    """The points ``(n, d)`` that scipy evaluates; convergence does not stop it."""
    seen: list[np.ndarray] = []

    def recorded(x: np.ndarray) -> float:
        seen.append(x.copy())
        return function(x)

    differential_evolution(
        recorded,
        limits,
        rng=seed,
        updating="deferred",
        polish=False,
        maxiter=n_generations - 1,
        tol=0.0,
        atol=-1.0,
        **options,
    )
    return np.array(seen)
