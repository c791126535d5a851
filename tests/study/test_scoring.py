"""Scores on fresh noise: intervals that hold, and draws that are fresh."""

from __future__ import annotations

import json

import numpy as np
import pytest
from aihwkit.inference import PCMLikeNoiseModel
from small_problems import small_problem, small_rpu_config
from torch import Tensor

from wpo_optuna import make_engine, run_study
from wpo_optuna.errors import WeightProgrammingError
from wpo_optuna.loss.reference import ReferenceEngine
from wpo_optuna.strategy import ProgrammingStrategy
from wpo_optuna.study.estimate import RELATIVE_WIDTH, Estimate, distinct, score
from wpo_optuna.study.scoring import Finalist, Scores, comparable, winner_among


class NormalDraws:
    """Stands for an engine whose draws are normal with a known mean."""

    def __init__(self, mean: float, spread: float) -> None:
        self.mean, self.spread = mean, spread
        self.seeds: list[int] = []
        self.problem = small_problem()

    def tnmse_of(self, converter: object, repeats: int, seed: int) -> np.ndarray:
        self.seeds.append(seed)
        return np.random.default_rng(seed).normal(self.mean, self.spread, repeats)


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        estimate = Estimate.of(rng.normal(2.0, 0.5, 10))
        covered += estimate.low <= 2.0 <= estimate.high
    # Binomial(1000, 0.95): outside 920 .. 980 with probability below 3e-5.
    assert 920 <= covered <= 980


@pytest.mark.parametrize("spread", [0.001, 0.02, 0.05])
def test_scoring_draws_until_the_interval_is_narrower_than_one_percent(spread: float) -> None:
    engine = NormalDraws(1.0, spread)
    estimate = score(engine, converter=None, seed=3)
    assert estimate.relative_width < RELATIVE_WIDTH


def test_scoring_gives_up_after_a_bounded_number_of_draws() -> None:
    assert score(NormalDraws(1.0, 5.0), converter=None, seed=3).draws == 400


def test_no_round_of_a_score_repeats_the_seed_of_another() -> None:
    engine = NormalDraws(1.0, 0.05)
    score(engine, converter=None, seed=3)
    score(engine, converter=None, seed=4)
    assert len(engine.seeds) > 2
    assert len(set(engine.seeds)) == len(engine.seeds)


@pytest.mark.parametrize("mean", [np.inf, np.nan])
def test_a_score_that_is_no_number_is_a_failure_that_names_the_noise_model(mean: float) -> None:
    with pytest.raises(WeightProgrammingError, match="not finite: the noise model PCMLikeNoiseMod"):
        score(NormalDraws(mean, 1.0), converter=None, seed=0)


def test_scores_survive_json() -> None:
    estimate = Estimate.of(np.array([0.1, 0.2, 0.15]))
    scores = Scores(
        7, 2, (Finalist(3, 0.1, estimate), Finalist(1, 0.2, estimate)), estimate, estimate
    )
    assert Scores.from_json(json.loads(json.dumps(scores.to_json()))) == scores


def strategy(f: float, g: float) -> ProgrammingStrategy:
    return ProgrammingStrategy((f,), ((g, 5.0, 0.0), (0.0, 5.0, g)), 0.0, 25.0)


def test_distinct_strategies_are_the_first_of_each_kind_in_order() -> None:
    strategies = [
        strategy(1.0, 10.0),
        strategy(1.0, 10.1),  # 0.1 of 25 µS: the same
        strategy(1.0, 12.0),
        strategy(1.5, 10.0),
        strategy(1.0, 12.05),
    ]
    assert distinct(strategies, 5) == [0, 2, 3]
    assert distinct(strategies, 2) == [0, 2]


