"""The Monte Carlo engine against aihwkit's tile with the same random numbers.

Where the tile's periphery draws none of its own, all noise comes from the noise models. Given the
numbers that the engine uses, aihwkit's own code must then give the engine's value, draw by draw:
a sharper comparison than that of means.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType
from loss_agreement import COMPENSATIONS, DEVICES, comparison_problem, good_and_bad_points
from numpy.typing import NDArray
from torch import Tensor

from wpo_optuna.loss.common_noise import CommonNoise, Use
from wpo_optuna.loss.device_noise import Serving
from wpo_optuna.loss.monte_carlo import MonteCarloEngine
from wpo_optuna.loss.reference import ReferenceEngine
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

CPU = torch.device("cpu")
SEED = 17
QUIET = {"out_noise": 0.0, "w_noise": 0.0}


class ServedNoiseModel(BaseNoiseModel):
    """A noise model with the random numbers of the engine, in the order of the tile's calls."""

    def __init__(self, model: BaseNoiseModel, n_devices: int, n_times: int) -> None:
        super().__init__(model.g_converter)
        self._model = model
        self._n_devices, self._n_times = n_devices, n_times
        self._calls = {Use.PROGRAMMING: 0, Use.DRIFT_COEFFICIENT: 0, Use.DRIFT: 0}

    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        with self._serving(Use.PROGRAMMING, g_target):
            return self._model.apply_programming_noise_to_conductance(g_target)

    def generate_drift_coefficients(self, g_target: Tensor) -> Tensor:
        with self._serving(Use.DRIFT_COEFFICIENT, g_target):
            return self._model.generate_drift_coefficients(g_target)

    def apply_drift_noise_to_conductance(
        self, g_prog: Tensor, drift_noise_param: Tensor, t_inference: float
    ) -> Tensor:
        with self._serving(Use.DRIFT, g_prog):
            return self._model.apply_drift_noise_to_conductance(
                g_prog, drift_noise_param, t_inference
            )

    def _serving(self, use: Use, g: Tensor) -> Serving:
        time_index, device = divmod(self._calls[use], self._n_devices)
        self._calls[use] += 1
        noise, shape = CommonNoise(SEED, [0]), (self._n_devices, *g.shape)

        def normals(asked: tuple[int, ...], call: int) -> Tensor:
            assert asked == tuple(g.shape)
            if use == Use.DRIFT:
                return noise.normal((0, use, time_index, call), shape, CPU)[0, device]
            return noise.normal((0, use, call), (self._n_times, *shape), CPU)[0, time_index, device]

        return Serving(normals)


class ProblemWithServedNoise:
    """A problem whose tile meets the engine's random numbers."""

    def __init__(self, problem: WeightProgrammingProblem) -> None:
        self._problem = problem

    def __getattr__(self, name: str) -> Any:
        return getattr(self._problem, name)

    def evaluation_rpu_config(self) -> InferenceRPUConfig:
        rpu_config = self._problem.evaluation_rpu_config()
        rpu_config.noise_model = ServedNoiseModel(
            rpu_config.noise_model, 2 * len(self._problem.f_lst), len(self._problem.t_steps)
        )
        return rpu_config


def assert_same_draw(
    problem: WeightProgrammingProblem, x: NDArray[np.float64], rtol: float
) -> None:
    """Asserts that engine and tile give the same values for strategies x."""
    engine = MonteCarloEngine(problem, seed=SEED)
    expected = ReferenceEngine(ProblemWithServedNoise(problem)).tnmse(x)  # type: ignore[arg-type]
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(engine.tnmse(x), expected, rtol=rtol)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("n_pairs", [1, 2, 3])
@pytest.mark.parametrize("devices", DEVICES)
def test_with_the_same_noise_every_hardware_gives_aihwkits_value(
    devices: str, n_pairs: int, symmetric: bool
) -> None:
    problems = [
        comparison_problem(
            devices, compensation, n_pairs, symmetric, periphery={"is_perfect": True}
        )
        for compensation in COMPENSATIONS
    ]
    x = good_and_bad_points(MonteCarloEngine(problems[0]))
    for problem in problems:
        assert_same_draw(problem, x, rtol=1e-4)


# Without noise of their own. An ADC's step may turn a difference in the last bit into one of a
# step in one of 256 outputs.
PERIPHERIES: dict[str, dict[str, Any]] = {
    "converters": {},
    "coarse ADC": {"out_res": 31, "out_bound": 2.0},
    "tight bound, managed": {"out_bound": 0.3},
    "tight bound, worst case": {
        "out_bound": 0.3,
        "bound_management": BoundManagementType.ITERATIVE_WORST_CASE,
    },
    "tight bound, clipped": {"out_bound": 0.3, "bound_management": BoundManagementType.NONE},
    "positive bound only": {"out_bound": 0.3, "bm_test_negative_bound": False},
    "constant noise management": {
        "noise_management": NoiseManagementType.CONSTANT,
        "nm_thres": 3.0,
    },
    "asymmetric and scaled": {"out_asymmetry": 0.3, "out_scale": 1.5},
}


@pytest.mark.parametrize("periphery", PERIPHERIES)
def test_with_the_same_noise_every_quiet_periphery_gives_aihwkits_value(periphery: str) -> None:
    problems = [
        comparison_problem("PCM", compensation, periphery=QUIET | PERIPHERIES[periphery])
        for compensation in ("global", "exact reference", "per column")
    ]
    x = good_and_bad_points(MonteCarloEngine(problems[0]))
    for problem in problems:
        assert_same_draw(problem, x, rtol=5e-3)
