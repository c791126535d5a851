"""Search along a gradient, on functions whose minimum is known."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from tests.small_problems import small_problem
from wpo_optuna import HypercubeObjective, ProgrammingStrategy, make_engine, strategy_of
from wpo_optuna import polish as polish_study
from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.gradient_search import multi_start, polish


class Rosenbrock:
    """Rosenbrock's valley on the unit cube, its minimum at a given point (d,)."""

    def __init__(self, minimum: NDArray[np.float64]) -> None:
        self.minimum = minimum

    def value_and_grad(self, x: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        y = 2 * (np.asarray(x) - self.minimum) + 1
        steep = y[:, 1:] - y[:, :-1] ** 2
        value = (100 * steep**2 + (1 - y[:, :-1]) ** 2).sum(axis=1)
        gradient = np.zeros_like(y)
        gradient[:, :-1] += -400 * steep * y[:, :-1] - 2 * (1 - y[:, :-1])
        gradient[:, 1:] += 200 * steep
        return value, 2 * gradient


def test_polishing_finds_the_bottom_of_a_curved_valley() -> None:
    valley = Rosenbrock(np.full(4, 0.6))
    x, values = polish(valley, np.random.default_rng(0).random((5, 4)), 500)
    np.testing.assert_allclose(x, 0.6, atol=1e-3)
    assert values == pytest.approx(0, abs=1e-6)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_polishing_never_leaves_the_cube_and_never_makes_a_point_worse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    valley = Rosenbrock(rng.uniform(-0.5, 1.5, 3))  # often outside the cube
    starts = rng.random((3, 3))
    x, values = polish(valley, starts, 30)
    assert ((x >= 0) & (x <= 1)).all()
    assert (values <= valley.value_and_grad(starts)[0]).all()
    np.testing.assert_allclose(values, valley.value_and_grad(x)[0], rtol=1e-9, atol=1e-12)


def test_many_starts_descend_together_inside_the_cube_and_reach_the_minimum() -> None:
    valley = Rosenbrock(np.array([0.4, 0.5]))
    starts = np.random.default_rng(1).random((16, 2))
    history = list(multi_start(valley, starts, 300))
    assert len(history) == 301
    np.testing.assert_array_equal(history[0][0], starts)
    for x, values in history:
        assert ((x >= 0) & (x <= 1)).all()
        np.testing.assert_allclose(values, valley.value_and_grad(x)[0])
    assert history[-1][1].min() < 1e-3
    assert np.median(history[-1][1]) < np.median(history[0][1])


def test_an_undefined_gradient_stops_its_own_start_alone() -> None:
    class Broken(Rosenbrock):
        def value_and_grad(self, x: ArrayLike) -> tuple:
            value, gradient = super().value_and_grad(x)
            gradient[0] = np.nan
            return value, gradient

    starts = np.array([[0.2, 0.2], [0.9, 0.1]])
    *_, (x, _) = multi_start(Broken(np.array([0.4, 0.5])), starts, 50)
    np.testing.assert_array_equal(x[0], starts[0])
    assert np.abs(x[1] - starts[1]).max() > 0.01


def test_an_optuna_study_of_ones_own_is_polished_once_for_its_trials_and_gives_strategies() -> None:
    problem = small_problem()
    objective = HypercubeObjective(problem, make_engine("expected", problem))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=8)
    sampled = study.best_trial
    polish_study(study, objective)
    assert 8 < len(study.trials) <= 13
    best = study.best_trial
    assert best.value is not None
    assert sampled.value is not None
    assert best.value < 0 < sampled.value  # better than the baseline by the margin at last

    strategy = strategy_of(objective, best)
    assert isinstance(strategy, ProgrammingStrategy)
    assert [*strategy.f_lst] == best.user_attrs["f_lst"]
    assert [[*curve] for curve in strategy.g_lst] == best.user_attrs["g_lst"]
    (tnmse,) = objective.engine.tnmse([objective.point(best.params)])
    assert tnmse == pytest.approx(best.user_attrs["tnmse"], rel=1e-6)

    n_trials = len(study.trials)
    polish_study(study, objective)
    assert len(study.trials) == n_trials
    study.optimize(objective, n_trials=1)
    polish_study(study, objective)
    assert len(study.trials) > n_trials + 1


def test_what_cannot_be_polished_is_refused_with_what_would_be_right() -> None:
    problem = small_problem()
    drawing = HypercubeObjective(problem, make_engine("aihwkit", problem), baseline=0.1)
    study = optuna.create_study()
    with pytest.raises(InvalidArgument, match="has no completed trial of this objective"):
        polish_study(study, drawing)
    study.optimize(drawing, n_trials=1)
    with pytest.raises(InvalidArgument, match="engine = 'aihwkit': it has no gradient"):
        polish_study(study, drawing)
