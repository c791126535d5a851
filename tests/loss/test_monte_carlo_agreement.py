"""The Monte Carlo engine against aihwkit's own tile: devices, compensation, pairs, periphery."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from aihwkit.simulator.parameters.enums import (
    BoundManagementType,
    NoiseManagementType,
    WeightNoiseType,
)
from loss_agreement import (
    COMPENSATIONS,
    DEVICES,
    PERIPHERY,
    Means,
    assert_means_agree,
    compare,
    comparison_problem,
    good_and_bad_points,
)

from wpo_optuna.loss.monte_carlo import MonteCarloEngine
from wpo_optuna.loss.reference import ReferenceEngine
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

DAY = 86400.0


def compare_strategies(
    problem: WeightProgrammingProblem, n_draws: int, label: str, seed: int, n_random: int = 2
) -> list[Means]:
    """Means of strategies near the optimum and far from it."""
    tested = MonteCarloEngine(problem)
    points = good_and_bad_points(tested, n_random)
    converters = [s.to_converter() for s in problem.hypercube.decode(points)]
    return compare(ReferenceEngine(problem), tested, converters, n_draws, label, seed)


# Every kind of device, compensation, number of pairs and symmetry in some cell.
SPREAD = (
    ("PCM", "global", 2, True),
    ("PCM with a drift model", "per column", 1, False),
    ("ReRAM of Wan", "exact reference", 3, True),
    ("ReRAM CMO", "none", 2, False),
    ("Hermes, one device", "global", 3, False),
    ("Hermes, two devices", "exact reference", 1, True),
    ("state-independent", "per column", 2, True),
)


def test_a_spread_of_hardware_agrees_with_aihwkit() -> None:
    # 7 cells of 5 strategies, 40 draws each; false-alarm rate 10^-4. Torch's noise is seeded on
    # both sides, that of the reference's compiled tile is not: the rate is one of repeated runs.
    compared: list[Means] = []
    for seed, (devices, compensation, n_pairs, symmetric) in enumerate(SPREAD):
        problem = comparison_problem(devices, compensation, n_pairs, symmetric)
        label = f"{devices}, {compensation}, {n_pairs} pairs"
        compared += compare_strategies(problem, 40, label, seed)
    assert len(compared) == 35
    assert_means_agree(compared)


@pytest.mark.slow
@pytest.mark.parametrize("devices", DEVICES)
def test_every_hardware_agrees_with_aihwkit(devices: str) -> None:
    # 24 cells of 5 strategies, 200 draws each; false-alarm rate 10^-4 for each of 7 kinds.
    compared: list[Means] = []
    cells = product(COMPENSATIONS, (1, 2, 3), (True, False))
    for seed, (compensation, n_pairs, symmetric) in enumerate(cells):
        problem = comparison_problem(devices, compensation, n_pairs, symmetric)
        label = f"{devices}, {compensation}, {n_pairs} pairs, symmetric {symmetric}"
        compared += compare_strategies(problem, 200, label, 1000 + seed)
    assert len(compared) == 120
    assert_means_agree(compared)


# Changes of the reference problem's periphery, strong enough to change the loss.
PERIPHERIES: dict[str, dict[str, Any]] = {
    "perfect": {"is_perfect": True},
    "coarse ADC": {"out_res": 15, "out_bound": 1.5},
    "coarse ADC, stochastic rounding": {"out_res": 15, "out_bound": 1.5, "out_sto_round": True},
    "tight bound, managed": {"out_bound": 0.3},
    "tight bound, worst case": {
        "out_bound": 0.3,
        "bound_management": BoundManagementType.ITERATIVE_WORST_CASE,
    },
    "tight bound, clipped": {"out_bound": 0.3, "bound_management": BoundManagementType.NONE},
    "large PCM read noise": {"w_noise": 0.3},
    "large additive noise": {"w_noise": 0.2, "w_noise_type": WeightNoiseType.ADDITIVE_CONSTANT},
    "input noise": {"inp_noise": 0.05},
    "constant noise management": {
        "noise_management": NoiseManagementType.CONSTANT,
        "nm_thres": 3.0,
    },
    "differing lines, scaled, asymmetric": {
        "out_noise": 0.2,
        "out_noise_std": 0.5,
        "out_scale": 1.5,
        "out_asymmetry": 0.3,
    },
}


def test_other_peripheries_agree_with_aihwkit() -> None:
    # 11 peripheries, 4 strategies of 30 draws each; false-alarm rate 10^-4.
    compared: list[Means] = []
    for seed, (name, changes) in enumerate(PERIPHERIES.items()):
        compensation = ("global", "per column")[seed % 2]
        problem = comparison_problem(
            "state-independent", compensation, periphery=PERIPHERY | changes, t_steps=[DAY]
        )
        label = f"{name}, {compensation}"
        compared += compare_strategies(problem, 30, label, 100 + seed, n_random=1)
    assert_means_agree(compared)
