"""Hardware to compare loss engines on, strategies good and bad, and when means agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from aihwkit.inference import (
    DualPairConductanceConverter,
    GlobalDriftCompensation,
    PCMLikeNoiseModel,
    ReRamCMONoiseModel,
    ReRamWan2022NoiseModel,
)
from aihwkit.inference.compensation.base import BaseDriftCompensation
from aihwkit.inference.compensation.drift import (
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
)
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.inference.noise.custom import StateIndependentNoiseModel
from aihwkit.inference.noise.hermes import HermesNoiseModel
from aihwkit.inference.noise.pcm import CustomDriftPCMLikeNoiseModel
from aihwkit.simulator.configs import (
    InferenceRPUConfig,
    QuantizedTorchInferenceRPUConfig,
    TorchInferenceRPUConfig,
)
from aihwkit.simulator.parameters import IOParameters, MappingParameter
from aihwkit.simulator.parameters.enums import WeightNoiseType
from scipy import stats
from scipy.optimize import differential_evolution
from small_problems import gaussian_weights

from wpo_optuna.loss.monte_carlo import MonteCarloEngine
from wpo_optuna.loss.reference import ReferenceEngine
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

DAY = 86400.0
DRIFT_MODEL: dict[str, list[float]] = {
    "g_lst": [0.0, 5.0, 10.0, 25.0],
    "nu_mean_lst": [0.12, 0.08, 0.05, 0.03],
    "nu_std_lst": [0.03, 0.02, 0.01, 0.01],
}


@dataclass(frozen=True)
class Devices:
    """A noise model, the conductances (µS) it is made for, and times (s) it knows."""

    model: Callable[[], BaseNoiseModel]
    g_min: float
    g_max: float
    t_steps: tuple[float, ...] = (1.0, 30 * DAY)


DEVICES: dict[str, Devices] = {
    "PCM": Devices(PCMLikeNoiseModel, 0.0, 25.0),
    "PCM with a drift model": Devices(lambda: CustomDriftPCMLikeNoiseModel(DRIFT_MODEL), 0.0, 25.0),
    "ReRAM of Wan": Devices(lambda: ReRamWan2022NoiseModel(g_max=40.0), 0.0, 40.0, (1.0, DAY)),
    "ReRAM CMO": Devices(
        lambda: ReRamCMONoiseModel(g_min=9.0, g_max=88.2, acceptance_range=0.2), 9.0, 88.2
    ),
    "Hermes, one device": Devices(lambda: HermesNoiseModel(num_devices=1), 0.0, 10.35),
    "Hermes, two devices": Devices(lambda: HermesNoiseModel(num_devices=2), 0.0, 20.7),
    "state-independent": Devices(StateIndependentNoiseModel, 0.0, 25.0),
}

COMPENSATIONS: dict[str, Callable[[], BaseDriftCompensation | None]] = {
    "global": GlobalDriftCompensation,
    "exact reference": GlobalDriftCompensationWithExactReference,
    "per column": PerColumnDriftCompensation,
    "none": lambda: None,
}

# The reference problem's periphery.
PERIPHERY: dict[str, Any] = {
    "inp_res": 1 / 254,
    "out_res": 1 / 254,
    "out_bound": 10.0,
    "out_noise": 0.04,
    "w_noise": 0.0175,
    "w_noise_type": WeightNoiseType.PCM_READ,
}

# aihwkit's torch tile refuses weight noise.
TORCH_PERIPHERY = {name: PERIPHERY[name] for name in PERIPHERY if not name.startswith("w_noise")}
TORCH_TILES = {
    "torch": TorchInferenceRPUConfig,
    "quantised torch": QuantizedTorchInferenceRPUConfig,
}


def comparison_problem(
    devices: str = "PCM",
    compensation: str = "global",
    n_pairs: int = 2,
    symmetric: bool = True,
    periphery: dict[str, Any] | None = None,
    tile: type[InferenceRPUConfig] = InferenceRPUConfig,
    **overrides: Any,
) -> WeightProgrammingProblem:
    """A problem on a tile of 32 x 8, small enough for thousands of draws of aihwkit's tile."""
    hardware = DEVICES[devices]
    rpu_config = tile(
        forward=IOParameters(**(PERIPHERY if periphery is None else periphery)),
        noise_model=hardware.model(),
        drift_compensation=COMPENSATIONS[compensation](),
        mapping=MappingParameter(max_input_size=32),
    )
    arguments: dict[str, Any] = {
        "weights": gaussian_weights(2000),
        "f_lst": [1.0] + [None] * (n_pairs - 1),
        "rpu_config": rpu_config,
        "t_steps": list(hardware.t_steps),
        "g_converter_baseline": DualPairConductanceConverter(
            [1.0, 1.0], g_min=hardware.g_min, g_max=hardware.g_max
        ),
        "symmetric": symmetric,
        "test_out_features": 8,
    }
    return WeightProgrammingProblem(**(arguments | overrides))


