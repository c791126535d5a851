"""Weight programming problems small enough that aihwkit's own tile takes milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from aihwkit.inference import (
    DualPairConductanceConverter,
    GlobalDriftCompensation,
    PCMLikeNoiseModel,
)
from aihwkit.inference.compensation.base import BaseDriftCompensation
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters, MappingParameter
from torch import Tensor

from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

ROWS, COLUMNS = 24, 8
_GLOBAL = GlobalDriftCompensation()


def gaussian_weights(n: int = 400, seed: int = 0) -> Tensor:
    """Independent normal weights (n,), always the same ones."""
    return 0.2 * torch.randn(n, generator=torch.Generator().manual_seed(seed))


def small_rpu_config(
    noise_model: BaseNoiseModel | None = None,
    compensation: BaseDriftCompensation | None = _GLOBAL,
    max_input_size: int = ROWS,
    max_output_size: int = 0,
    **forward: Any,
) -> InferenceRPUConfig:
    """A tile of 24 rows with PCM devices, the default periphery, and scaling of outputs.

    Args:
        noise_model: the devices; PCM if None.
        compensation: how drift is compensated.
        max_input_size: the tile's rows.
        max_output_size: the tile's columns, 0 for no limit.
        forward: settings of the periphery.
    """
    return InferenceRPUConfig(
        forward=IOParameters(**forward),
        noise_model=noise_model or PCMLikeNoiseModel(),
        drift_compensation=compensation,
        mapping=MappingParameter(
            weight_scaling_omega=1.0,
            weight_scaling_columnwise=True,
            learn_out_scaling=True,
            out_scaling_columnwise=True,
            max_input_size=max_input_size,
            max_output_size=max_output_size,
        ),
    )


def seedable_rpu_config(
    noise_model: BaseNoiseModel | None = None,
    compensation: BaseDriftCompensation | None = _GLOBAL,
    **options: Any,
) -> InferenceRPUConfig:
    """A tile with a perfect periphery: all its noise comes from torch's generator."""
    return small_rpu_config(noise_model, compensation, is_perfect=True, **options)


def small_problem(**overrides: Any) -> WeightProgrammingProblem:
    """Two pairs of PCM devices, the second pair's factor free, on a tile of 24 x 8.

    Args:
        overrides: arguments of ``WeightProgrammingProblem`` that replace these.
    """
    arguments: dict[str, Any] = {
        "weights": gaussian_weights(),
        "f_lst": [1.0, None],
        "rpu_config": small_rpu_config(),
        "t_steps": [1.0, 3600.0],
        "g_converter_baseline": DualPairConductanceConverter([1.0, 1.0], g_min=0.0, g_max=25.0),
        "symmetric": True,
        "nbins": 4,
        "test_out_features": COLUMNS,
    }
    return WeightProgrammingProblem(**(arguments | overrides))
