"""An aihwkit noise model, called for a batch of candidates and all times at once.

Noise models act element by element, so their own methods serve a batch as they are: candidates and
times stand in leading dimensions. Two things are put in their place meanwhile: ``torch.randn_like``
returns the shared numbers of :class:`~wpo_optuna.loss.common_noise.CommonNoise`, and powers are
computed by exponential and logarithm. Programming, which at every time starts anew from the same
targets, is computed for all times together, and what depends on the targets alone only once.

A user's model may do anything, so that each is tried on a few devices first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wpo_optuna.errors import InvalidArgument, first_line
from wpo_optuna.loss.common_noise import CommonNoise, Key, Shape, Use


class DeviceNoise:
    """A noise model at the times of a problem.

    Args:
        noise_model: the model; not changed.
        t_steps: the T times after programming in s.
        g_range: lowest and highest conductance in µS.
        device: where the model computes.

    Raises:
        InvalidArgument: the model does not act on each device alone, draws random numbers in
            another way than by ``torch.randn_like``, or fails.
    """

    def __init__(
        self,
        noise_model: BaseNoiseModel,
        t_steps: Sequence[float],
        g_range: tuple[float, float],
        device: torch.device,
    ) -> None:
        self._model = noise_model
        self._t_steps = tuple(t_steps)
        self._device = device
        self._check(g_range)

    def program(
        self, targets: Tensor, noise: CommonNoise, tile: int
    ) -> tuple[Tensor, Tensor | None]:
        """Programs the devices once for every time.

        Args:
            targets: conductances ``(n, D, out, in)`` in µS; the model may change them.
            noise: the random numbers, of one draw for all, or n = 1 and of several draws.
            tile: index of the tile, part of their keys.

        Returns:
            conductances in µS and what the model remembers for drift, or None; both
            ``(n, T, D, out, in)``.
        """
        shape = (len(self._t_steps), *targets.shape[1:])
        # One tensor for both calls, as in aihwkit: a model may clip it in the first.
        g_target = targets[:, None]
        with self._serving(noise, (tile, Use.PROGRAMMING), shape):
            g = self._model.apply_programming_noise_to_conductance(g_target)
        with self._serving(noise, (tile, Use.DRIFT_COEFFICIENT), shape):
            nu = self._model.generate_drift_coefficients(g_target)
        n = max(len(targets), len(noise.draws))
        return g.expand(n, *shape), None if nu is None else nu.expand(n, *shape)

    def drift(
        self, g: Tensor, nu: Tensor | None, time_index: int, noise: CommonNoise, tile: int
    ) -> Tensor:
        """Drift and read noise up to one time.

        Args:
            g: programmed conductances ``(n, D, out, in)`` in µS; the model may change them.
            nu: what :meth:`program` returned for drift, ``(n, T, D, out, in)``.
            time_index: index of the time.
            noise: the random numbers, of one draw for all, or of n draws.
            tile: index of the tile, part of their keys.

        Returns:
            conductances ``(n, D, out, in)`` in µS.
        """
        of_time = None if nu is None else nu[:, time_index]
        with self._serving(noise, (tile, Use.DRIFT, time_index), tuple(g.shape[1:])):
            return self._model.apply_drift_noise_to_conductance(
                g, of_time, self._t_steps[time_index]
            )

    def _serving(self, noise: CommonNoise, key: Key, shape: Shape) -> _Serving:
        # Cloned, as a model may change what it drew.
        return _Serving(lambda call: noise.normal((*key, call), shape, self._device).clone())

    @torch.no_grad()
    def _check(self, g_range: tuple[float, float]) -> None:
        """Compares a batch of a few devices with the same devices one by one."""
        for method in ("apply_programming_noise", "apply_drift_noise"):
            if getattr(type(self._model), method) is not getattr(BaseNoiseModel, method):
                raise self._not_batched(f"overrides {method}")
        # Conductances over the whole range in no order, each device's others.
        order = torch.arange(60) * 23 % 60
        targets = torch.linspace(*g_range, 60)[order].reshape(2, 2, 3, 5).to(self._device)
        # As the engine calls it: several candidates in one draw, one candidate in several draws.
        for trial, n_draws in ((targets, 1), (targets[:1], 2)):
            with torch.random.fork_rng(devices=[]):
                # Models fail as they like.
                try:
                    batched = self._together(trial, CommonNoise(0, range(n_draws)))
                    alone = self._one_by_one(trial, CommonNoise(0, range(n_draws)))
                    agree = torch.allclose(batched, alone, rtol=1e-4, atol=1e-5, equal_nan=True)
                except Exception as error:
                    raise self._not_batched(f"failed ({first_line(error)})") from error
            if not agree:
                raise self._not_batched(
                    "does not treat each device alone, or does not draw its random numbers by "
                    "torch.randn_like"
                )

    def _together(self, targets: Tensor, noise: CommonNoise) -> Tensor:
        """Programmed and drifted conductances (2, n, T, D, out, in)."""
        g, nu = self.program(targets.clone(), noise, 0)
        drifted = [self.drift(g[:, i].clone(), nu, i, noise, 0) for i in range(g.shape[1])]
        return torch.stack([g, torch.stack(drifted, dim=1)])

    def _one_by_one(self, targets: Tensor, noise: CommonNoise) -> Tensor:
        """The same with a call for each candidate, time and device, as aihwkit's tile does it."""
        shape = (len(self._t_steps), *targets.shape[1:])
        n = max(len(targets), len(noise.draws))

        def numbers(place: tuple[int, int, int], use: Use, call: int) -> Tensor:
            """What the batch serves to one device."""
            row, i, d = place
            if use == Use.DRIFT:
                served = noise.normal((0, use, i, call), shape[1:], self._device)[:, d]
            else:
                served = noise.normal((0, use, call), shape, self._device)[:, i, d]
            return served[row % len(served)].clone()

        outcome = [
            self._alone(
                targets[row % len(targets), d].clone(),
                self._t_steps[i],
                partial(numbers, (row, i, d)),
            )
            for row, i, d in np.ndindex(n, *shape[:2])
        ]
        return torch.stack(outcome, dim=1).unflatten(1, (n, *shape[:2]))

    def _alone(self, g_target: Tensor, t: float, numbers: Callable[[Use, int], Tensor]) -> Tensor:
        """Programmed and drifted conductances (2, out, in) of one device, or pair of devices."""
        with _Serving(partial(numbers, Use.PROGRAMMING)):
            g = self._model.apply_programming_noise_to_conductance(g_target)
        programmed = g.clone()
        with _Serving(partial(numbers, Use.DRIFT_COEFFICIENT)):
            nu = self._model.generate_drift_coefficients(g_target)
        with _Serving(partial(numbers, Use.DRIFT)):
            return torch.stack([programmed, self._model.apply_drift_noise_to_conductance(g, nu, t)])

    def _not_batched(self, reason: str) -> InvalidArgument:
        return InvalidArgument(
            f"rpu_config.noise_model = {type(self._model).__name__} {reason}, so that the Monte "
            'Carlo engine cannot evaluate it for a batch of candidates: use the engine "aihwkit".'
        )


class _Serving(TorchFunctionMode):
    """Within its block, torch.randn_like returns served numbers; for this thread alone.

    Powers with a fraction as exponent become exponentials of logarithms, as torch's own take four
    times as long.

    Args:
        numbers: gives the numbers of the block's k-th call.
    """

    def __init__(self, numbers: Callable[[int], Tensor]) -> None:
        super().__init__()
        self._numbers = numbers
        self._calls = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.randn_like and not kwargs:
            self._calls += 1
            return self._numbers(self._calls - 1)
        if func in _POWERS and len(args) == 2 and not kwargs:
            base, exponent = args if func is not torch.Tensor.__rpow__ else args[::-1]
            if _is_float_tensor(base) and isinstance(exponent, float) and exponent % 1:
                return base.log().mul_(exponent).exp_()
            if isinstance(base, float) and base > 0 and _is_float_tensor(exponent):
                return (exponent * math.log(base)).exp_()
        return func(*args, **(kwargs or {}))


_POWERS = (torch.pow, torch.Tensor.pow, torch.Tensor.__pow__, torch.Tensor.__rpow__)


def _is_float_tensor(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
