"""How the devices of a noise model behave over their range of conductance."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from wpo_optuna.report.stored_array import Array

if TYPE_CHECKING:
    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

_N_TARGETS = 41
_DEVICES_PER_TARGET = 5000


@dataclass(frozen=True)
class DeviceModel:
    """Statistics of devices programmed to G targets and read at S times.

    Attributes:
        g_target_us: the targets ``(G,)`` in µS, ascending.
        programmed_mean_us: mean conductance after programming ``(G,)`` in µS.
        programmed_std_us: its standard deviation from device to device.
        t_s: times after programming ``(S,)`` in s.
        mean_us: mean conductance read at each time ``(S, G)`` in µS.
        read_std_us: standard deviation ``(S, G)`` in µS of repeated reads of one device.
    """

    g_target_us: Array
    programmed_mean_us: Array
    programmed_std_us: Array
    t_s: Array
    mean_us: Array
    read_std_us: Array


def sample_device_model(
    problem: WeightProgrammingProblem, t_s: Sequence[float], seed: int
) -> DeviceModel:
    """Samples the noise model's own methods, thousands of devices for each target.

    Args:
        problem: its noise model is sampled from g_min to g_max.
        t_s: times after programming in s.
        seed: seed of the sample; global generators stay as they are.
    """
    model = problem.noise_model
    targets = torch.linspace(problem.g_min, problem.g_max, _N_TARGETS)
    g_target = targets[:, None].repeat(1, _DEVICES_PER_TARGET)
    with _seeded(seed), torch.no_grad():
        # A model may change what it is given, so everything is handed over as a copy.
        programmed = model.apply_programming_noise_to_conductance(g_target.clone())
        nu = model.generate_drift_coefficients(g_target.clone())

        def read(t: float) -> Array:
            kept = None if nu is None else nu.clone()
            g = model.apply_drift_noise_to_conductance(programmed.clone(), kept, t)
            return g.double().cpu().numpy()

        # Two reads of the same devices differ by the noise of both.
        reads = [(read(t), read(t)) for t in t_s]
    g = programmed.double().cpu().numpy()
    return DeviceModel(
        g_target_us=targets.double().numpy(),
        programmed_mean_us=np.nanmean(g, axis=1),
        programmed_std_us=np.nanstd(g, axis=1, ddof=1),
        t_s=np.asarray(t_s, dtype=np.float64),
        mean_us=np.array([np.nanmean(first, axis=1) for first, _ in reads]),
        read_std_us=np.array([np.nanstd(a - b, axis=1, ddof=1) / np.sqrt(2) for a, b in reads]),
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds every generator that a noise model may draw from, and puts their states back."""
    states = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the generators of other devices, for good.
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(states[0])  # noqa: NPY002
            random.setstate(states[1])
