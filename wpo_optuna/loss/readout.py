"""The drift read-out: one-hot inputs through a tile's analogue forward pass, batched.

aihwkit compensates drift by comparing what the tile answers to the unit vectors before and after.
With one input at a time, output ij is x w_ij plus noise, and nothing couples the elements of a
row but bound management, which repeats an input at half its strength while one of its outputs
exceeds the bound. Order of operations and rounding are those of the compiled tile (RPUCuda,
``ForwardBackwardPassIOManaged``, single precision): DAC, bound, input noise, product, weight
noise, output noise, ADC, bound.
"""

from __future__ import annotations

import numpy as np
import torch
from aihwkit.simulator.parameters.enums import (
    AnalogMVType,
    BoundManagementType,
    NoiseManagementType,
    WeightNoiseType,
)
from aihwkit.simulator.parameters.io import IOParameters, IOParametersIRDropT
from torch import Tensor

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.common_noise import Key, RandomNumbers

# nm_assumed_wmax of the compiled tile, which aihwkit's Python side cannot change.
_ASSUMED_MAX_WEIGHT = np.float32(0.6)

# Kinds of noise within one pass; part of the key.
_DAC_ROUNDING, _INPUT_NOISE, _WEIGHT_NOISE, _OUTPUT_NOISE, _ADC_ROUNDING = range(5)


