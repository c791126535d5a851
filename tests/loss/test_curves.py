"""Curves in a batch against numpy, one curve and one place at a time."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from wpo_optuna.loss.curves import evaluate_curves, signed_sum


@given(
    n=st.integers(1, 4),
    n_curves=st.integers(1, 6),
    n_knots=st.integers(2, 23),
    seed=st.integers(0, 2**32 - 1),
)
def test_curves_agree_with_numpy_interpolation(
    n: int, n_curves: int, n_knots: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    curves = 25 * torch.rand(n, n_curves, n_knots, generator=generator)
    u = 2 * torch.rand(n, 37, generator=generator) - 1
    u[:, :3] = torch.tensor([-1.0, 0.0, 1.0])
    values = evaluate_curves(curves, u)
    knots = np.linspace(-1, 1, n_knots)
    expected = [
        [np.interp(u[i].double(), knots, curves[i, c].double()) for c in range(n_curves)]
        for i in range(n)
    ]
    np.testing.assert_allclose(values, expected, atol=2e-4)


def test_the_ends_of_a_curve_are_its_outermost_knots() -> None:
    curves = torch.tensor([[[3.0, 1.0, 4.0, 1.5]]])
    values = evaluate_curves(curves, torch.tensor([[-1.0, 1.0]]))
    assert values.flatten().tolist() == [3.0, 1.5]


def test_one_strategy_serves_many_matrices_and_one_matrix_many_strategies() -> None:
    curves, u = torch.rand(3, 2, 5), 2 * torch.rand(3, 7) - 1
    one_strategy, one_matrix = evaluate_curves(curves[:1], u), evaluate_curves(curves, u[:1])
    for i in range(3):
        assert torch.equal(one_strategy[i], evaluate_curves(curves[:1], u[i : i + 1])[0])
        assert torch.equal(one_matrix[i], evaluate_curves(curves[i : i + 1], u[:1])[0])


def test_nan_stays_nan_and_leaves_the_other_places_alone() -> None:
    u = torch.tensor([[0.3, float("nan"), -0.7]])
    values = evaluate_curves(torch.rand(1, 2, 5), u)
    assert values.isnan().tolist() == [[[False, True, False]] * 2]


def test_curves_are_differentiable_in_knots_and_place() -> None:
    curves = torch.rand(2, 3, 6, dtype=torch.float64, requires_grad=True)
    # Away from the knots, where the slope jumps.
    u = torch.tensor([[-0.91, -0.23, 0.55], [0.13, 0.77, -0.5]], dtype=torch.float64)
    assert torch.autograd.gradcheck(evaluate_curves, (curves, u.requires_grad_()))


def test_signed_sum_adds_the_differences_of_pairs_times_their_factors() -> None:
    conductances, f = torch.rand(4, 6, 5, 3), torch.rand(4, 3)
    expected = sum(
        f[:, p, None, None] * (conductances[:, 2 * p] - conductances[:, 2 * p + 1])
        for p in range(3)
    )
    assert torch.allclose(signed_sum(conductances, f), expected, atol=1e-6)