def good_and_bad_converters(problem: WeightProgrammingProblem, n_random: int) -> list[Any]:
    """Converters of two strategies near the optimum, one of middling quality and random ones.

    Found by a short differential evolution.
    """
    rng, cube, engine = np.random.default_rng(0), problem.hypercube, MonteCarloEngine(problem)
    evolved = differential_evolution(
        lambda x: engine.tnmse(x.T),
        [(0, 1)] * cube.dimension,
        init=rng.random((96, cube.dimension)),
        maxiter=15,
        polish=False,
        updating="deferred",
        vectorized=True,
        rng=rng,
    )
    ranked = evolved.population[evolved.population_energies.argsort()]
    points = np.concatenate([ranked[[0, 1, 60]], rng.random((n_random, cube.dimension))])
    return [strategy.to_converter() for strategy in cube.decode(points)]


class Compared(NamedTuple):
    """Difference of a strategy's mean TNMSE by two engines in standard errors, made normal."""

    of: str
    z: float


def compare(
    problem: WeightProgrammingProblem,
    converters: Sequence[Any],
    n_draws: int,
    label: str,
    seed: int,
) -> list[Compared]:
    """Means of converters on aihwkit's tile and by Monte Carlo, all with noise of their own."""
    engines, compared = (MonteCarloEngine(problem), ReferenceEngine(problem)), []
    for i, converter in enumerate(converters):
        seeds = np.random.SeedSequence([seed, i]).generate_state(2)[::-1]
        tested, reference = (
            engine.tnmse_of(converter, n_draws, seed=int(s))
            for engine, s in zip(engines, seeds, strict=True)
        )
        test = stats.ttest_ind(tested, reference, equal_var=False)
        z = np.sign(test.statistic) * stats.norm.isf(test.pvalue / 2)
        compared.append(Compared(f"{label}, strategy {i}", float(z)))
    return compared


def assert_means_agree(compared: Sequence[Compared], false_alarm_rate: float = 1e-4) -> None:
    """Asserts that differences of means are as many standard errors as chance makes them.

    Four tests of the n differences, each with a quarter of the false-alarm rate: none is too
    large (Bonferroni); no more of them exceed three standard errors than chance makes (binomial);
    their squares (χ²) and their sum, in which a common bias of a small part of a standard error
    shows, are not too large. Differences have noise of their own and are independent.
    """
    z = np.array([difference.z for difference in compared])
    rate = false_alarm_rate / 4
    assert abs(z).max() < stats.norm.isf(rate / 2 / len(z)), compared
    assert (abs(z) > 3).sum() <= stats.binom.isf(rate, len(z), 2 * stats.norm.sf(3)), compared
    assert (z**2).sum() < stats.chi2.isf(rate, len(z)), compared
    assert abs(z.sum()) / np.sqrt(len(z)) < stats.norm.isf(rate / 2), compared
