"""Tabulated moments of devices against plain sampling, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
from aihwkit.inference.noise.reram import ReRamCMONoiseModel
from expected_problems import RelaxingNoise
from loss_agreement import DAY, DEVICES
from numpy.typing import NDArray
from torch import Tensor

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.expected.device_moments import DeviceMoments, tabulate_device_moments

FloatArray = NDArray[np.float64]


def interpolated(moments: DeviceMoments, present: float, target: float) -> FloatArray:
    """Mean and variance (2, T) at the times, as the expected loss reads them from the tables."""

    def at(table: FloatArray, g: float) -> FloatArray:
        columns = table.reshape(len(moments.g_us), -1).T
        values = [np.interp(g, moments.g_us, column) for column in columns]
        return np.reshape(values, table.shape[1:])

    mean, relative = (at(moments.present, present) * at(moments.target, target)).sum(axis=1)
    return np.stack([mean, mean**2 * (relative - 1)])


class NearestLevels(PCMLikeNoiseModel):
    """Noise that depends on what the other devices are programmed to."""

    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        return super().apply_programming_noise_to_conductance(g_target) * g_target.max() / 25


class Interfering(PCMLikeNoiseModel):
    """Oscillates in the product of target and present conductance."""

    def generate_drift_coefficients(self, g_target: Tensor) -> Tensor:
        return g_target

    def apply_drift_noise_to_conductance(
        self, g_prog: Tensor, drift_noise_param: Tensor | None, t_inference: float
    ) -> Tensor:
        assert drift_noise_param is not None
        waves = torch.sin(g_prog * drift_noise_param / 10)
        return 5 + waves + 0.01 * torch.randn_like(g_prog)


MODELS: dict[str, tuple[Callable[[], BaseNoiseModel], float, float, tuple[float, ...]]] = {
    name: (devices.model, devices.g_min, devices.g_max, devices.t_steps)
    for name, devices in DEVICES.items()
} | {"two terms": (RelaxingNoise, 0.0, 25.0, (1.0, DAY))}


@pytest.mark.parametrize("name", MODELS)
def test_moments_are_those_of_the_noise_models_samples(name: str) -> None:
    build, low, high, t_steps = MODELS[name]
    model = build()
    tables = tabulate_device_moments(model, t_steps, low, high)
    rng = np.random.default_rng(0)
    present, target = low + (high - low) * rng.uniform(0.03, 1, (2, 12))
    torch.manual_seed(1)
    n = 40_000
    for i, t in enumerate(t_steps):
        nu = model.generate_drift_coefficients(torch.from_numpy(np.tile(target, (n, 1))))
        g = torch.from_numpy(np.tile(present, (n, 1)))
        sample = model.apply_drift_noise_to_conductance(g, nu, t).numpy()
        for k in range(len(present)):
            mean, variance = interpolated(tables, present[k], target[k])[:, i]
            deviation = sample[:, k].std()
            # 5 standard errors of the sample's mean: 12 x 2 of them fail with a rate of 1e-5.
            assert abs(mean - sample[:, k].mean()) < deviation * (5 / n**0.5 + 0.005)
            # Its variance has a standard error of 1 to 2 % (kurtosis); interpolation adds 3 %
            # where the spread is as large as a small conductance, and a decomposition 1 % of the
            # largest variance.
            largest = float((sample.var(axis=0)).max())
            assert variance == pytest.approx(deviation**2, rel=0.08, abs=0.01 * largest)


def test_programmed_moments_are_those_of_the_noise_models_samples() -> None:
    model = PCMLikeNoiseModel()
    tables = tabulate_device_moments(model, (1.0,), 0.0, 25.0)
    torch.manual_seed(1)
    for g in (0.0, 0.4, 7.0, 25.0):
        sample = model.apply_programming_noise_to_conductance(torch.full((40_000,), g)).numpy()
        mean = np.interp(g, tables.g_us, tables.programmed_mean)
        variance = np.interp(g, tables.g_us, tables.programmed_variance)
        # 5 standard errors: 4 of them fail with a rate of 2e-6.
        assert abs(mean - sample.mean()) < 5 * sample.std() / 200 + 1e-3
        assert variance == pytest.approx(sample.var(), rel=0.05)


def test_one_term_suffices_for_every_model_of_aihwkit_and_others_take_more() -> None:
    for name, (build, low, high, t_steps) in MODELS.items():
        n_terms = tabulate_device_moments(build(), t_steps, low, high).target.shape[2]
        assert (n_terms == 1) == (name != "two terms"), name


def test_conductances_that_can_come_out_undefined_are_marked() -> None:
    # Its read noise takes the logarithm of a conductance that may have become negative.
    tables = tabulate_device_moments(ReRamCMONoiseModel(), (DAY,), 0.0, 88.2)
    undefined = np.isnan(tables.present).any(axis=(1, 2, 3))
    assert undefined[tables.g_us < 2].all()
    assert not undefined[tables.g_us > 9].any()


def test_a_model_whose_devices_depend_on_each_other_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"montecarlo.* or .*aihwkit"):
        tabulate_device_moments(NearestLevels(), (1.0,), 0.0, 25.0)


def test_a_model_whose_moments_are_no_short_sum_of_products_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"t = 60 s.*montecarlo"):
        tabulate_device_moments(Interfering(), (60.0,), 0.0, 25.0)
