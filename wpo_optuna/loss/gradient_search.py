"""Search along the gradient of a deterministic loss, inside the unit cube."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from wpo_optuna.loss.parallel import in_threads

FloatArray = NDArray[np.float64]

# Adam's step sizes, in units of the cube's edge: large enough to cross it, then fine.
_FIRST_STEP, _LAST_STEP = 0.05, 0.002
_DECAY_MEAN, _DECAY_SQUARE = 0.9, 0.99


class Differentiable(Protocol):
    """A loss with a gradient."""

    def value_and_grad(self, x: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Values ``(n,)`` and gradients ``(n, d)`` at points ``(n, d)``."""


def polish(
    engine: Differentiable, x0: ArrayLike, max_iterations: int = 200
) -> tuple[FloatArray, FloatArray]:
    """Refines points by bounded L-BFGS, each on its own.

    Args:
        engine: the loss.
        x0: points ``(n, d)``.
        max_iterations: most iterations of each.

    Returns:
        points ``(n, d)`` and their values ``(n,)``, none worse than its start.
    """
    starts = np.atleast_2d(np.asarray(x0, dtype=np.float64))
    values, _ = engine.value_and_grad(starts)

    def value_and_grad(x: FloatArray) -> tuple[float, FloatArray]:
        value, gradient = engine.value_and_grad(x[None])
        return float(value[0]), gradient[0]

    def refined(i: int) -> tuple[FloatArray, float]:
        found = minimize(
            value_and_grad,
            starts[i],
            jac=True,
            method="L-BFGS-B",
            bounds=[(0.0, 1.0)] * starts.shape[1],
            options={"maxiter": max_iterations, "ftol": 1e-9, "gtol": 1e-9},
        )
        is_better = found.fun < values[i]
        return (np.clip(found.x, 0.0, 1.0), found.fun) if is_better else (starts[i], values[i])

    # Each start has gradients of its own to wait for, which other threads can compute meanwhile.
    ends = in_threads(refined, range(len(starts)))
    return np.array([x for x, _ in ends]), np.array([value for _, value in ends])


class LimitedCost(Differentiable, Protocol):
    """A loss with a gradient, of points that also have a conductance with one."""

    def conductance(self, x: ArrayLike) -> FloatArray:
        """Mean conductances ``(n,)`` in µS at points ``(n, d)``."""

    def conductance_and_grad(self, x: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Mean conductances ``(n,)`` in µS and gradients ``(n, d)`` at points ``(n, d)``."""


def under_limits(
    engine: LimitedCost, x0: FloatArray, limits: ArrayLike, max_iterations: int = 25
) -> list[FloatArray]:
    """The lowest loss under each of several limits of the conductance, by SLSQP.

    Args:
        engine: the loss.
        x0: the point ``(d,)`` from which the first one is looked for; each other from the one
            before.
        limits: mean conductances in µS, descending ``(n,)``.
        max_iterations: most iterations of each.

    Returns:
        n points ``(d,)``. On the reference problem four times as many iterations find losses that
        are up to 1 % lower.
    """

    def logarithm_of_loss(x: FloatArray) -> tuple[float, FloatArray]:
        value, gradient = engine.value_and_grad(x[None])
        return float(np.log(value[0])), gradient[0] / value[0]

    def below(limit: float) -> dict[str, object]:
        # SLSQP asks for the value and for its gradient at the same points.
        @lru_cache(maxsize=4)
        def evaluated(x: bytes) -> tuple[float, FloatArray]:
            value, gradient = engine.conductance_and_grad(np.frombuffer(x)[None])
            return float(np.log(limit / value[0])), -gradient[0] / value[0]

        return {
            "type": "ineq",
            "fun": lambda x: evaluated(x.tobytes())[0],
            "jac": lambda x: evaluated(x.tobytes())[1],
        }

    points = [x0]
    for limit in np.asarray(limits).tolist():
        found = minimize(
            logarithm_of_loss, points[-1], jac=True, method="SLSQP", constraints=below(limit),
            bounds=[(0.0, 1.0)] * len(x0), options={"maxiter": max_iterations, "ftol": 1e-5},
        )  # fmt: skip
        points.append(np.clip(found.x, 0.0, 1.0))
    return points[1:]


def multi_start(
    engine: Differentiable, starts: ArrayLike, steps: int
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Descends from many starts in one batch, by Adam projected onto the cube.

    The step size falls along a cosine from 5 % to 0.2 % of the cube's edge.

    Source: D. Kingma and J. Ba, "Adam: a method for stochastic optimization", 2015.

    Args:
        engine: the loss.
        starts: points ``(n, d)``.
        steps: number of steps.

    Yields:
        the points ``(n, d)`` before each step, and finally after the last, with their values
        ``(n,)``.
    """
    x = np.atleast_2d(np.array(starts, dtype=np.float64))
    mean, square = np.zeros_like(x), np.zeros_like(x)
    progress = np.arange(steps) / max(1, steps - 1)
    sizes = _LAST_STEP + (_FIRST_STEP - _LAST_STEP) * 0.5 * (1 + np.cos(np.pi * progress))
    for step, size in enumerate(sizes, 1):
        values, gradient = engine.value_and_grad(x)
        yield x.copy(), values
        # Where conductances are clipped, a gradient can be infinite; that start stays.
        gradient = np.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        mean = _DECAY_MEAN * mean + (1 - _DECAY_MEAN) * gradient
        square = _DECAY_SQUARE * square + (1 - _DECAY_SQUARE) * gradient**2
        direction = (mean / (1 - _DECAY_MEAN**step)) / (
            np.sqrt(square / (1 - _DECAY_SQUARE**step)) + 1e-12
        )
        x = np.clip(x - size * direction, 0.0, 1.0)
    yield x.copy(), engine.value_and_grad(x)[0]
