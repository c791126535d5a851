"""A noise model of tables, for devices that aihwkit's formulas do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from aihwkit.inference.noise.pcm import CustomDriftPCMLikeNoiseModel
from numpy import interp
from torch import Tensor


class MeasuredNoiseModel(CustomDriftPCMLikeNoiseModel):
    """Devices whose programming error, drift and read noise are tables over the conductance.

    Between the table's conductances everything is linear, beyond them constant:

    * programming: g = max(0, target + bias + std ξ);
    * drift: g (t/t_0 + 1)^-ν, with ν = abs(mean + std ξ) drawn at the target;
    * read noise: relative to the drifted conductance, with the standard deviation
      ``read_noise`` · √log((t + t_0 + t_read) / (2 t_read)), at the programmed conductance.

    Args:
        g_lst: conductances of the tables in µS, ascending ``(K,)``.
        programming_bias: mean error of programming in µS ``(K,)``.
        programming_std: its standard deviation in µS ``(K,)``.
        nu_mean, nu_std: of the drift coefficients ``(K,)``.
        read_noise: see above ``(K,)``.
        options: those of ``CustomDriftPCMLikeNoiseModel``, such as ``t_0``.
    """

    def __init__(
        self,
        g_lst: Sequence[float],
        programming_bias: Sequence[float],
        programming_std: Sequence[float],
        nu_mean: Sequence[float],
        nu_std: Sequence[float],
        read_noise: Sequence[float],
        **options: Any,
    ) -> None:
        drift = {"g_lst": [*g_lst], "nu_mean_lst": [*nu_mean], "nu_std_lst": [*nu_std]}
        super().__init__(drift, **options)
        self.programming_bias, self.programming_std = [*programming_bias], [*programming_std]
        self.read_noise = [*read_noise]

    @torch.no_grad()
    def apply_programming_noise_to_conductance(self, g_target: Tensor) -> Tensor:
        """See the class."""
        std = self.prog_noise_scale * self._at(g_target, self.programming_std)
        bias = self._at(g_target, self.programming_bias)
        return (g_target + bias + std * torch.randn_like(g_target)).clamp(min=0.0)

    @torch.no_grad()
    def apply_drift_noise_to_conductance(
        self, g_prog: Tensor, drift_noise_param: Tensor, t_inference: float
    ) -> Tensor:
        """See the class."""
        t = torch.tensor(t_inference + self.t_0, dtype=torch.float64)
        drifted = g_prog * float(t / self.t_0) ** -drift_noise_param
        relative = self._at(g_prog, self.read_noise)
        relative = relative * float(((t + self.t_read) / (2 * self.t_read)).log().sqrt())
        noise = self.read_noise_scale * relative * torch.randn_like(g_prog)
        return (drifted * (1 + noise)).clamp(min=0.0)

    def _at(self, g: Tensor, table: Sequence[float]) -> Tensor:
        """Values of a table at conductances of any shape."""
        return torch.from_numpy(interp(g.numpy(), self.custom_drift_model["g_lst"], table)).to(g)
