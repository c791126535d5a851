"""Drift compensation for a batch: one-hot inputs through a tile's analogue forward pass.

aihwkit compensates drift by comparing what the tile answers to the unit vectors before and after.
With one input at a time, output ij is x w_ij plus noise, and nothing couples the elements of a
row but bound management, which repeats an input at half its strength while one of its outputs
exceeds the bound. Order of operations and rounding are those of the compiled tile (RPUCuda,
``ForwardBackwardPassIOManaged``, single precision): DAC, bound, input noise, product, IR drop,
weight noise, output noise, ADC, bound.

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
from aihwkit.simulator.parameters.enums import (
    AnalogMVType,
    BoundManagementType,
    NoiseManagementType,
    WeightNoiseType,
)
from aihwkit.simulator.parameters.io import IOParameters
from aihwkit.simulator.tiles import (
    InferenceTile,
    QuantizedTorchInferenceTile,
    TorchInferenceTile,
)
from aihwkit.simulator.tiles.torch_tile import TorchSimulatorTile
from torch import Tensor

from wpo_optuna.loss.base import not_batched
from wpo_optuna.loss.noise import Key, RandomNumbers, Use

_COMPENSATIONS = (
    GlobalDriftCompensation,
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
)
# The lower bound that aihwkit gives a drift read-out.
_SMALLEST_READOUT = 1e-4

# Settings that couple the outputs or are hardly ever used: aihwkit's tile alone simulates them.
_MUST_BE_OFF = (
    "out_nonlinearity", "v_offset_std", "r_series", "inp_asymmetry", "out_asymmetry",
    "inp_sto_round", "out_sto_round", "out_noise_std",
)  # fmt: skip
_BOUND_MANAGEMENTS = (BoundManagementType.NONE, BoundManagementType.ITERATIVE)

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


class AnalogReadout:
    """Outputs of a tile for one-hot inputs.

    Args:
        io: settings of the forward pass, such as aihwkit's tile accepts.
        is_torch: whether the tile is aihwkit's torch tile instead of the compiled one.

    Attributes:
        io: the settings.

    Raises:
        InvalidArgument: a setting cannot be evaluated for a batch of candidates.
    """

    def __init__(self, io: IOParameters, *, is_torch: bool = False) -> None:
        self.io = io
        self._is_torch = is_torch
        self._is_perfect = io.is_perfect or io.mv_type == AnalogMVType.IDEAL
        if not self._is_perfect:
            _check_settings(io, is_torch)
        # The last bit decides whether the ADC's outermost step counts as beyond the bound.
        real = np.float64 if is_torch else np.float32
        self._inp_res = _resolution(real(io.inp_res), real(io.inp_bound))
        self._out_res = _resolution(real(io.out_res), real(io.out_bound))
        self._inp_bound = _bound(io.inp_bound)
        self._out_bound = _bound(io.out_bound)

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
        if self._is_perfect or self.io.bound_management == BoundManagementType.NONE:
            return False
        x = self._converted_input(self._input_strength())
        return self._is_torch and x * largest + _REACH * self.io.out_noise > self._out_bound

    def outputs(self, weights: Tensor, noise: RandomNumbers, key: Key) -> Tensor:
        """Outputs for every unit vector.

        Args:
            weights: ``(n, out, in)``, unitless.
            noise: the random numbers, of one draw for all or of n draws.
            key: key of this read-out.

        Returns:
            outputs ``(n, out, in)``: element (i, j) is output i for unit vector j.
        """
        if self._is_perfect:
            return weights if self._is_torch else weights * self.io.out_scale
        strength, reduction = self._input_strength(), np.float32(1)
        outputs, exceeds = self._pass(weights, strength, noise, (*key, 0))
        n_passes = 1
        while exceeds.any() and not self._is_last_pass(reduction):
            reduction *= np.float32(2)
            repeated, again = self._pass(weights, strength * reduction, noise, (*key, n_passes))
            outputs = torch.where(exceeds[:, None, :], repeated, outputs)
            exceeds = exceeds & again
            n_passes += 1
        return outputs

    def _pass(
        self, weights: Tensor, divisor: np.float32, noise: RandomNumbers, key: Key
    ) -> tuple[Tensor, Tensor]:
        """One pass with inputs divided by divisor.

        Returns:
            Outputs (n, out, in), multiplied by divisor again, and which inputs (n, in) bound
            management repeats.
        """
        signal, variance = self._product(weights, divisor, noise, key)
        # Two independent Gaussian terms in a row are one.
        std = self.io.out_noise
        std = std if variance is None else variance.add(std**2).sqrt_()
        xi = noise.normal((*key, _OUTPUT_NOISE), tuple(weights.shape[1:]), weights.device)
        values = torch.add(std * xi, signal)
        if self._out_res > 0:
            values = values.div_(self._out_res).round_().mul_(self._out_res)
        exceeds = self._bounded(values)
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
        if io.w_noise <= 0 or io.w_noise_type == WeightNoiseType.NONE:
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

    def _converted_input(self, divisor: np.float32) -> float:
        """What the DAC makes of the entry 1 of a unit vector."""
        x = np.float32(1) / divisor
        if self._inp_res > 0:
            x = np.round(x / np.float32(self._inp_res)) * np.float32(self._inp_res)
        return float(np.clip(x, -self._inp_bound, self._inp_bound))

    def _bounded(self, values: Tensor) -> Tensor:
        """Clips in place; returns which inputs (n, in) bound management repeats."""
        bound = self._out_bound
        lowest, highest = torch.aminmax(values)
        none = torch.zeros(len(values), values.shape[2], dtype=torch.bool, device=values.device)
        if -bound <= float(lowest) and float(highest) <= bound:
            return none
        exceeds = (values.abs() > bound).any(dim=1)
        values.clamp_(-bound, bound)
        if self.io.bound_management == BoundManagementType.NONE:
            return none
        return exceeds.any(dim=1, keepdim=True).expand_as(none) if self._is_torch else exceeds

    def _input_strength(self) -> np.float32:
        """What noise management divides a unit vector by."""
        threshold, kind = np.float32(self.io.nm_thres), self.io.noise_management
        unmanaged = (NoiseManagementType.NONE, NoiseManagementType.AVERAGE_ABS_MAX)
        if threshold <= 0 or kind in unmanaged:
            return np.float32(1)
        return threshold if kind == NoiseManagementType.CONSTANT else min(np.float32(1), threshold)

    def _is_last_pass(self, reduction: np.float32) -> bool:
        io = self.io
        resolved = self._inp_res > 0 and reduction > np.float32(io.max_bm_res / self._inp_res)
        return int(reduction) > io.max_bm_factor or bool(resolved)


def _check_settings(io: IOParameters, is_torch: bool) -> None:
    refused = {name: getattr(io, name) > 0 for name in _MUST_BE_OFF} | {
        "mv_type": io.mv_type != AnalogMVType.ONE_PASS,
        "bound_management": io.bound_management not in _BOUND_MANAGEMENTS,
        "noise_management": io.noise_management == NoiseManagementType.ABS_MAX_NP_SUM,
        "bm_test_negative_bound": io.out_bound > 0 and not io.bm_test_negative_bound,
        # No bound for the compiled tile; the torch tile makes converters without steps of it.
        "inp_bound": is_torch and io.inp_bound <= 0,
        "out_bound": is_torch and io.out_bound <= 0,
    }
    named = [f"has {name} = {getattr(io, name)}" for name, is_so in refused.items() if is_so]
    if named:
        raise not_batched(f"rpu_config.forward {named[0]}")


def _resolution(resolution: Any, bound: Any) -> float:
    """The converter's step, given as a fraction of its range or as the number of steps.

    Both are numpy numbers of the precision in which the tile computes it.
    """
    step = max(resolution, type(resolution)(0))
    return float((1 / step if step > 1 else step) * (2 * bound))


def _bound(bound: float) -> float:
    """A converter's bound; one that is not positive is none."""
    return float(np.float32(bound)) if bound > 0 else float("inf")
