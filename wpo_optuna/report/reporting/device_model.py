"""How the devices of a noise model behave over their range of conductance."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wpo_optuna.loss.device_noise import preserved_generators
from wpo_optuna.report.reporting.stored_numbers import FloatArray, from_stored, to_stored

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

    g_target_us: FloatArray
    programmed_mean_us: FloatArray
    programmed_std_us: FloatArray
    t_s: FloatArray
    mean_us: FloatArray
    read_std_us: FloatArray

    def to_json(self) -> dict[str, Any]:
        """The statistics as plain lists, by name."""
        return {name: to_stored(values) for name, values in vars(self).items()}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> DeviceModel:
        """Reverses :meth:`to_json`, but for digits that no figure shows."""
        return cls(**{name: from_stored(values) for name, values in stored.items()})


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
    with preserved_generators(), torch.no_grad():
        _seed_globally(seed)
        # A model may change what it is given, so everything is handed over as a copy.
        programmed = model.apply_programming_noise_to_conductance(g_target.clone())
        nu = model.generate_drift_coefficients(g_target.clone())

        def read(t: float) -> FloatArray:
            kept = None if nu is None else nu.clone()
            return _numbers(model.apply_drift_noise_to_conductance(programmed.clone(), kept, t))

        means, deviations = zip(*(_twice(read, t) for t in t_s), strict=True)
    g = _numbers(programmed)
    return DeviceModel(
        g_target_us=_numbers(targets),
        programmed_mean_us=np.nanmean(g, axis=1),
        programmed_std_us=np.nanstd(g, axis=1, ddof=1),
        t_s=np.asarray(t_s, dtype=np.float64),
        mean_us=np.array(means),
        read_std_us=np.array(deviations),
    )


def _twice(read: Callable[[float], FloatArray], t: float) -> tuple[FloatArray, FloatArray]:
    """Mean of a read (G,) and its standard deviation, from two reads of the same devices."""
    first, second = read(t), read(t)
    deviation = np.nanstd(first - second, axis=1, ddof=1) / np.sqrt(2)
    return np.nanmean(first, axis=1), deviation


def _numbers(conductances: Tensor) -> FloatArray:
    return conductances.double().cpu().numpy()


def _seed_globally(seed: int) -> None:
    """Seeds every generator that a noise model may draw from."""
    # torch.manual_seed would also seed the generators of other devices, for good.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
