"""The expected engine as others use it: what it evaluates, repeats and refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from aihwkit.inference.compensation.drift import GlobalDriftCompensation
from aihwkit.inference.converter.conductance import (
    DualPairConductanceConverter,
    NPairConductanceConverter,
    SingleDeviceConductanceConverter,
    SinglePairConductanceConverter,
)
from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters, MappingParameter
from aihwkit.simulator.parameters.enums import WeightNoiseType
from expected_problems import device_problem
from small_problems import ROWS, small_problem, small_rpu_config
from torch import Tensor

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.expected import ExpectedEngine
from wpo_optuna.loss.monte_carlo import MonteCarloEngine

CONVERTERS: dict[str, Any] = {
    "single pair above zero": SinglePairConductanceConverter(g_min=3.0, g_max=20.0),
    "three pairs": NPairConductanceConverter([1.0, 2.0, 0.5], g_min=0.0, g_max=25.0),
    "beyond the problem's range": DualPairConductanceConverter([1.0, 3.0], g_min=0.0, g_max=30.0),
}


@pytest.fixture(scope="module")
def engine() -> ExpectedEngine:
    return ExpectedEngine(device_problem(rows=128))


@pytest.mark.parametrize("name", CONVERTERS)
def test_any_converter_of_pairs_is_evaluated(engine: ExpectedEngine, name: str) -> None:
    converter = CONVERTERS[name]
    drawn = MonteCarloEngine(engine.problem).tnmse_of(converter, repeats=100)
    expected = engine.tnmse_of(converter, repeats=3)
    assert expected.shape == (3,)
    assert (expected == expected[0]).all()
    # Four standard errors beyond a bound of 1 %: three of them fail with a rate of 2e-4 if every
    # one is exactly at the bound, where none is near.
    error = drawn.std(ddof=1) / 10
    assert abs(expected[0] - drawn.mean()) < 0.01 * drawn.mean() + 4 * error


def test_a_strategys_own_converter_has_the_value_of_its_point(engine: ExpectedEngine) -> None:
    x = np.random.default_rng(0).random((3, engine.problem.hypercube.dimension))
    values = engine.tnmse(x)
    for strategy, value in zip(engine.problem.hypercube.decode(x), values, strict=True):
        assert engine.tnmse_of(strategy.to_converter(), 1)[0] == pytest.approx(value, rel=1e-9)


def test_seed_changes_nothing_and_one_point_may_stand_alone(engine: ExpectedEngine) -> None:
    x = np.random.default_rng(0).random(engine.problem.hypercube.dimension)
    assert engine.tnmse(x).shape == (1,)
    assert engine.tnmse(x, seed=1) == engine.tnmse(x, seed=2)
    value, gradient = engine.value_and_grad(x)
    assert value.shape == (1,)
    assert gradient.shape == (1, len(x))


def test_nothing_is_drawn_from_the_global_generators() -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    problem = device_problem(rows=24, test_out_features=8)
    engine = ExpectedEngine(problem)
    engine.tnmse_of(problem.g_converter_baseline)
    engine.tnmse(np.zeros(problem.hypercube.dimension))
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002


def test_undefined_conductances_make_the_loss_infinite() -> None:
    # The model's read noise takes a logarithm, of conductances that may have become negative.
    problem = device_problem("ReRAM CMO", rows=24, g_min=0.0, test_out_features=8)
    baseline = problem.g_converter_baseline
    engine = ExpectedEngine(problem)
    assert engine.tnmse_of(baseline, 2).tolist() == [np.inf, np.inf]
    x = np.random.default_rng(0).random((20, problem.hypercube.dimension))
    expected = np.isinf(engine.tnmse(x))
    np.testing.assert_array_equal(np.isinf(engine.value_and_grad(x)[0]), expected)
    # A draw is undefined by chance, its expectation where a draw can be.
    drawn = np.isinf(MonteCarloEngine(problem).tnmse(x))
    assert drawn.any()
    assert expected[drawn].all()
    assert not expected.all()


class OwnCompensation(GlobalDriftCompensation):
    """Might do anything."""


class OwnProgramming(PCMLikeNoiseModel):
    """Replaces what is element by element in the base class."""

    def apply_programming_noise(self, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
        return super().apply_programming_noise(weights - weights.mean())


class CoupledDevices(PCMLikeNoiseModel):
    """Each device is disturbed by the others."""

    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        return super().apply_programming_noise_to_conductance(g_target + 0.1 * g_target.mean())


class OscillatingDevices(PCMLikeNoiseModel):
    """What is read at a time is no short sum of products."""

    def generate_drift_coefficients(self, g_target: Tensor) -> Tensor:
        return g_target

    def apply_drift_noise_to_conductance(
        self, g_prog: Tensor, drift_noise_param: Tensor | None, t_inference: float
    ) -> Tensor:
        assert drift_noise_param is not None
        return 10 + torch.sin(g_prog * drift_noise_param) + 0.1 * torch.randn_like(g_prog)


@pytest.mark.parametrize(
    ("rpu_config", "names"),
    [
        (small_rpu_config(compensation=OwnCompensation()), "OwnCompensation.*aihwkit"),
        (small_rpu_config(OwnProgramming()), "OwnProgramming.*apply_programming_noise.*aihwkit"),
        (small_rpu_config(CoupledDevices()), "each device by itself.*montecarlo"),
        (small_rpu_config(OscillatingDevices()), "moments at t = 1 s.*montecarlo"),
        (small_rpu_config(out_noise_std=0.1), "forward has out_noise_std.*aihwkit"),
        (
            TorchInferenceRPUConfig(
                forward=IOParameters(out_bound=0.5), mapping=MappingParameter(max_input_size=ROWS)
            ),
            r"out_bound = 0\.5, which single weights, up to 0\.82, .*montecarlo",
        ),
        (
            TorchInferenceRPUConfig(forward=IOParameters(w_noise_type=WeightNoiseType.PCM_READ)),
            "w_noise not supported in torch tile: use InferenceRPUConfig, or set "
            r"forward.w_noise = 0 and forward.w_noise_type = WeightNoiseType.NONE\.$",
        ),
    ],
    ids=[
        "compensation",
        "programming",
        "coupled devices",
        "oscillating moments",
        "systematic noise",
        "bound of the torch tile",
        "weight noise of the torch tile",
    ],
)
def test_hardware_of_unknown_expectation_is_refused_by_name(
    rpu_config: InferenceRPUConfig, names: str
) -> None:
    with pytest.raises(InvalidArgument, match=names) as refusal:
        ExpectedEngine(small_problem(rpu_config=rpu_config))
    assert str(refusal.value).count("\n") == 0


def test_another_converter_is_refused(engine: ExpectedEngine) -> None:
    converter = SingleDeviceConductanceConverter(g_min=0.0, g_max=25.0)
    with pytest.raises(InvalidArgument, match=r"SingleDeviceConductanceConverter.*montecarlo"):
        engine.tnmse_of(converter)


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "cpu:x"])
def test_a_device_that_jax_does_not_find_is_refused_with_what_to_install(device: str) -> None:
    refusal = rf"device = '{device}'.*pip install \"wpo-optuna\[cuda\]\""
    with pytest.raises(InvalidArgument, match=refusal):
        ExpectedEngine(small_problem(), device=device)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_cpus_values(engine: ExpectedEngine) -> None:
    try:
        on_gpu = ExpectedEngine(engine.problem, device="cuda")
    except InvalidArgument as refusal:
        pytest.skip(str(refusal))
    x = np.random.default_rng(0).random((100, engine.problem.hypercube.dimension))
    np.testing.assert_allclose(on_gpu.tnmse(x), engine.tnmse(x), rtol=1e-9)
    for of_gpu, of_cpu in zip(on_gpu.value_and_grad(x), engine.value_and_grad(x), strict=True):
        np.testing.assert_allclose(of_gpu, of_cpu, rtol=1e-6, atol=1e-9)
