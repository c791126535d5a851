"""Drift compensation for a batch: one-hot inputs through a tile's analogue forward pass.

aihwkit compensates drift by comparing what the tile answers to the unit vectors before and after.
With one input at a time, output ij is x w_ij plus noise, and nothing couples the elements of a
row but bound management. The periphery is that of :mod:`wpo_optuna.loss.forward_pass`.

aihwkit's torch tile (``AnalogMVM``) knows fewer settings, which it refuses itself, and differs in
three things: bound management repeats all inputs while any output exceeds the bound, the steps of
the converters are not rounded to single precision before they are used, and a perfect periphery
has no output scale.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from aihwkit.inference.compensation.base import BaseDriftCompensation
from aihwkit.inference.compensation.drift import (
    GlobalDriftCompensation,
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
)
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.parameters.enums import BoundManagementType, WeightNoiseType
from aihwkit.simulator.parameters.io import IOParameters
from aihwkit.simulator.tiles import (
    InferenceTile,
    QuantizedTorchInferenceTile,
    TorchInferenceTile,
)
from aihwkit.simulator.tiles.torch_tile import TorchSimulatorTile
from torch import Tensor

from wpo_optuna.loss.base import not_batched
from wpo_optuna.loss.forward_pass import ForwardPass, why_not_known
from wpo_optuna.loss.noise import Key, RandomNumbers, Use

_COMPENSATIONS = (
    GlobalDriftCompensation,
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
)
# The lower bound that aihwkit gives a drift read-out.
_SMALLEST_READOUT = 1e-4

# Standard deviations that the output noise of a tile reaches.
_REACH = 4.5

# Kinds of noise within one pass; part of the key.
_INPUT_NOISE, _OUTPUT_NOISE = range(2)


class DriftCompensation:
    """The factor α = r₀ / r_t, where r is the mean absolute output for one-hot inputs.

    Args:
        compensation: aihwkit's counterpart.
        readout: what it reads through.

    Raises:
        InvalidArgument: the compensation is not known here (a subclass might do anything).
    """

    def __init__(self, compensation: BaseDriftCompensation, readout: AnalogReadout) -> None:
        kind = type(compensation)
        if kind not in _COMPENSATIONS:
            raise not_batched(f"rpu_config.drift_compensation = {kind.__name__}")
        self._readout = readout
        self._is_per_column = kind is PerColumnDriftCompensation
        self._has_exact_reference = kind is GlobalDriftCompensationWithExactReference

    def factor(
        self,
        target: Tensor,
        programmed: Tensor,
        drifted: Tensor,
        noise: RandomNumbers,
        place: tuple[int, int],
    ) -> Tensor:
        """The factor, ``(n, 1, 1)`` for the tile or ``(n, out, 1)`` for each of its columns.

        Args:
            target: target weights ``(1, out, in)``.
            programmed: weights after programming ``(n, out, in)``.
            drifted: weights after drift ``(n, out, in)``.
            noise: the random numbers.
            place: indices of tile and time, part of their keys.
        """
        reference = target
        if not self._has_exact_reference:
            reference = self._readout.outputs(programmed, noise, (Use.REFERENCE_READOUT, *place))
        outputs = self._readout.outputs(drifted, noise, (Use.DRIFTED_READOUT, *place))
        return self._mean_absolute(reference) / self._mean_absolute(outputs)

    def _mean_absolute(self, outputs: Tensor) -> Tensor:
        mean = outputs.abs().mean(dim=2, keepdim=True)
        # In two steps, since torch adds up to a single number in another order than to several.
        mean = mean if self._is_per_column else mean.mean(dim=1, keepdim=True)
        return mean.clamp(min=_SMALLEST_READOUT)


class AnalogReadout(ForwardPass):
    """Outputs of a tile for one-hot inputs.

    Args:
        io: settings of the forward pass, such as aihwkit's tile accepts.
        is_torch: whether the tile is aihwkit's torch tile instead of the compiled one.

    Raises:
        InvalidArgument: a setting cannot be evaluated for a batch of candidates.
    """

    def __init__(self, io: IOParameters, *, is_torch: bool = False) -> None:
        super().__init__(io, np.float64 if is_torch else np.float32)
        self._is_torch = is_torch
        reason = why_not_known(io)
        # No bound for the compiled tile; the torch tile makes converters without steps of it.
        if is_torch and not self.is_ideal and min(io.inp_bound, io.out_bound) <= 0:
            reason = (
                f"rpu_config.forward has inp_bound = {io.inp_bound}, out_bound = {io.out_bound}"
            )
        if reason is not None:
            raise not_batched(reason)

    @classmethod
    def of_tile(cls, rpu_config: InferenceRPUConfig) -> AnalogReadout:
        """The read-out of the tile that a configuration makes.

        Raises:
            InvalidArgument: the tile is none of those known here (a subclass might do anything),
                or a setting cannot be evaluated for a batch of candidates.
        """
        kind = rpu_config.tile_class
        # The quantised tile quantises what a network sees of it, and not its read-out.
        if kind not in (InferenceTile, TorchInferenceTile, QuantizedTorchInferenceTile):
            raise not_batched(f"rpu_config.tile_class = {kind.__name__}")
        if getattr(rpu_config, "drift_compensation", None) is None:
            return cls(IOParameters(is_perfect=True))  # nothing is read
        if kind is InferenceTile:
            return cls(rpu_config.forward)
        simulator = getattr(rpu_config, "simulator_tile_class", None)
        if simulator is not TorchSimulatorTile:
            name = getattr(simulator, "__name__", simulator)
            raise not_batched(f"rpu_config.simulator_tile_class = {name}")
        return cls(rpu_config.forward, is_torch=True)

    def with_settings(self, **settings: Any) -> AnalogReadout:
        """The same tile with other settings of its forward pass."""
        return type(self)(replace(self.io, **settings), is_torch=self._is_torch)

    def may_repeat_all(self, largest: float) -> bool:
        """Whether a weight of this size can make bound management repeat all inputs together."""
        if self.is_ideal or self.io.bound_management == BoundManagementType.NONE:
            return False
        x = self._converted_input(self._input_strength())
        return self._is_torch and x * largest + _REACH * self.io.out_noise > self.out_bound

    def outputs(self, weights: Tensor, noise: RandomNumbers, key: Key) -> Tensor:
        """Outputs for every unit vector.

        Args:
            weights: ``(n, out, in)``, unitless.
            noise: the random numbers, of one draw for all or of n draws.
            key: key of this read-out.

        Returns:
            outputs ``(n, out, in)``: element (i, j) is output i for unit vector j.
        """
        if self.is_ideal:
            return weights if self._is_torch else weights * self.io.out_scale
        strength, n_passes = self._input_strength(), 1
        outputs, exceeds = self._pass(weights, strength, noise, (*key, 0))
        while exceeds is not None and not self.is_last_pass(2 ** (n_passes - 1)):
            divisor = strength * np.float32(2**n_passes)
            repeated, again = self._pass(weights, divisor, noise, (*key, n_passes))
            outputs = torch.where(exceeds[:, None, :], repeated, outputs)
            exceeds = None if again is None else exceeds & again
            n_passes += 1
        return outputs

    def _pass(
        self, weights: Tensor, divisor: np.float32, noise: RandomNumbers, key: Key
    ) -> tuple[Tensor, Tensor | None]:
        """One pass with inputs divided by divisor.

        Returns:
            Outputs (n, out, in), multiplied by divisor again, and which inputs (n, in) bound
            management repeats; None if it is none of them.
        """
        signal, variance = self._product(weights, divisor, noise, key)
        # Two independent Gaussian terms in a row are one.
        std = self.io.out_noise
        std = std if variance is None else variance.add(std**2).sqrt_()
        xi = noise.normal((*key, _OUTPUT_NOISE), tuple(weights.shape[1:]), weights.device)
        values = torch.add(std * xi, signal)
        exceeds = self.convert_outputs(values)
        if exceeds is not None and self._is_torch:
            exceeds = exceeds.any(dim=1, keepdim=True).expand_as(exceeds)
        factor = float(np.float32(self.io.out_scale) * divisor)
        return values.mul_(factor) if factor != 1 else values, exceeds

    def _product(
        self, weights: Tensor, divisor: np.float32, noise: RandomNumbers, key: Key
    ) -> tuple[Tensor, Tensor | None]:
        """Product of inputs and weights (n, out, in), and variance of its weight noise."""
        io, x = self.io, self._converted_input(divisor)
        # Rows are inputs; the unit vectors themselves where they have no noise.
        inputs: Tensor | None = None
        if io.inp_noise > 0:
            n_inputs = weights.shape[2]
            xi = noise.normal((*key, _INPUT_NOISE), (n_inputs, n_inputs), weights.device)
            inputs = torch.eye(n_inputs, device=weights.device).mul_(x) + io.inp_noise * xi
        signal = weights * x if inputs is None else weights @ inputs.mT
        if io.ir_drop > 0:
            signal -= self._ir_drop(weights, x, inputs)
        if not self.has_weight_noise:
            return signal, None
        if io.w_noise_type == WeightNoiseType.ADDITIVE_CONSTANT:
            power = signal.new_tensor(x**2) if inputs is None else (inputs**2).sum(2)[:, None]
        else:
            power = weights.abs() * x**2 if inputs is None else weights.abs() @ (inputs**2).mT
        return signal, power * io.w_noise**2

    def _ir_drop(self, weights: Tensor, x: float, inputs: Tensor | None) -> Tensor:
        """What the resistance of the wires takes from the outputs (n, out, in)."""
        n_rows = weights.shape[2]
        # The first input is farthest from the output.
        share = 1 - (1 - torch.arange(n_rows, device=weights.device) / n_rows) ** 2
        if inputs is None:
            current, dropping = (weights * x).abs(), weights * (x * share)
        else:
            current, dropping = weights.abs() @ inputs.abs().mT, weights @ (inputs * share).mT
        a = current.mul_(n_rows / self.io.ir_drop_g_ratio)
        return dropping.mul_(a * (a * (0.05 * a - 0.2) + 0.5)).mul_(self.io.ir_drop)

    def _input_strength(self) -> np.float32:
        """What noise management divides a unit vector by."""
        return np.float32(self.strength(torch.ones(1, 1)).item())

    def _converted_input(self, divisor: np.float32) -> float:
        """What the DAC makes of the entry 1 of a unit vector."""
        x = torch.tensor([np.float32(1) / divisor])
        self.convert_inputs(x)
        return float(x)
