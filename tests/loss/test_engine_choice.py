"""Which engine a study gets, and the comparison with drawn noise that it rests on."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings

import numpy as np
import pytest
from aihwkit.inference import DualPairConductanceConverter, ReRamCMONoiseModel
from aihwkit.simulator.configs import (
    InferenceRPUConfig,
    TorchInferenceRPUConfig,
    TorchInferenceRPUConfigIRDropT,
)
from aihwkit.simulator.parameters import IOParameters, MappingParameter
from analytic_engine import AnalyticEngine
from numpy.typing import ArrayLike, NDArray
from small_problems import small_problem, small_rpu_config

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.engine_choice import (
    EngineWarning,
    SelfCheck,
    check_engine,
    choose_engine,
    drawing_engine,
)
from wpo_optuna.loss.expected import ExpectedEngine
from wpo_optuna.loss.reference import ReferenceEngine
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

WRONG = SelfCheck((0.08, 0.01), (0.005, 0.005), 8)
UNCLEAR = SelfCheck((0.04, 0.01), (0.02, 0.005), 8, compared_with="montecarlo")


class Drawing(AnalyticEngine):
    """Returns given draws over and over."""

    def __init__(self, problem: WeightProgrammingProblem, *draws: float) -> None:
        super().__init__(problem)
        self.draws = draws

    def tnmse(self, x: ArrayLike, seed: int | None = None) -> NDArray[np.float64]:
        return np.full(len(np.atleast_2d(x)), self.draws[0])

    def tnmse_of(self, converter: object, repeats: int = 100, seed: int = 0) -> NDArray[np.float64]:
        return np.resize(self.draws, repeats)


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
    assert len(check.deviations) == 4
    assert check.compared_with == "montecarlo"
    assert check.is_conclusive
    # Milliseconds each.
    assert check.draws <= 100
    assert choose_engine(problem, check=False).self_check is None


@pytest.mark.parametrize(
    ("found", "asked_for", "told", "engine"),
    [
        (
            WRONG,
            None,
            r"deviates by 7\.0% from 8 draws .* aihwkit .*: the next slower",
            "montecarlo",
        ),
        (WRONG, "expected", r"deviates by 7\.0%.*: it is used nevertheless", "expected"),
        (UNCLEAR, None, r"inconclusive.* 8 draws of the montecarlo .* up to 2\.0%", "expected"),
    ],
)
def test_an_engine_that_deviates_is_passed_over_unless_asked_for_but_not_in_silence(
    problem: WeightProgrammingProblem,
    monkeypatch: pytest.MonkeyPatch,
    found: SelfCheck,
    asked_for: str | None,
    told: str,
    engine: str,
) -> None:
    monkeypatch.setattr("wpo_optuna.loss.engine_choice.check_engine", lambda *_: found)
    with pytest.warns(EngineWarning, match=told):
        chosen = choose_engine(problem, asked_for)
    assert (chosen.engine.name, chosen.self_check) == (engine, found)


@pytest.mark.parametrize(
    ("rpu_config", "engine"),
    [
        (TorchInferenceRPUConfig(mapping=MappingParameter(max_input_size=512)), "expected"),
        (small_rpu_config(max_input_size=512, ir_drop=1.0), "expected"),
        # Bound management of the torch tile repeats all inputs together.
        (TorchInferenceRPUConfig(forward=IOParameters(out_bound=0.6)), "montecarlo"),
    ],
    ids=["torch tile", "IR drop", "torch tile with a tight bound"],
)
def test_any_tile_has_a_fast_engine(rpu_config: InferenceRPUConfig, engine: str) -> None:
    problem = small_problem(rpu_config=rpu_config, test_out_features=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error", EngineWarning)
        warnings.filterwarnings("ignore", "rpu_config.forward has out_bound = 0.6")
        chosen = choose_engine(problem)
    assert chosen.engine.name == engine
    assert chosen.self_check is None or chosen.self_check.compared_with == "montecarlo"


def test_hardware_that_no_fast_engine_knows_goes_to_the_tile_with_a_reason_and_its_time() -> None:
    problem = small_problem(
        rpu_config=TorchInferenceRPUConfigIRDropT(mapping=MappingParameter(max_input_size=8))
    )
    assert drawing_engine(problem).name == "aihwkit"
    with pytest.warns(EngineWarning) as told:
        assert choose_engine(problem, n_trials=70).engine.name == "aihwkit"
    (message,) = [str(warning.message) for warning in told]
    reason = "rpu_config.simulator_tile_class = TorchSimulatorTileIRDropT, which aihwkit's own tile"
    assert message.startswith(reason)
    assert re.search(
        r"takes .* for a strategy, about .* for 70 trials .* on one core, and then", message
    )


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
    reference = ReferenceEngine(problem)
    # Deviations of the right engine beyond 2 s.e. + 10 %: practically impossible.
    right = check_engine(ExpectedEngine(problem), reference)
    wrong = check_engine(AnalyticEngine(problem), reference)
    assert right.worst < 0.1
    assert wrong.worst > 0.3
    assert right.compared_with == "aihwkit"
    assert dataclasses.asdict(right).items() <= right.to_json().items()


def test_on_noisy_hardware_the_verdict_repeats() -> None:
    # One draw differs from the next by a tenth to a third.
    noisy_problem = small_problem(
        rpu_config=small_rpu_config(ReRamCMONoiseModel(g_min=5, g_max=88.2)),
        g_converter_baseline=DualPairConductanceConverter([1.0, 1.0], g_min=5.0, g_max=88.2),
    )
    engine, reference = ExpectedEngine(noisy_problem), drawing_engine(noisy_problem)
    first = check_engine(engine, reference)
    assert first == check_engine(engine, reference)
    assert first.draws > 500


@pytest.mark.parametrize(
    ("deviation", "error", "worst", "is_conclusive"),
    [
        (-0.05, 0.005, 0.04, True),
        (0.02, 0.007, 0.006, True),
        (0.02, 0.01, 0.0, False),
        (math.inf, 0.0, math.inf, True),
    ],
)
def test_the_worst_deviation_counts_as_far_as_it_is_certain(
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
        check = check_engine(Drawing(problem, value), Drawing(problem, *drawn))
    assert check.worst == worst