def test_the_same_strategy_with_its_pairs_exchanged_has_the_same_loss_and_is_no_other_one() -> None:
    problem = small_problem(f_lst=[None, None, 1.0], nbins=3)
    engine = make_engine("expected", problem)
    x = np.random.default_rng(3).random((20, problem.hypercube.dimension))
    for strategy, tnmse in zip(problem.hypercube.decode(x), engine.tnmse(x), strict=True):
        normal = comparable(strategy, problem)
        assert normal.f_lst[0] == 1.0
        assert engine.tnmse_of(normal.to_converter(), 1)[0] == pytest.approx(tnmse, rel=1e-9)
        pairs = list(zip(strategy.f_lst, strategy.g_lst[::2], strategy.g_lst[1::2], strict=True))
        f_lst, *_ = zip(*reversed(pairs), strict=True)
        g_lst = [curve for _, plus, minus in reversed(pairs) for curve in (plus, minus)]
        exchanged = ProgrammingStrategy([3 * f for f in f_lst], g_lst, 0.0, 25.0)
        assert distinct([normal, comparable(exchanged, problem)], 2) == [0]


def test_pairs_keep_their_places_where_the_noise_model_may_tell_them_apart() -> None:
    class OnePairIsBetter(PCMLikeNoiseModel):
        def apply_programming_noise(self, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
            return weights, []

    problem = small_problem(rpu_config=small_rpu_config(OnePairIsBetter()))
    found = problem.hypercube.decode(np.zeros(problem.hypercube.dimension))
    assert found.f_lst == (1.0, 0.1)
    assert comparable(found, problem) == found
    assert comparable(found, small_problem()).f_lst == (1.0, 10.0)


def finalist(number: int, tnmse_of_engine: float, mean: float, error: float = 0.002) -> Finalist:
    half = 1.96 * error
    return Finalist(number, tnmse_of_engine, Estimate(mean, mean - half, mean + half, 10**6))


def test_a_clearly_lower_score_wins_whatever_the_engine_said() -> None:
    finalists = [finalist(0, 0.98, 1.00), finalist(1, 0.99, 0.98), finalist(2, 1.00, 1.01)]
    assert winner_among(finalists, engine_has_noise=False) == 1
    assert winner_among(finalists, engine_has_noise=True) == 1


def test_scores_that_noise_alone_tells_apart_leave_the_choice_to_the_expectation() -> None:
    finalists = [finalist(0, 1.03, 1.02), finalist(1, 0.99, 1.000), finalist(2, 0.98, 1.003)]
    assert winner_among(finalists, engine_has_noise=False) == 2
    assert winner_among(finalists, engine_has_noise=True) == 1


def test_equal_finalists_have_the_same_winner_each_time_they_are_scored() -> None:
    """Over 200 scorings of five equal finalists another one wins once, not 160 times."""
    rng = np.random.default_rng(5)
    winners = []
    for _ in range(200):
        finalists = [
            Finalist(i, 1 + 1e-4 * i, Estimate.of(rng.normal(1.0, 0.02, 64))) for i in range(5)
        ]
        winners.append(winner_among(finalists, engine_has_noise=False))
    assert np.count_nonzero(winners) <= 3


def test_the_standard_error_is_that_of_the_mean() -> None:
    draws = np.random.default_rng(0).normal(1.0, 0.1, 30)
    assert Estimate.of(draws).standard_error == pytest.approx(draws.std(ddof=1) / np.sqrt(30))


def test_scores_know_what_winner_and_baseline_cost_to_read() -> None:
    """Against aihwkit's own tile: 8 draws of a tenth of a per cent each, tolerated one per cent."""
    problem = small_problem()
    result = run_study(
        problem, n_trials=20, storage="memory", tracking_uri=False, finalists=1, self_check=False,
        polish=False,
    )  # fmt: skip
    scores = result.scores
    tile = ReferenceEngine(problem)
    assert scores.conductance is not None
    for told, converter in zip(
        scores.conductance, (result.converter, problem.g_converter_baseline), strict=True
    ):
        assert told == pytest.approx(tile.conductance_of(converter, 8, seed=3).mean(), rel=0.01)
    assert scores.metrics()["winner_conductance_us"] == scores.conductance[0]
    assert Scores.from_json(scores.to_json()) == scores
