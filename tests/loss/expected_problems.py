"""Problems that the expected engine is held against Monte Carlo on, and strategies for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from aihwkit.inference import DualPairConductanceConverter
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
from aihwkit.simulator.configs import (
    InferenceRPUConfig,
    QuantizedTorchInferenceRPUConfig,
    TorchInferenceRPUConfig,
)
from aihwkit.simulator.parameters import MappingParameter
from aihwkit.simulator.presets import PresetIOParameters
from loss_agreement import COMPENSATIONS, DAY, DEVICES, PERIPHERY, TORCH_PERIPHERY
from numpy.typing import NDArray
from torch import Tensor

from experiments.reference_problem import reference_problem, reference_weights
from wpo_optuna.loss.expected import ExpectedEngine
from wpo_optuna.loss.monte_carlo import MonteCarloEngine
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem


class RelaxingNoise(PCMLikeNoiseModel):
    """Conductances relax towards a level that the target sets: no product of two functions."""

    def apply_drift_noise_to_conductance(
        self, g_prog: Tensor, drift_noise_param: Tensor | None, t_inference: float
    ) -> Tensor:
        assert drift_noise_param is not None
        g = 0.7 * g_prog + 10 * drift_noise_param
        return (g * (1 + 0.1 * torch.randn_like(g))).clamp(min=0.0)


SECOND_TO_YEAR = (1.0, 60.0, 3600.0, DAY, 30 * DAY, 360 * DAY)

# Within these factors of the baseline's TNMSE, deviations of at most so much are accepted.
REFERENCE_BOUNDS = ((1.0, 0.005), (10.0, 0.01))
OTHER_BOUNDS = ((1.0, 0.01), (10.0, 0.02))


def heavy_tailed_weights() -> Tensor:
    """Student's t with 3 degrees of freedom: the largest weight is 50 times the typical one."""
    rng = np.random.default_rng(3)
    return torch.from_numpy(0.1 * rng.standard_t(3.0, 100_000)).float()


def skewed_weights() -> Tensor:
    """Log-normal, shifted by its median."""
    rng = np.random.default_rng(4)
    return torch.from_numpy(0.1 * (rng.lognormal(size=100_000) - 1)).float()


def device_problem(
    devices: str = "PCM",
    compensation: str = "global",
    rows: int = 512,
    g_min: float | None = None,
    forward: dict[str, Any] | None = None,
    noise_model: BaseNoiseModel | None = None,
    tile: type[InferenceRPUConfig] = InferenceRPUConfig,
    **overrides: Any,
) -> WeightProgrammingProblem:
    """The reference problem with other devices, compensation, tile or periphery."""
    hardware = DEVICES[devices]
    times = SECOND_TO_YEAR if "Wan" not in devices else (1.0, DAY, 2 * DAY)
    lowest = hardware.g_min if g_min is None else g_min
    periphery = PERIPHERY if tile is InferenceRPUConfig else TORCH_PERIPHERY
    rpu_config = tile(
        forward=PresetIOParameters(**(periphery | (forward or {}))),
        noise_model=noise_model or hardware.model(),
        drift_compensation=COMPENSATIONS[compensation](),
        mapping=MappingParameter(max_input_size=rows),
    )
    arguments: dict[str, Any] = {
        "weights": reference_weights(),
        "f_lst": [1.0, None],
        "rpu_config": rpu_config,
        "t_steps": list(times),
        "g_converter_baseline": DualPairConductanceConverter(
            [1.0, 1.0], g_min=lowest, g_max=hardware.g_max
        ),
    }
    return WeightProgrammingProblem(**(arguments | overrides))


