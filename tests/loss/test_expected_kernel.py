"""The compiled formulas against their statement in torch, and derivatives against differences."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from expected_problems import PROBLEMS, device_problem
from numpy.typing import NDArray

from wpo_optuna.loss.expected import ExpectedEngine
from wpo_optuna.loss.expected_gradient import expected_tnmse_and_gradient
from wpo_optuna.loss.expected_kernel import expected_tnmse
from wpo_optuna.loss.expected_tables import ExpectedTables
from wpo_optuna.loss.expected_torch import expected_tnmse as expected_tnmse_in_torch
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

FloatArray = NDArray[np.float64]

# One of each kind of arithmetic: compensations, several span nodes, input noise, more devices.
KINDS = {
    "reference": PROBLEMS["reference"],
    "heavy-tailed weights": PROBLEMS["heavy-tailed weights"],
    "ReRAM of Wan": PROBLEMS["ReRAM of Wan"],
    "per column, 64 rows": PROBLEMS["per column, 64 rows"],
    "exact reference": PROBLEMS["exact reference"],
    "no compensation": PROBLEMS["no compensation"],
    "three pairs": PROBLEMS["three pairs"],
    "weights beyond the read-out's table": PROBLEMS["Hermes, one device"],
    "moments of two terms": PROBLEMS["moments of two terms"],
    "input noise": lambda: device_problem(forward={"inp_noise": 0.01}),
    "tiles of 8 columns": lambda: _tiles_of_8_columns(),
}


def _tiles_of_8_columns() -> WeightProgrammingProblem:
    problem = device_problem(rows=64)
    problem.rpu_config.mapping.max_output_size = 8
    return device_problem(rows=64, rpu_config=problem.rpu_config)


@cache
def engine_for(kind: str) -> ExpectedEngine:
    return ExpectedEngine(KINDS[kind]())


def uneven_strategies(engine: ExpectedEngine, n: int) -> tuple[FloatArray, FloatArray]:
    """Coefficients and curves that no symmetry makes equal at two knots.

    Where two knots carry the same largest weight, its derivative is not defined.
    """
    rng = np.random.default_rng(1)
    decoded = engine.problem.hypercube.decode_arrays(
        rng.random((n, engine.problem.hypercube.dimension))
    )
    f = decoded.f * (1 + 0.01 * rng.random(decoded.f.shape))
    low, high = engine.problem.g_min, engine.problem.g_max
    curves = np.clip(decoded.g + 0.01 * rng.standard_normal(decoded.g.shape), low, high)
    return np.stack([f, -f], axis=2).reshape(n, -1), curves


def in_torch(
    coefficients: FloatArray, curves: FloatArray, tables: ExpectedTables
) -> tuple[FloatArray, FloatArray, FloatArray]:
    a = torch.from_numpy(coefficients).requires_grad_()
    g = torch.from_numpy(curves).requires_grad_()
    values = expected_tnmse_in_torch(a, g, tables)
    in_a, in_g = torch.autograd.grad(values.sum(), (a, g))
    return values.detach().numpy(), in_a.numpy(), in_g.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_kernel_and_gradient_are_those_of_the_formulas_in_torch(kind: str) -> None:
    engine = engine_for(kind)
    coefficients, curves = uneven_strategies(engine, 12)
    for tables in engine._tables:
        values, in_a, in_g = in_torch(coefficients, curves, tables)
        compiled, compiled_a, compiled_g = expected_tnmse_and_gradient(coefficients, curves, tables)
        # The kernel interpolates log Φ, which torch computes.
        np.testing.assert_allclose(expected_tnmse(coefficients, curves, tables), compiled, 1e-12)
        np.testing.assert_allclose(compiled, values, rtol=2e-6)
        for mine, theirs in ((compiled_a, in_a), (compiled_g, in_g)):
            size = np.abs(theirs).reshape(12, -1).max(axis=1)
            size = size.reshape(12, *(1,) * (theirs.ndim - 1))
            np.testing.assert_allclose(mine / size, theirs / size, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_limit_of_finite_differences(kind: str) -> None:
    engine = engine_for(kind)
    rng = np.random.default_rng(2)
    dimension = engine.problem.hypercube.dimension
    x = rng.uniform(0.05, 0.95, (8, dimension))
    direction = rng.standard_normal((8, dimension))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    # Tables are interpolated linearly: a longer step would cross their kinks.
    step = 1e-8
    ahead, _ = engine.value_and_grad(x + step * direction)
    behind, _ = engine.value_and_grad(x - step * direction)
    _, gradient = engine.value_and_grad(x)
    differences = (ahead - behind) / (2 * step)
    expected = (gradient * direction).sum(axis=1)
    deviations = np.abs(expected - differences) / np.linalg.norm(gradient, axis=1)
    assert np.median(deviations) < 1e-6, deviations
    # Where programming errors are as large as the weights, the rule for the largest programmed
    # weight is accurate to a few parts in 10^5, and its range counts as constant.
    assert deviations.max() < 1e-4, deviations


@pytest.mark.parametrize("kind", ["reference", "no compensation", "tiles of 8 columns"])
def test_value_beside_the_gradient_is_the_value(kind: str) -> None:
    engine = engine_for(kind)
    x = np.random.default_rng(3).random((20, engine.problem.hypercube.dimension))
    # The hypercube holds weights in single precision, the gradient does not.
    np.testing.assert_allclose(engine.value_and_grad(x)[0], engine.tnmse(x), rtol=1e-5)


def test_a_candidates_value_does_not_depend_on_its_neighbours() -> None:
    engine = engine_for("reference")
    x = np.random.default_rng(4).random((50, engine.problem.hypercube.dimension))
    together = engine.tnmse(x)
    np.testing.assert_array_equal(together[::-1], engine.tnmse(x[::-1]))
    np.testing.assert_array_equal(together[7], engine.tnmse(x[7])[0])
