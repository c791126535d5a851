"""Measurements of devices whose noise model is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.inference.noise.pcm import CustomDriftPCMLikeNoiseModel

from wpo_optuna.hardware.device_statistics import simulate
from wpo_optuna.hardware.measurements import Measurements

TARGETS = [0.0, 2.5, 5.0, 10.0, 15.0, 20.0, 25.0]
NU_MEAN = [0.1, 0.09, 0.08, 0.06, 0.05, 0.05, 0.05]
NU_STD = [0.04, 0.03, 0.025, 0.02, 0.015, 0.01, 0.008]
TIMES = np.array([1.0, 60.0, 3600.0, 86400.0, 30 * 86400.0])


def known_devices() -> CustomDriftPCMLikeNoiseModel:
    drift = {"g_lst": TARGETS, "nu_mean_lst": NU_MEAN, "nu_std_lst": NU_STD}
    return CustomDriftPCMLikeNoiseModel(
        drift, prog_coeff=[0.26, 1.9, -1.1], g_max=25.0, read_noise_scale=1.2
    )


# What a fit is to find, by the names of its parameters; drift at 0 µS cannot be measured.
TRUTH = {
    "programming c0 (µS)": 0.26,
    "programming c1 (µS)": 1.9,
    "programming c2 (µS)": -1.1,
    "read noise scale": 1.2,
    **{f"nu mean at {g:.3g} µS": nu for g, nu in zip(TARGETS[1:], NU_MEAN[1:], strict=True)},
    **{f"nu std at {g:.3g} µS": nu for g, nu in zip(TARGETS[1:], NU_STD[1:], strict=True)},
}


def measured(
    model: BaseNoiseModel,
    n: int,
    seed: int,
    is_followed: bool = True,
    targets: Sequence[float] = TARGETS,
) -> Measurements:
    """Readings of n devices at each target, all at all times, or each at one of the times."""
    target = np.repeat(targets, n)
    if is_followed:
        return Measurements(target, TIMES, simulate(model, target, TIMES, seed), True)
    target, time = np.tile(target, len(TIMES)), np.repeat(np.arange(len(TIMES)), len(target))
    read = simulate(model, target, TIMES, seed)
    read[np.arange(len(TIMES)) != time[:, None]] = np.nan
    return Measurements(target, TIMES, read, False)
