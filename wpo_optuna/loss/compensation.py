"""Drift compensation: the factor by which drifted outputs are multiplied, for a batch."""

from __future__ import annotations

from dataclasses import dataclass

from aihwkit.inference.compensation.drift import (
    GlobalDriftCompensation,
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
)
from aihwkit.simulator.configs import InferenceRPUConfig
from torch import Tensor

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.common_noise import Key, RandomNumbers, Use
from wpo_optuna.loss.readout import AnalogReadout

# The lower bound that aihwkit gives a drift read-out.
_SMALLEST_READOUT = 1e-4

_KNOWN = (
    GlobalDriftCompensation,
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
)


@dataclass(frozen=True)
class DriftCompensation:
    """α = r₀ / r_t, where r is the mean absolute output for one-hot inputs.

    Attributes:
        readout: the tile's analogue forward pass.
        per_column: whether the mean is that of each column, and not of the tile.
        exact_reference: whether r₀ is that of the target weights, read without error.
    """

    readout: AnalogReadout
    per_column: bool
    exact_reference: bool

    def factor(
        self,
        target: Tensor,
        programmed: Tensor,
        drifted: Tensor,
        noise: RandomNumbers,
        place: tuple[int, int],
    ) -> Tensor:
        """The factor α, ``(n, 1, 1)`` for the tile or ``(n, out, 1)`` for each of its columns.

        Args:
            target: target weights ``(1, out, in)``.
            programmed: weights after programming ``(n, out, in)``.
            drifted: weights after drift ``(n, out, in)``.
            noise: the random numbers.
            place: indices of tile and time, part of their keys.
        """
        if self.exact_reference:
            reference = self._mean_absolute(target)
        else:
            reference = self._read(programmed, noise, (Use.REFERENCE_READOUT, *place))
        return reference / self._read(drifted, noise, (Use.DRIFTED_READOUT, *place))

    def _read(self, weights: Tensor, noise: RandomNumbers, key: Key) -> Tensor:
        lines = (Use.OUTPUT_LINES, key[1])  # a tile keeps its lines
        line_noise = self.readout.line_noise(weights.shape[1], noise, lines, weights.device)
        return self._mean_absolute(self.readout.outputs(weights, line_noise, noise, key))

    def _mean_absolute(self, outputs: Tensor) -> Tensor:
        mean = outputs.abs().mean(dim=2, keepdim=True)
        # In two steps, since torch adds up to a single number in another order than to several.
        mean = mean if self.per_column else mean.mean(dim=1, keepdim=True)
        return mean.clamp(min=_SMALLEST_READOUT)


def drift_compensation(rpu_config: InferenceRPUConfig) -> DriftCompensation | None:
    """The batched counterpart of a configuration's drift compensation, None if it has none.

    Raises:
        InvalidArgument: the class is not known here (a subclass might do anything), or the forward
            pass that it reads through cannot be evaluated for a batch of candidates.
    """
    compensation = getattr(rpu_config, "drift_compensation", None)
    if compensation is None:
        return None
    kind = type(compensation)
    if kind not in _KNOWN:
        known = ", ".join(cls.__name__ for cls in _KNOWN)
        raise InvalidArgument(
            f"rpu_config.drift_compensation = {kind.__name__} is none that the Monte Carlo engine "
            f'knows ({known} or None): use the engine "aihwkit".'
        )
    return DriftCompensation(
        readout=AnalogReadout(rpu_config.forward),
        per_column=kind is PerColumnDriftCompensation,
        exact_reference=kind is GlobalDriftCompensationWithExactReference,
    )
