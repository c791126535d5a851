"""The engine on aihwkit's own tile: the reference's loss, and right where the reference is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from aihwkit.inference import (
    GlobalDriftCompensation,
    PCMLikeNoiseModel,
    ReRamCMONoiseModel,
    SinglePairConductanceConverter,
)
from aihwkit.inference.compensation.drift import (
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
)
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType
from aihwkit_reference import reference_losses
from numpy.typing import NDArray
from small_problems import seedable_rpu_config, small_problem, small_rpu_config

from wpo_optuna.loss.reference import ReferenceEngine
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

DAY = 86400.0
MakeRPUConfig = Callable[..., InferenceRPUConfig]


def single_pair(g_min: float, g_max: float) -> SinglePairConductanceConverter:
    return SinglePairConductanceConverter(g_min=g_min, g_max=g_max)


# Noise model, compensation, settings of a noisy periphery, and the problem's options.
VARIED: dict[str, tuple[Any, Any, dict[str, Any], dict[str, Any]]] = {
    "pcm": (PCMLikeNoiseModel(), GlobalDriftCompensation(), {}, {"t_steps": [1.0, 30 * DAY]}),
    "one asymmetric pair, per column": (
        PCMLikeNoiseModel(prog_noise_scale=2.0),
        PerColumnDriftCompensation(),
        {"out_noise": 0.02},
        {"f_lst": [None], "symmetric": False, "use_max_kw": True},
    ),
    "reram of metal oxide, exact reference": (
        ReRamCMONoiseModel(),
        GlobalDriftCompensationWithExactReference(),
        {},
        {"t_steps": [DAY], "g_converter_baseline": single_pair(9.0, 88.199997)},
    ),
    "coarse converters, managed bounds": (
        PCMLikeNoiseModel(),
        GlobalDriftCompensation(),
        {
            "inp_res": 32,
            "out_res": 32,
            "out_bound": 1.0,
            "noise_management": NoiseManagementType.ABS_MAX,
            "bound_management": BoundManagementType.ITERATIVE,
        },
        {"t_steps": [3600.0], "g_converter_baseline": single_pair(2.0, 25.0)},
    ),
}


def varied_problem(name: str, make_rpu_config: MakeRPUConfig) -> WeightProgrammingProblem:
    noise_model, compensation, periphery, options = VARIED[name]
    settings = periphery if make_rpu_config is small_rpu_config else {}
    return small_problem(
        rpu_config=make_rpu_config(noise_model, compensation, **settings), **options
    )


def some_point(problem: WeightProgrammingProblem) -> NDArray[np.float64]:
    return np.random.default_rng(11).random(problem.hypercube.dimension)


@pytest.mark.parametrize("name", VARIED)
def test_with_a_seedable_periphery_every_draw_equals_the_references(name: str) -> None:
    problem = varied_problem(name, seedable_rpu_config)
    x, baseline, seeds = some_point(problem), 0.3, [0, 1, 2]
    engine = ReferenceEngine(problem)
    ours = [float(problem.loss(engine.tnmse(x, seed), baseline)[0]) for seed in seeds]
    theirs = reference_losses(problem, x, seeds, baseline)
    assert np.ptp(theirs) > 0
    # The reference adds up in single precision.
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def standard_errors_apart(problem: WeightProgrammingProblem, first_seed: int) -> float:
    """Difference between the means of 200 losses of each, in its standard error."""
    x, baseline, n = some_point(problem), 0.3, 200
    seeds = list(range(first_seed, first_seed + 2 * n))
    engine = ReferenceEngine(problem)
    tnmse = np.concatenate([engine.tnmse(x, seed) for seed in seeds[:n]])
    ours = problem.loss(tnmse, baseline)
    theirs = reference_losses(problem, x, seeds[n:], baseline)
    variance = (ours.var(ddof=1) + theirs.var(ddof=1)) / n
    return float((ours.mean() - theirs.mean()) / np.sqrt(variance))


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIED)
def test_means_of_200_draws_agree_with_the_references_within_3_standard_errors(name: str) -> None:
    # The tile's own noise cannot be seeded: equal means are 3 standard errors apart once in 370
    # times. A second, independent set of draws decides then, so that the four problems together
    # give a false alarm once in 34 000 runs (4 * 0.0027^2).
    problem = varied_problem(name, small_rpu_config)
    if abs(standard_errors_apart(problem, first_seed=0)) > 3:
        assert abs(standard_errors_apart(problem, first_seed=1000)) <= 3


def test_equal_seeds_repeat_all_noise_but_that_inside_the_tile() -> None:
    problem = small_problem(rpu_config=seedable_rpu_config())
    x, engine = some_point(problem), ReferenceEngine(problem)
    assert engine.tnmse(x, seed=4) == engine.tnmse(x, seed=4)
    assert engine.tnmse(x, seed=4) != engine.tnmse(x, seed=5)
    assert engine.tnmse(x) == engine.tnmse(x) == engine.tnmse(x, seed=problem.seed)
    assert ReferenceEngine(problem, seed=4).tnmse(x) == engine.tnmse(x, seed=4)
    converter = problem.g_converter_baseline
    draws, again, others = (engine.tnmse_of(converter, 6, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(draws, again)
    # Neighbouring seeds share no draw.
    assert len({*draws, *others}) == 12

    engine = ReferenceEngine(small_problem(rpu_config=small_rpu_config(out_noise=0.5)))
    assert engine.tnmse(x, seed=4) != engine.tnmse(x, seed=4)
