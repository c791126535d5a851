"""The reference problem: Gaussian weights on phase-change memory, as in aihwkit's example 33.

All comparisons and benchmarks are made on it, so that their figures can be set side by side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wpo_optuna.hardware import named_rpu_config
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

WEIGHT_STANDARD_DEVIATION = 0.2


def reference_weights(n: int = 100_000) -> Tensor:
    """Independent normal weights (n,), mean 0, standard deviation 0.2, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    return WEIGHT_STANDARD_DEVIATION * torch.randn(n, generator=generator)


def reference_problem(**overrides: Any) -> WeightProgrammingProblem:
    """The reference problem, of 20 dimensions and a baseline TNMSE near 0.0739.

    Two pairs of devices, the second pair's significance factor free; compared with two equal
    pairs; errors averaged over six times from one second to 360 days. (aihwkit's optimiser prints
    0.152 for it, the error of a single pair: it scores the converter of the RPU configuration's
    noise model instead of the baseline that it is given.)

    Args:
        **overrides: Arguments of ``WeightProgrammingProblem`` that replace the reference's.
    """
    hardware = named_rpu_config("pcm")
    arguments: dict[str, Any] = {
        "weights": reference_weights(),
        "f_lst": [1.0, None],
        "rpu_config": hardware.build(),
        "t_steps": list(hardware.t_steps),
        "g_converter_baseline": hardware.baseline(),
        "symmetric": True,
    }
    return WeightProgrammingProblem(**(arguments | overrides))
