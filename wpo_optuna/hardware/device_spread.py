"""Devices around a given one: what if programming, drift or read noise are otherwise than thought.

A noise model is taken as it is, whatever its formulas, and what it returns is scaled: with random
numbers that are all zero it tells what it would do without noise, and the difference is its noise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from scipy.stats import lognorm, qmc
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wpo_optuna.errors import InvalidArgument


class HasNoiseModel(Protocol):
    """An RPU configuration for inference."""

    noise_model: BaseNoiseModel


Config = TypeVar("Config", bound=HasNoiseModel)


@dataclass(frozen=True)
class DeviceFactors:
    """By what a device differs from the one that a noise model describes.

    Attributes:
        programming: factor of the error of programming.
        nu_mean: factor of the drift coefficient without noise.
        nu_std: factor of its scatter from device to device.
        read_noise: factor of the noise at the time of reading.
    """

    programming: float = 1.0
    nu_mean: float = 1.0
    nu_std: float = 1.0
    read_noise: float = 1.0


class ScaledNoiseModel(BaseNoiseModel):
    """A noise model whose programming error, drift and read noise are multiplied by factors.

    Args:
        noise_model: the model.
        factors: the factors.
    """

    def __init__(self, noise_model: BaseNoiseModel, factors: DeviceFactors) -> None:
        super().__init__(noise_model.g_converter)
        self.noise_model, self.factors = noise_model, factors

    def __getattr__(self, name: str) -> Any:
        # The range of its conductances and the like are the model's own.
        if name in ("noise_model", "factors"):
            raise AttributeError(name)
        return getattr(self.noise_model, name)

    def __str__(self) -> str:
        factors = ", ".join(f"{name} x {f:.2f}" for name, f in vars(self.factors).items())
        return f"{type(self.noise_model).__name__} with {factors}"

    @torch.no_grad()
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        """See the class."""
        programmed = self.noise_model.apply_programming_noise_to_conductance(g_target.clone())
        return (g_target + self.factors.programming * (programmed - g_target)).clamp(min=0.0)

    @torch.no_grad()
    def generate_drift_coefficients(self, g_target: Tensor) -> Tensor | None:
        """See the class."""
        generate = self.noise_model.generate_drift_coefficients
        nu = generate(g_target.clone())
        if nu is None:
            return None
        calm = _without_noise(generate, g_target.clone())
        return self.factors.nu_mean * calm + self.factors.nu_std * (nu - calm)

    @torch.no_grad()
    def apply_drift_noise_to_conductance(
        self, g_prog: Tensor, drift_noise_param: Tensor | None, t_inference: float
    ) -> Tensor:
        """See the class."""
        apply = self.noise_model.apply_drift_noise_to_conductance
        drifted = apply(g_prog.clone(), drift_noise_param, t_inference)
        calm = _without_noise(apply, g_prog.clone(), drift_noise_param, t_inference)
        return (calm + self.factors.read_noise * (drifted - calm)).clamp(min=0.0)


def devices_around(spread: float, n: int, seed: int) -> tuple[DeviceFactors, ...]:
    """Factors of n devices around a given one.

    Args:
        spread: standard deviation of the factors' logarithms, such as 0.2 for about 20 %.
        n: number of devices; a power of two fills the space evenly (Sobol's points).
        seed: seed of their scrambling.

    Raises:
        InvalidArgument: the spread is not above 0, or there are no devices.
    """
    if not 0 < spread <= 1:
        raise InvalidArgument(f"device_spread = {spread}: a number from 0 to 1 is needed.")
    if n < 1:
        raise InvalidArgument(f"n = {n}: a whole number of at least 1 is needed.")
    names = [field.name for field in fields(DeviceFactors)]
    points = qmc.Sobol(len(names), rng=np.random.default_rng(seed)).random(n)
    factors = lognorm.ppf(points, spread)
    return tuple(DeviceFactors(*row) for row in factors.tolist())


def with_factors(rpu_config: Config, factors: DeviceFactors) -> Config:
    """A copy of an RPU configuration with other devices."""
    changed = copy.deepcopy(rpu_config)
    changed.noise_model = ScaledNoiseModel(changed.noise_model, factors)
    return changed


class _Calm(TorchFunctionMode):
    """A block in which random numbers around zero are zero, in this thread."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.randn_like:
            return torch.zeros_like(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _without_noise(method: Callable[..., Tensor], *arguments: Any) -> Tensor:
    with _Calm():
        return method(*arguments)
