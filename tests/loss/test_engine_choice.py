"""Which engine a study gets, and the comparison with drawn noise that it rests on."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import numpy as np
import pytest
from aihwkit.inference import DualPairConductanceConverter, PCMLikeNoiseModel, ReRamCMONoiseModel
from analytic_engine import AnalyticEngine
from numpy.typing import ArrayLike, NDArray
from small_problems import small_problem, small_rpu_config
from torch import Tensor

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.engine_choice import (
    EngineWarning,
    choose_engine,
    drawing_engine,
)
from wpo_optuna.loss.expected import ExpectedEngine
from wpo_optuna.loss.monte_carlo import MonteCarloEngine
from wpo_optuna.loss.reference import ReferenceEngine
from wpo_optuna.loss.self_check import SelfCheck, check_engine
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

WRONG = SelfCheck((0.08, 0.01), (0.005, 0.005), 8)
UNCLEAR = SelfCheck((0.04, 0.01), (0.02, 0.005), 8, compared_with="montecarlo")


def replace_check(monkeypatch: pytest.MonkeyPatch, result: SelfCheck) -> None:
    """Makes every self-check find this."""
    monkeypatch.setattr("wpo_optuna.loss.engine_choice.check_engine", lambda *_: result)


class Drawing(AnalyticEngine):
    """Returns given draws over and over, and keeps the seeds."""

    def __init__(self, problem: WeightProgrammingProblem, *draws: float) -> None:
        super().__init__(problem)
        self.draws = draws
        self.seeds: list[int] = []

    def tnmse(self, x: ArrayLike, seed: int | None = None) -> NDArray[np.float64]:
        return np.full(len(np.atleast_2d(x)), self.draws[0])

    def tnmse_of(self, converter: object, repeats: int = 100, seed: int = 0) -> NDArray[np.float64]:
        self.seeds.append(seed)
        return np.resize(self.draws, repeats)


def points_of(problem: WeightProgrammingProblem, n: int) -> NDArray[np.float64]:
    return np.random.default_rng(0).random((n, problem.hypercube.dimension))


# The choice


def test_the_expected_engine_is_taken_where_it_agrees_with_drawn_noise() -> None:
    problem = small_problem(rpu_config=small_rpu_config(max_input_size=512), test_out_features=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error", EngineWarning)
        chosen = choose_engine(problem)
    assert chosen.engine.name == "expected"
    check = chosen.self_check
    assert check is not None
    assert check.worst <= 0.03
    assert len(check.deviations) >= 4
    assert (check.engine, check.compared_with) == ("expected", "montecarlo")
    assert check.is_conclusive
    # Milliseconds each.
    assert check.draws <= 100
    assert choose_engine(problem, check=False).self_check is None


def test_an_engine_that_deviates_is_passed_over_with_a_warning_and_what_was_found(
    problem: WeightProgrammingProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_check(monkeypatch, WRONG)
    with pytest.warns(EngineWarning, match=r"expected engine deviates by 7\.0%.*aihwkit's tile"):
        chosen = choose_engine(problem)
    assert chosen.engine.name == "montecarlo"
    assert chosen.self_check == WRONG


def test_an_engine_asked_for_is_kept_whatever_its_deviation_but_not_in_silence(
    problem: WeightProgrammingProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_check(monkeypatch, WRONG)
    with pytest.warns(EngineWarning, match=r"deviates by 7\.0%.*used nevertheless"):
        chosen = choose_engine(problem, "expected")
    assert (chosen.engine.name, chosen.self_check) == ("expected", WRONG)


def test_a_check_that_tells_nothing_says_so(
    problem: WeightProgrammingProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_check(monkeypatch, UNCLEAR)
    told = r"inconclusive.* 8 draws of the Monte Carlo engine .* up to 2\.0%"
    with pytest.warns(EngineWarning, match=told):
        assert choose_engine(problem).engine.name == "expected"


class MeanDrift(PCMLikeNoiseModel):
    """Couples the devices, which aihwkit's tile alone can simulate."""

    def apply_drift_noise_to_conductance(
        self, g_prog: Tensor, drift_noise_param: Tensor, t_inference: float
    ) -> Tensor:
        return g_prog - 0.01 * g_prog.mean()


