"""The Monte Carlo engine: its numbers, where they come from, and what it refuses."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from aihwkit.inference import GlobalDriftCompensation, PCMLikeNoiseModel
from aihwkit.inference.converter.conductance import (
    CustomPairConductanceConverter,
    SinglePairConductanceConverter,
)
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfigIRDropT
from aihwkit.simulator.parameters import MappingParameter
from loss_agreement import (
    DEVICES,
    PERIPHERY,
    comparison_problem,
)
from numpy.typing import NDArray
from small_problems import COLUMNS, ROWS, small_problem, small_rpu_config
from torch import Tensor

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss import make_engine
from wpo_optuna.loss.monte_carlo import MonteCarloEngine
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem


def random_points(problem: WeightProgrammingProblem, n: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).random((n, problem.hypercube.dimension))


def odd_problem(devices: str) -> WeightProgrammingProblem:
    """Sizes that no vector unit divides, with input noise and bound management."""
    periphery = PERIPHERY | {"out_bound": 0.4, "inp_noise": 0.02}
    rpu_config = comparison_problem(devices, periphery=periphery).rpu_config
    rpu_config.mapping.max_input_size = 119
    return comparison_problem(devices, n_pairs=3, rpu_config=rpu_config, test_out_features=27)


@pytest.mark.parametrize("devices", ["PCM with a drift model", "Hermes, two devices"])
def test_a_value_depends_on_strategy_and_seed_alone(devices: str) -> None:
    # A resumed study meets other batches than one that was never interrupted. The tile is so large
    # that 40 candidates are several chunks.
    problem = odd_problem(devices)
    x = random_points(problem, 40)
    whole = MonteCarloEngine(problem, seed=5).tnmse(x)
    assert len(set(whole)) == 40
    engine = MonteCarloEngine(problem)
    shuffled = np.random.default_rng(1).permutation(40)
    assert np.array_equal(engine.tnmse(x[shuffled], seed=5), whole[shuffled])
    assert engine.tnmse(x[7], seed=5).tolist() == [whole[7]]
    assert engine.tnmse(x[:0]).shape == (0,)


def test_draws_of_a_converter_begin_with_that_of_its_point(
    problem: WeightProgrammingProblem,
) -> None:
    engine = MonteCarloEngine(problem)
    x = random_points(problem, 1)
    converter = problem.hypercube.decode(x[0]).to_converter()
    draws = engine.tnmse_of(converter, 900, seed=11)
    assert draws.shape == (900,)
    assert len(set(draws)) == 900
    assert draws[0] == engine.tnmse(x, seed=11)[0]
    assert np.array_equal(engine.tnmse_of(converter, 5, seed=11), draws[:5])


@pytest.mark.parametrize("engine_name", ["montecarlo", "aihwkit", "expected"])
def test_a_mean_conductance_is_that_of_the_devices_alone(engine_name: str) -> None:
    # Before drift and without noise, a pair of devices holds the weight and a common offset.
    noiseless = PCMLikeNoiseModel(prog_noise_scale=0.0, read_noise_scale=0.0, drift_scale=0.0)
    problem = small_problem(rpu_config=small_rpu_config(noiseless, max_output_size=3))
    engine: Any = make_engine(engine_name, problem)
    single = SinglePairConductanceConverter(g_min=2.0, g_max=25.0)
    tiles = problem.test_weights.abs().split([3, 3, 2], dim=1)
    of_tiles = [4 + 23 * tile.mean() / tile.max() for tile in tiles]
    wanted = float(np.average(of_tiles, weights=[3, 3, 2]))
    np.testing.assert_allclose(engine.conductance_of(single, 2), [wanted] * 2, rtol=1e-3)
    x = random_points(problem, 3)
    converter = problem.hypercube.decode(x[1]).to_converter()
    assert engine.conductance(x)[1] == pytest.approx(engine.conductance_of(converter, 1)[0], 1e-3)


@pytest.mark.parametrize("engine_name", ["montecarlo", "aihwkit"])
def test_the_weights_that_act_have_the_errors_of_the_same_draws(engine_name: str) -> None:
    # On the tile, a perfect periphery has no noise that cannot be seeded.
    problem = small_problem(rpu_config=small_rpu_config(is_perfect=True, max_output_size=3))
    engine: Any = make_engine(engine_name, problem)
    converter = problem.hypercube.decode(random_points(problem, 1)[0]).to_converter()
    weights = engine.draw_weights(converter, 5, seed=2)
    assert weights.shape == (5, len(problem.t_steps), ROWS, COLUMNS)
    errors = (weights - problem.test_weights) / problem.max_abs_weight
    np.testing.assert_allclose(
        100 * (errors**2).mean(dim=(1, 2, 3)), engine.tnmse_of(converter, 5, seed=2), rtol=1e-5
    )


def test_the_seed_decides_and_is_the_problems_unless_given(
    problem: WeightProgrammingProblem,
) -> None:
    x = random_points(problem, 3)
    own = MonteCarloEngine(problem).tnmse(x)
    assert np.array_equal(MonteCarloEngine(problem, seed=problem.seed).tnmse(x), own)
    engine = MonteCarloEngine(problem, seed=1)
    assert np.array_equal(engine.tnmse(x, seed=problem.seed), own)
    # An odd seed in between does not change what follows.
    assert not np.isin(engine.tnmse(x), own).any()
    assert np.array_equal(engine.tnmse(x, seed=problem.seed), own)


@pytest.mark.parametrize("engine_name", ["montecarlo", "aihwkit"])
def test_global_generators_stay_as_they_are(
    problem: WeightProgrammingProblem, engine_name: str
) -> None:
    before = generator_states()
    engine = make_engine(engine_name, problem)
    engine.tnmse(random_points(problem, 3))
    engine.tnmse_of(problem.g_converter_baseline, 2)
    assert generator_states() == before


def generator_states() -> bytes:
    return pickle.dumps((torch.get_rng_state().numpy(), np.random.get_state(), random.getstate()))  # noqa: NPY002


def test_a_strategy_that_cannot_hold_weights_is_infinitely_bad() -> None:
    flat = [[5.0] * 5] * 2
    converter = CustomPairConductanceConverter([1.0], flat, 25.0, 0.0, invertibility_test=False)
    assert MonteCarloEngine(small_problem()).tnmse_of(converter, 3).tolist() == [np.inf] * 3


class DrawsByShape(PCMLikeNoiseModel):
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        return g_target + 0.3 * torch.randn(g_target.shape)


class DrawsForColumns(PCMLikeNoiseModel):
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        return g_target + 0.3 * torch.randn_like(g_target).mean(dim=0, keepdim=True)


class DriftsByTheMean(PCMLikeNoiseModel):
    def apply_drift_noise_to_conductance(
        self, g_prog: Tensor, drift_noise_param: Tensor, t_inference: float
    ) -> Tensor:
        return g_prog - 0.01 * g_prog.mean()


class ProgramsWeights(PCMLikeNoiseModel):
    def apply_programming_noise(self, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
        return super().apply_programming_noise(weights)


class HalvingCompensation(GlobalDriftCompensation):
    """A subclass may do anything."""


ALONE = "does not treat each device alone, or does not draw its random numbers by torch.randn_like"
REFUSED: list[tuple[InferenceRPUConfig, str]] = [
    (small_rpu_config(out_noise_std=0.1), "rpu_config.forward has out_noise_std = 0.1"),
    (small_rpu_config(compensation=HalvingCompensation()), "drift_compensation = HalvingComp"),
    (
        TorchInferenceRPUConfigIRDropT(mapping=MappingParameter(max_input_size=ROWS)),
        "simulator_tile_class = TorchSimulatorTileIRDropT",
    ),
    (small_rpu_config(DrawsByShape()), f"noise_model = DrawsByShape {ALONE}"),
    (small_rpu_config(DrawsForColumns()), f"noise_model = DrawsForColumns {ALONE}"),
    (small_rpu_config(DriftsByTheMean()), f"noise_model = DriftsByTheMean {ALONE}"),
    (small_rpu_config(ProgramsWeights()), "ProgramsWeights overrides apply_programming_noise"),
]


@pytest.mark.parametrize(("rpu_config", "named"), REFUSED, ids=[named for _, named in REFUSED])
def test_what_cannot_be_batched_is_refused_with_the_engine_to_use(
    rpu_config: InferenceRPUConfig, named: str
) -> None:
    problem = small_problem(rpu_config=rpu_config)
    with pytest.raises(InvalidArgument, match=r'use the engine "aihwkit"\.$') as refused:
        make_engine("montecarlo", problem)
    assert named in str(refused.value)
    assert make_engine("aihwkit", problem).tnmse(random_points(problem, 1))[0] > 0


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_named(
    problem: WeightProgrammingProblem, device: str
) -> None:
    with pytest.raises(InvalidArgument, match=f"device = '{device}'"):
        MonteCarloEngine(problem, device=device)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("devices", DEVICES)
def test_a_gpu_gives_the_cpus_values(devices: str) -> None:
    # Both meet the same random numbers; rounding differs, and the ADC's steps magnify it.
    problem = comparison_problem(devices)
    if devices == "PCM with a drift model":
        with pytest.raises(InvalidArgument, match="failed"):  # aihwkit interpolates in numpy
            MonteCarloEngine(problem, device="cuda")
        return
    x = random_points(problem, 200)
    cpu, gpu = MonteCarloEngine(problem), MonteCarloEngine(problem, device="cuda")
    np.testing.assert_allclose(gpu.tnmse(x), cpu.tnmse(x), rtol=1e-2)
    converter = problem.g_converter_baseline
    np.testing.assert_allclose(gpu.tnmse_of(converter, 10), cpu.tnmse_of(converter, 10), rtol=1e-2)