class AnalogReadout:
    """Outputs of a tile for one-hot inputs.

    Args:
        io: settings of the forward pass, such as aihwkit's tile accepts.

    Raises:
        InvalidArgument: a setting cannot be evaluated for a batch of candidates.
    """

    def __init__(self, io: IOParameters) -> None:
        _check_settings(io)
        self._io = io
        self._perfect = io.is_perfect or io.mv_type == AnalogMVType.IDEAL
        # In single precision as in the compiled tile: there, the last bit decides whether the
        # ADC's outermost step counts as beyond the bound.
        self._inp_res = _resolution(io.inp_res, io.inp_bound)
        self._out_res = _resolution(io.out_res, io.out_bound)
        self._inp_bound = _bound(io.inp_bound)
        self._out_bound = _bound(io.out_bound)

    def line_noise(
        self, n_outputs: int, noise: RandomNumbers, key: Key, device: torch.device
    ) -> Tensor:
        """Standard deviation of each output line's noise ``(R, out, 1)``; a tile keeps its own."""
        io = self._io
        std = torch.full((1, n_outputs, 1), float(io.out_noise), device=device)
        if io.out_noise_std > 0:
            std = std * (1 + io.out_noise_std * noise.normal(key, (n_outputs, 1), device))
        return std.abs_()

    def outputs(
        self, weights: Tensor, line_noise: Tensor, noise: RandomNumbers, key: Key
    ) -> Tensor:
        """Outputs for every unit vector.

        Args:
            weights: ``(n, out, in)``, unitless.
            line_noise: what :meth:`line_noise` gives.
            noise: the random numbers, of one draw for all or of n draws.
            key: key of this read-out.

        Returns:
            outputs ``(n, out, in)``: element (i, j) is output i for unit vector j.
        """
        if self._perfect:
            return weights * self._io.out_scale
        strength, reduction = self._input_strength(), np.float32(1)
        outputs, exceeds = self._pass(weights, strength, line_noise, noise, (*key, 0))
        n_passes = 1
        while exceeds.any() and not self._is_last_pass(reduction):
            reduction *= np.float32(2)
            if n_passes == 1 and self._turns_to_worst_case():
                strength, reduction = self._worst_case_strength(), np.float32(1)
            repeated, again = self._pass(
                weights, strength * reduction, line_noise, noise, (*key, n_passes)
            )
            outputs = torch.where(exceeds[:, None, :], repeated, outputs)
            exceeds = exceeds & again
            n_passes += 1
        return outputs

    def _pass(
        self,
        weights: Tensor,
        divisor: np.float32,
        line_noise: Tensor,
        noise: RandomNumbers,
        key: Key,
    ) -> tuple[Tensor, Tensor]:
        """One pass with inputs divided by divisor.

        Returns:
            Outputs (n, out, in), multiplied by divisor again, and which inputs (n, in) bound
            management repeats.
        """
        io = self._io
        shape, device = tuple(weights.shape[1:]), weights.device
        signal, variance = self._product(weights, divisor, noise, key)
        if io.out_asymmetry > 0:
            if variance is not None:
                xi = noise.normal((*key, _WEIGHT_NOISE), shape, device)
                signal = signal + variance.sqrt_() * xi
            signal = torch.where(signal < 0, signal * (1 - io.out_asymmetry), signal)
            variance = None
        # Two independent Gaussian terms in a row are one.
        std = line_noise if variance is None else variance.add(line_noise**2).sqrt_()
        xi = noise.normal((*key, _OUTPUT_NOISE), shape, device)
        values = self._converted(torch.add(std * xi, signal), noise, key)
        exceeds = self._bounded(values)
        factor = float(np.float32(io.out_scale) * divisor)
        return values.mul_(factor) if factor != 1 else values, exceeds

    def _product(
        self, weights: Tensor, divisor: np.float32, noise: RandomNumbers, key: Key
    ) -> tuple[Tensor, Tensor | None]:
        """Product of inputs and weights (n, out, in), and variance of its weight noise."""
        io = self._io
        x = self._converted_input(divisor, weights, noise, key)
        if io.inp_noise > 0:
            inputs = self._noisy_inputs(x, weights, noise, key)
            signal = _product_one_by_one(weights, inputs)
            norm = (inputs**2).sum(dim=2)[:, None, :]
        else:
            signal = weights * x[:, None, :]
            norm = (x**2)[:, None, :]
        if io.w_noise <= 0 or io.w_noise_type == WeightNoiseType.NONE:
            return signal, None
        if io.w_noise_type == WeightNoiseType.ADDITIVE_CONSTANT:
            return signal, norm * io.w_noise**2
        if io.inp_noise > 0:
            return signal, _product_one_by_one(weights.abs(), inputs**2).mul_(io.w_noise**2)
        return signal, weights.abs().mul_(norm * io.w_noise**2)

    def _converted_input(
        self, divisor: np.float32, weights: Tensor, noise: RandomNumbers, key: Key
    ) -> Tensor:
        """What the DAC makes of each unit input, ``(R, in)``."""
        io = self._io
        n_inputs = weights.shape[2]
        x = torch.full((1, n_inputs), float(np.float32(1) / divisor), device=weights.device)
        if self._inp_res > 0:
            steps = x / self._inp_res
            if io.inp_sto_round:
                uniform = noise.uniform((*key, _DAC_ROUNDING), (n_inputs,), weights.device)
                steps = steps + (uniform - 0.5)
            x = steps.round() * self._inp_res
        return x.clamp(-self._inp_bound, self._inp_bound)

    def _noisy_inputs(self, x: Tensor, weights: Tensor, noise: RandomNumbers, key: Key) -> Tensor:
        """The inputs (rows) with input noise, ``(R, in, in)``."""
        io = self._io
        n_inputs = weights.shape[2]
        xi = noise.normal((*key, _INPUT_NOISE), (n_inputs, n_inputs), weights.device)
        inputs = torch.diag_embed(x) + io.inp_noise * xi
        return torch.where(inputs < 0, inputs * (1 - io.inp_asymmetry), inputs)

    def _converted(self, values: Tensor, noise: RandomNumbers, key: Key) -> Tensor:
        """What the ADC makes of the outputs, before its bound."""
        if self._out_res <= 0:
            return values
        values = values.div_(self._out_res)
        if self._io.out_sto_round:
            shape = tuple(values.shape[1:])
            uniform = noise.uniform((*key, _ADC_ROUNDING), shape, values.device)
            values = values.add_(uniform - 0.5)
        return values.round_().mul_(self._out_res)

    def _bounded(self, values: Tensor) -> Tensor:
        """Clips in place; returns which inputs (n, in) bound management repeats."""
        io, bound = self._io, self._out_bound
        lowest, highest = torch.aminmax(values)
        none = torch.zeros(len(values), values.shape[2], dtype=torch.bool, device=values.device)
        if -bound <= float(lowest) and float(highest) <= bound:
            return none
        above, below = values > bound, values < -bound
        values.clamp_(-bound, bound)
        if io.bound_management == BoundManagementType.NONE:
            return none
        if io.bm_test_negative_bound:
            return (above | below).any(dim=1)
        # The compiled tile lets a later output below the bound undo an earlier one above it.
        order = torch.arange(1, values.shape[1] + 1, device=values.device)[:, None]
        return (above * order).amax(dim=1) > (below * order).amax(dim=1)

    def numbers_drawn(self, n_outputs: int, n_inputs: int) -> int:
        """How many random numbers one pass over a tile needs."""
        return n_inputs**2 * (self._io.inp_noise > 0) + 3 * n_outputs * n_inputs

    def _input_strength(self) -> np.float32:
        """What noise management divides a unit vector by."""
        io = self._io
        threshold = np.float32(io.nm_thres)
        if io.noise_management == NoiseManagementType.NONE:
            return np.float32(1)
        if io.noise_management == NoiseManagementType.ABS_MAX_NP_SUM:
            return self._worst_case_strength()
        if io.noise_management == NoiseManagementType.CONSTANT:
            return threshold if threshold > 0 else np.float32(1)
        if io.noise_management == NoiseManagementType.AVERAGE_ABS_MAX:
            return np.float32(1)
        return min(np.float32(1), threshold) if threshold > 0 else np.float32(1)

    def _worst_case_strength(self) -> np.float32:
        io = self._io
        threshold = np.float32(io.nm_thres)
        largest = min(np.float32(1), threshold) if threshold > 0 else np.float32(1)
        bound = 1.0 if np.isinf(self._out_bound) else self._out_bound
        assumed = _ASSUMED_MAX_WEIGHT / np.float32(bound)
        if self._inp_res > 0:
            resolved = largest / np.float32(self._inp_res) * np.float32(io.max_bm_res)
            assumed = min(resolved, assumed)
        return max(largest, assumed)

    def _turns_to_worst_case(self) -> bool:
        io = self._io
        return (
            io.bound_management == BoundManagementType.ITERATIVE_WORST_CASE
            and io.noise_management
            not in (NoiseManagementType.ABS_MAX_NP_SUM, NoiseManagementType.NONE)
        )

    def _is_last_pass(self, reduction: np.float32) -> bool:
        io = self._io
        if int(reduction) > io.max_bm_factor:
            return True
        return self._inp_res > 0 and bool(
            reduction > np.float32(io.max_bm_res) / np.float32(self._inp_res)
        )