@pytest.mark.parametrize(
    "rpu_config", [small_rpu_config(ir_drop=1.0), small_rpu_config(MeanDrift())]
)
def test_hardware_that_no_fast_engine_knows_goes_to_the_tile_with_a_reason(rpu_config: Any) -> None:
    problem = small_problem(rpu_config=rpu_config)
    assert drawing_engine(problem).name == "aihwkit"
    with pytest.warns(EngineWarning, match="aihwkit"):
        assert choose_engine(problem).engine.name == "aihwkit"


def test_noise_is_drawn_by_the_fastest_engine_that_can(problem: WeightProgrammingProblem) -> None:
    assert drawing_engine(problem).name == "montecarlo"
    impossible = small_problem(rpu_config=small_rpu_config(inp_bound=0.4))
    with pytest.raises(InvalidArgument, match="cannot be simulated by aihwkit's tile"):
        drawing_engine(impossible)


def test_an_engine_or_device_that_does_not_exist_is_refused(
    problem: WeightProgrammingProblem,
) -> None:
    with pytest.raises(InvalidArgument, match="device = 'abacus'"):
        choose_engine(problem, device="abacus")
    with pytest.raises(InvalidArgument, match=r"engine = 'expecte'.*did you mean 'expected'"):
        choose_engine(problem, "expecte")


# The check itself


def test_the_self_check_sees_a_wrong_engine_and_passes_a_right_one(
    problem: WeightProgrammingProblem,
) -> None:
    points, reference = points_of(problem, 3), ReferenceEngine(problem)
    # Three deviations of the right engine all beyond 2 s.e. + 10 %: practically impossible.
    right = check_engine(ExpectedEngine(problem), reference, points, draws=50)
    wrong = check_engine(AnalyticEngine(problem), reference, points, draws=50)
    assert right.worst < 0.1
    assert wrong.worst > 0.3
    assert (right.engine, right.compared_with, right.draws) == ("expected", "aihwkit", 50)
    assert dataclasses.asdict(right).items() <= right.to_json().items()


def test_on_noisy_hardware_the_verdict_repeats() -> None:
    # One draw differs from the next by a tenth to a third.
    noisy_problem = small_problem(
        rpu_config=small_rpu_config(ReRamCMONoiseModel(g_min=5, g_max=88.2)),
        g_converter_baseline=DualPairConductanceConverter([1.0, 1.0], g_min=5.0, g_max=88.2),
    )
    points = points_of(noisy_problem, 3)
    engine = ExpectedEngine(noisy_problem)
    first = check_engine(engine, drawing_engine(noisy_problem), points)
    assert first == check_engine(engine, drawing_engine(noisy_problem), points)
    assert first.draws > 500
    # The draws of a true mean; what the seeded ones found must be within their error.
    strategies = noisy_problem.hypercube.decode(points)
    monte_carlo = MonteCarloEngine(noisy_problem)
    true = monte_carlo.tnmse_of(strategies[0].to_converter(), repeats=2000, seed=5).mean()
    assert first.deviations[0] == pytest.approx(engine.tnmse(points)[0] / true - 1, abs=0.06)


@pytest.mark.parametrize(
    ("deviation", "error", "worst", "is_conclusive"),
    [
        (-0.05, 0.005, 0.04, True),
        (0.02, 0.007, 0.006, True),
        (0.02, 0.01, 0.0, False),
        (math.nan, 0.01, math.inf, True),
        (-1.0, math.nan, math.inf, True),
        (0.0, math.inf, math.inf, True),
    ],
)
def test_what_is_not_finite_counts_as_infinite(
    deviation: float, error: float, worst: float, is_conclusive: bool
) -> None:
    # Others that are right do not hide one that is not.
    check = SelfCheck((0.0, deviation), (0.001, error), 8)
    assert check.worst == pytest.approx(worst)
    assert check.is_conclusive == is_conclusive


@pytest.mark.parametrize(
    ("value", "drawn", "worst"),
    [
        (math.inf, (math.inf, math.inf), 0.0),
        (math.inf, (math.inf, 0.1), 0.0),
        (math.inf, (0.1, 0.1), math.inf),
        (0.1, (0.1, math.inf), math.inf),
        (0.1, (0.0, 0.0), math.inf),
        (0.0, (0.0, 0.0), 0.0),
    ],
)
def test_infinite_losses_agree_with_infinite_losses_alone(
    problem: WeightProgrammingProblem, value: float, drawn: tuple[float, ...], worst: float
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check = check_engine(
            Drawing(problem, value), Drawing(problem, *drawn), points_of(problem, 1), draws=4
        )
    assert check.worst == worst
