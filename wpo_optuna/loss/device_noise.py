"""An aihwkit noise model, called for a batch of candidates and all times at once.

The noise models act element by element, so their own methods serve a batch as they are. Three
things are added: their standard normal numbers are replaced by the shared ones of
:class:`~wpo_optuna.loss.common_noise.CommonNoise`; programming, which at every time starts anew
from the same targets, is computed for all times together; and powers are computed by exponential
and logarithm. Whether a model bears this is tried, see :mod:`wpo_optuna.loss.noise_trial`.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wpo_optuna.loss.common_noise import CommonNoise, Key, Shape, Use


class UnservableNoiseError(Exception):
    """A noise model asks for random numbers of another shape than its devices'."""


@dataclass(frozen=True)
class ProgrammedDevices:
    """Devices after programming, at T times that were each programmed anew.

    Attributes:
        conductances: ``(n, T, D, out, in)`` in µS.
        drift_coefficients: what the noise model remembers for drift, of a shape that broadcasts
            to that of the conductances; None if nothing.
    """

    conductances: Tensor
    drift_coefficients: Tensor | None

    def at(self, time_index: int) -> tuple[Tensor, Tensor | None]:
        """Conductances and drift coefficients ``(n, D, out, in)`` of one time."""
        g, nu = self.conductances[:, time_index], self.drift_coefficients
        if nu is not None:
            nu = nu[:, time_index if nu.shape[1] > 1 else 0].expand_as(g)
        return g, nu


class DeviceNoise(ABC):
    """A way to call a noise model.

    Args:
        noise_model: the model; not changed.
        t_steps: the T times after programming in s.
        device: where the model computes.
    """

    def __init__(
        self, noise_model: BaseNoiseModel, t_steps: Sequence[float], device: torch.device
    ) -> None:
        self.model = noise_model
        self.t_steps = tuple(t_steps)
        self.device = device

    @abstractmethod
    def program(self, targets: Tensor, noise: CommonNoise, tile: int) -> ProgrammedDevices:
        """Programs the devices once for every time.

        Args:
            targets: conductances ``(n, D, out, in)`` in µS; the model may change them.
            noise: the random numbers, of one draw for all, or n = 1 and of several draws.
            tile: index of the tile, part of their keys.
        """

    @abstractmethod
    def drift(
        self, g: Tensor, nu: Tensor | None, time_index: int, noise: CommonNoise, tile: int
    ) -> Tensor:
        """Drift and read noise up to one time.

        Args:
            g: programmed conductances ``(n, D, out, in)`` in µS; the model may change them.
            nu: drift coefficients of that time, of the same shape.
            time_index: index of the time.
            noise: the random numbers, of one draw for all, or of n draws.
            tile: index of the tile, part of their keys.

        Returns:
            conductances ``(n, D, out, in)`` in µS.
        """


class BroadcastNoise(DeviceNoise):
    """All candidates and times in one call; what depends on the target alone is computed once.

    The model sees targets ``(n, 1, D, out, in)`` and is served noise ``(R, T, D, out, in)``.
    """

    def program(self, targets: Tensor, noise: CommonNoise, tile: int) -> ProgrammedDevices:
        """See :meth:`DeviceNoise.program`."""
        shape = (len(self.t_steps), *targets.shape[1:])
        # One tensor for both calls, as in aihwkit: a model may clip it in the first.
        n = max(len(targets), len(noise.draws))
        g_target = self._targets(targets.to(self.device)[:, None], (n, *shape))
        with self._serving(noise, (tile, Use.PROGRAMMING), shape):
            g = self.model.apply_programming_noise_to_conductance(g_target)
        with self._serving(noise, (tile, Use.DRIFT_COEFFICIENT), shape):
            nu = self.model.generate_drift_coefficients(g_target)
        return ProgrammedDevices(g.expand(n, *shape), nu)

    def drift(
        self, g: Tensor, nu: Tensor | None, time_index: int, noise: CommonNoise, tile: int
    ) -> Tensor:
        """See :meth:`DeviceNoise.drift`."""
        with self._serving(noise, (tile, Use.DRIFT, time_index), tuple(g.shape[1:])):
            t = self.t_steps[time_index]
            return self.model.apply_drift_noise_to_conductance(g.to(self.device), nu, t)

    def _targets(self, targets: Tensor, shape: Shape) -> Tensor:
        return targets

    def _served(self, drawn: Tensor, asked: Shape) -> Tensor:
        return drawn

    def _serving(self, noise: CommonNoise, key: Key, shape: Shape) -> Serving:
        def normals(asked: Shape, call: int) -> Tensor:
            if not _broadcasts(asked[1:], shape):
                raise UnservableNoiseError
            return self._served(noise.normal((*key, call), shape, self.device), asked)

        return Serving(normals)