def _check_settings(io: IOParameters) -> None:
    if isinstance(io, IOParametersIRDropT):
        raise _not_batched(f"is a {type(io).__name__}")
    if io.is_perfect or io.mv_type == AnalogMVType.IDEAL:
        return
    if io.mv_type != AnalogMVType.ONE_PASS:
        raise _not_batched(f"has mv_type = {io.mv_type}")
    for name in ("ir_drop", "out_nonlinearity", "v_offset_std", "r_series"):
        if getattr(io, name) > 0:
            raise _not_batched(f"has {name} = {getattr(io, name)}")
    if io.bound_management == BoundManagementType.SHIFT:
        raise _not_batched(f"has bound_management = {io.bound_management}")


def _not_batched(what: str) -> InvalidArgument:
    return InvalidArgument(
        f"rpu_config.forward {what}, which the Monte Carlo engine cannot evaluate for a batch of "
        'candidates: use the engine "aihwkit".'
    )


def _resolution(resolution: float, bound: float) -> float:
    """The converter's step, given as a fraction of its range or as the number of steps."""
    step = np.float32(max(resolution, 0.0))
    step = np.float32(1) / step if step > 1 else step
    return float(step * (np.float32(2) * np.float32(bound)))


def _bound(bound: float) -> float:
    """A converter's bound; one that is not positive is none."""
    return float(np.float32(bound)) if bound > 0 else float("inf")


def _product_one_by_one(weights: Tensor, inputs: Tensor) -> Tensor:
    """Outputs (n, out, in) for noisy inputs (R, in, in), one input a row.

    Matrix by matrix, because a library may add up in another order for another number of rows,
    and a candidate's value must not depend on its neighbours.
    """
    rows = inputs.expand(len(weights), -1, -1)
    return torch.stack([w.clone() @ x.T for w, x in zip(weights, rows, strict=True)])