PROBLEMS: dict[str, Callable[[], WeightProgrammingProblem]] = {
    "reference": reference_problem,
    "heavy-tailed weights": lambda: device_problem(weights=heavy_tailed_weights()),
    "skewed weights": lambda: device_problem(weights=skewed_weights(), symmetric=False),
    "ReRAM of Wan": lambda: device_problem("ReRAM of Wan"),
    "ReRAM CMO": lambda: device_problem("ReRAM CMO"),
    "drift model": lambda: device_problem("PCM with a drift model"),
    "Hermes": lambda: device_problem("Hermes, two devices"),
    "Hermes, one device": lambda: device_problem("Hermes, one device"),
    "state-independent": lambda: device_problem("state-independent"),
    "per column": lambda: device_problem(compensation="per column"),
    "per column, 64 rows": lambda: device_problem(compensation="per column", rows=64),
    "exact reference": lambda: device_problem(compensation="exact reference"),
    "no compensation": lambda: device_problem(compensation="none", t_steps=[1.0, 60.0, 3600.0]),
    "ReRAM of Wan, no compensation": lambda: device_problem("ReRAM of Wan", "none"),
    "three pairs": lambda: device_problem(f_lst=[1.0, None, None]),
    "g_min of 2 µS": lambda: device_problem(g_min=2.0),
    "one second": lambda: device_problem(t_steps=[1.0]),
    "ten years": lambda: device_problem(t_steps=[3600 * DAY]),
    "64 rows": lambda: device_problem(rows=64),
    "1024 rows": lambda: device_problem(rows=1024),
    "asymmetric strategies": lambda: device_problem(symmetric=False),
    "perfect periphery": lambda: device_problem(forward={"is_perfect": True}),
    "bound below the largest weight": lambda: device_problem(forward={"out_bound": 0.5}),
    "IR drop": lambda: device_problem(forward={"ir_drop": 1000.0}),
    "torch tile": lambda: device_problem(tile=TorchInferenceRPUConfig),
    "quantised torch tile, coarse": lambda: device_problem(
        tile=QuantizedTorchInferenceRPUConfig, forward={"out_res": 64, "inp_noise": 0.01}
    ),
    "torch tile, per column": lambda: device_problem(
        compensation="per column", rows=64, tile=TorchInferenceRPUConfig
    ),
    "moments of two terms": lambda: device_problem(noise_model=RelaxingNoise(), t_steps=[1.0]),
    "programming off target": lambda: device_problem(g_err=0.2),
}


@dataclass(frozen=True)
class Deviations:
    """How the expected engine compares with the mean of Monte Carlo draws.

    Attributes:
        tnmse: the Monte Carlo means.
        relative: relative deviations of the expected engine.
        errors: relative standard errors of the Monte Carlo means.
        baseline: TNMSE of the problem's baseline by Monte Carlo.
    """

    tnmse: NDArray[np.float64]
    relative: NDArray[np.float64]
    errors: NDArray[np.float64]
    baseline: float

    def beyond(self, bounds: tuple[tuple[float, float], ...], allowed_errors: float) -> list[str]:
        """Descriptions of the deviations that exceed their bound by so many standard errors."""
        found = []
        for tnmse, relative, error in zip(self.tnmse, self.relative, self.errors, strict=True):
            bound = next((b for factor, b in bounds if tnmse <= factor * self.baseline), np.inf)
            if abs(relative) > bound + allowed_errors * error:
                found.append(f"{tnmse:.4g}: {relative:+.2%} ± {error:.2%}, bound {bound:.1%}")
        return found


def deviations(problem: WeightProgrammingProblem, draws: int, per_range: int) -> Deviations:
    """Compares strategies near the optimum, better than the baseline, and up to 10 times worse."""
    expected, monte_carlo = ExpectedEngine(problem), MonteCarloEngine(problem)
    baseline = float(monte_carlo.tnmse_of(problem.g_converter_baseline, 30).mean())
    x = strategies(expected, baseline, per_range)
    drawn = np.array([monte_carlo.tnmse(x, seed=10_000 + draw) for draw in range(draws)])
    mean = drawn.mean(axis=0)
    return Deviations(
        tnmse=mean,
        relative=expected.tnmse(x) / mean - 1,
        errors=drawn.std(axis=0, ddof=1) / np.sqrt(draws) / mean,
        baseline=baseline,
    )


def strategies(engine: ExpectedEngine, baseline: float, per_range: int) -> NDArray[np.float64]:
    """Points (n, d) on the way of a differential evolution: as an optimiser meets them."""
    rng = np.random.default_rng(0)
    population = rng.random((100, engine.problem.hypercube.dimension))
    values = engine.tnmse(population)
    way = [(population.copy(), values.copy())]
    for _ in range(80):
        one, other = population[rng.permuted(np.tile(np.arange(100), (2, 1)), axis=1)]
        trial = np.clip(population[values.argmin()] + 0.6 * (one - other), 0, 1)
        trial = np.where(rng.random(trial.shape) < 0.7, trial, population)
        of_trial = engine.tnmse(trial)
        better = of_trial < values
        population[better], values[better] = trial[better], of_trial[better]
        way.append((trial, of_trial))
    x, tnmse = (np.concatenate(parts) for parts in zip(*way, strict=True))
    best = float(tnmse.min())
    chosen = [int(tnmse.argmin())]
    for low, high in (
        (best, 1.1 * best),
        (1.1 * best, max(baseline, 1.3 * best)),
        (baseline, 10 * baseline),
    ):
        candidates = np.flatnonzero((tnmse > low) & (tnmse < high))
        chosen += rng.choice(candidates, min(per_range, len(candidates)), replace=False).tolist()
    return x[chosen]