class ExpandedNoise(BroadcastNoise):
    """All candidates and times in one call, each element with its own memory.

    For models that change tensors in place, which broadcasting does not bear.
    """

    def _targets(self, targets: Tensor, shape: Shape) -> Tensor:
        return targets.expand(shape).clone()

    def _served(self, drawn: Tensor, asked: Shape) -> Tensor:
        return drawn.expand(asked).clone()


class SingleNoise(DeviceNoise):
    """Every candidate, time and device in a call of its own, as aihwkit's tile does.

    For models that draw random numbers in ways that cannot be served: torch's, numpy's and
    Python's generators are seeded for each call, and put back afterwards. Slower by far.
    """

    def program(self, targets: Tensor, noise: CommonNoise, tile: int) -> ProgrammedDevices:
        """See :meth:`DeviceNoise.program`."""
        n, n_times = max(len(targets), len(noise.draws)), len(self.t_steps)
        targets = targets.to(self.device).expand(n, *targets.shape[1:])
        programmed = [
            self._program_one(targets[row, d].clone(), noise, (tile, i, d), row)
            for row in range(n)
            for i in range(n_times)
            for d in range(targets.shape[1])
        ]
        shape = (n, n_times, *targets.shape[1:])
        g = torch.stack([g for g, _ in programmed]).reshape(shape)
        coefficients = [nu for _, nu in programmed if nu is not None]
        nu = torch.stack(coefficients).reshape(shape) if coefficients else None
        return ProgrammedDevices(g, nu)

    def _program_one(
        self, g_target: Tensor, noise: CommonNoise, place: Key, row: int
    ) -> tuple[Tensor, Tensor | None]:
        with _seeded_globally(noise, (Use.PROGRAMMING, *place), row):
            g = self.model.apply_programming_noise_to_conductance(g_target)
        with _seeded_globally(noise, (Use.DRIFT_COEFFICIENT, *place), row):
            return g, self.model.generate_drift_coefficients(g_target)

    def drift(
        self, g: Tensor, nu: Tensor | None, time_index: int, noise: CommonNoise, tile: int
    ) -> Tensor:
        """See :meth:`DeviceNoise.drift`."""
        drifted = []
        for row, device_conductances in enumerate(g.to(self.device)):
            for d, g_one in enumerate(device_conductances):
                nu_one = None if nu is None else nu[row, d].clone()
                with _seeded_globally(noise, (Use.DRIFT, tile, time_index, d), row):
                    drifted.append(
                        self.model.apply_drift_noise_to_conductance(
                            g_one.clone(), nu_one, self.t_steps[time_index]
                        )
                    )
        return torch.stack(drifted).reshape(g.shape)


class Serving(TorchFunctionMode):
    """Within its block, torch.randn_like returns served numbers; for this thread alone.

    Powers with a fraction as exponent become exponentials of logarithms: torch's own are four
    times slower, and give another last bit to the elements at the end of a tensor, so that a
    candidate's value would depend on its place in the batch.

    Args:
        normals: gives the numbers for the shape that is asked for in the block's k-th call.
    """

    def __init__(self, normals: Callable[[Shape, int], Tensor]) -> None:
        super().__init__()
        self._normals = normals
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
            return self._normals(tuple(args[0].shape), self._calls - 1)
        if func in _POWERS and len(args) == 2 and not kwargs:
            base, exponent = args if func is not torch.Tensor.__rpow__ else args[::-1]
            if _is_fractional_power(base, exponent):
                return base.log().mul_(exponent).exp_()
            if _is_exponential(base, exponent):
                return (exponent * math.log(base)).exp_()
        return func(*args, **(kwargs or {}))


_POWERS = (torch.pow, torch.Tensor.pow, torch.Tensor.__pow__, torch.Tensor.__rpow__)


def _is_fractional_power(base: object, exponent: object) -> bool:
    return (
        isinstance(base, Tensor)
        and base.is_floating_point()
        and isinstance(exponent, float)
        and not exponent.is_integer()
    )


def _is_exponential(base: object, exponent: object) -> bool:
    return (
        isinstance(base, float)
        and base > 0
        and isinstance(exponent, Tensor)
        and exponent.is_floating_point()
    )


def _broadcasts(asked: Shape, shape: Shape) -> bool:
    """Whether a tensor of the asked shape broadcasts to the shape of the noise."""
    return len(asked) == len(shape) and all(a in (1, b) for a, b in zip(asked, shape, strict=True))


@contextmanager
def _seeded_globally(noise: CommonNoise, key: Key, row: int) -> Iterator[None]:
    """Seeds torch's, numpy's and Python's global generators for one row of a batch."""
    seeds = noise.integers(key)
    seed = seeds[row if len(seeds) > 1 else 0]
    with preserved_generators():
        # torch.manual_seed would also seed the generators of other devices, for good.
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        yield


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Puts the states of torch's (CPU), numpy's and Python's global generators back."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
