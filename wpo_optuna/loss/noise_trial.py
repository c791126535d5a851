"""Finds out how a noise model can be called for a batch, by trying it on a few devices."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from torch import Tensor

from wpo_optuna.errors import InvalidArgument, first_line
from wpo_optuna.loss.common_noise import CommonNoise, Key, Shape, Use
from wpo_optuna.loss.device_noise import (
    BroadcastNoise,
    DeviceNoise,
    ExpandedNoise,
    Serving,
    SingleNoise,
    UnservableNoiseError,
    preserved_generators,
)

_CPU = torch.device("cpu")
_COUPLED = "does not treat each device alone"
_N_CANDIDATES, _N_DEVICES, _N_OUT, _N_IN = 2, 2, 3, 5


def batched_device_noise(
    noise_model: BaseNoiseModel,
    t_steps: Sequence[float],
    g_range: tuple[float, float],
    device: torch.device,
) -> DeviceNoise:
    """The fastest way to call a noise model that gives what aihwkit's own calls give.

    Args:
        noise_model: the model.
        t_steps: times after programming in s.
        g_range: lowest and highest conductance in µS.
        device: where candidates are evaluated. A model that goes through numpy computes on the
            CPU whatever the device.

    Raises:
        InvalidArgument: the model does not act on each device alone.
    """
    for name in ("apply_programming_noise", "apply_drift_noise"):
        if getattr(type(noise_model), name) is not getattr(BaseNoiseModel, name):
            raise _not_batched(noise_model, f"overrides {name}")
    targets = _trial_targets(g_range)
    # As the engine calls it: several candidates in one draw, one candidate in several draws.
    trials = [_Trial(targets, draws=(0,)), _Trial(targets[:1], draws=(0, 1))]
    with preserved_generators():
        try:
            expected = [_as_on_tile(noise_model, trial, tuple(t_steps)) for trial in trials]
        except UnservableNoiseError:
            single = SingleNoise(noise_model, t_steps, _CPU)
            if _treats_devices_alone(single, targets):
                return single
            raise _not_batched(noise_model, _COUPLED) from None
        # Noise models raise what they like.
        except Exception as error:
            raise InvalidArgument(
                f"rpu_config.noise_model = {type(noise_model).__name__} cannot be evaluated for "
                f"conductances from {g_range[0]:g} to {g_range[1]:g} µS: {first_line(error)}."
            ) from error
        for place in dict.fromkeys((device, _CPU)):
            for kind in (BroadcastNoise, ExpandedNoise):
                way = kind(noise_model, t_steps, place)
                if all(map(_agrees, [way] * len(trials), trials, expected)):
                    return way
    raise _not_batched(noise_model, _COUPLED)


def _not_batched(noise_model: BaseNoiseModel, what: str) -> InvalidArgument:
    return InvalidArgument(
        f"rpu_config.noise_model = {type(noise_model).__name__} {what}, so that the Monte Carlo "
        'engine cannot evaluate it for a batch of candidates: use the engine "aihwkit".'
    )


@dataclass(frozen=True)
class _Trial:
    """Targets (n, D, out, in), which meet the given draws: n or the number of draws is 1."""

    targets: Tensor
    draws: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        return max(len(self.targets), len(self.draws))


@dataclass(frozen=True)
class _Outcome:
    """What became of the trial's devices, in order of row, time and device."""

    programmed: list[Tensor] = field(default_factory=list)
    coefficients: list[Tensor] = field(default_factory=list)
    drifted: list[Tensor] = field(default_factory=list)

    def add(self, g: Tensor, nu: Tensor | None, drifted: Tensor) -> None:
        self.programmed.append(g.cpu())
        self.drifted.append(drifted.cpu())
        if nu is not None:
            self.coefficients.append(nu.cpu())

    def is_close_to(self, other: _Outcome) -> bool:
        return all(
            len(mine) == len(theirs)
            and all(
                a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
                for a, b in zip(mine, theirs, strict=True)
            )
            for mine, theirs in (
                (self.programmed, other.programmed),
                (self.coefficients, other.coefficients),
                (self.drifted, other.drifted),
            )
        )


def _trial_targets(g_range: tuple[float, float]) -> Tensor:
    """Conductances (n, D, out, in) over the whole range, in no order, each device's different."""
    n_values = _N_CANDIDATES * _N_DEVICES * _N_OUT * _N_IN
    shuffled = torch.arange(n_values) * 23 % n_values
    values = torch.linspace(*g_range, n_values)[shuffled]
    return values.reshape(_N_CANDIDATES, _N_DEVICES, _N_OUT, _N_IN)


def _as_on_tile(model: BaseNoiseModel, trial: _Trial, t_steps: tuple[float, ...]) -> _Outcome:
    """The model called for one device at a time, with the noise a batch would meet.

    Raises:
        UnservableNoiseError: the model draws random numbers in another way than by randn_like.
    """
    outcome, noise = _Outcome(), CommonNoise(0, trial.draws)
    shape = tuple(trial.targets.shape[1:])
    for row in range(trial.n_rows):
        draw = row if len(trial.draws) > 1 else 0
        candidate = trial.targets[row if len(trial.targets) > 1 else 0]
        for i, t in enumerate(t_steps):
            for d, target in enumerate(candidate):
                g_target, every_time = target.clone(), (len(t_steps), *shape)
                place = (draw, i, d)
                with _serving_slice(noise, (0, Use.PROGRAMMING), every_time, place):
                    g = model.apply_programming_noise_to_conductance(g_target)
                with _serving_slice(noise, (0, Use.DRIFT_COEFFICIENT), every_time, place):
                    nu = model.generate_drift_coefficients(g_target)
                kept = g.clone(), None if nu is None else nu.clone()
                with _serving_slice(noise, (0, Use.DRIFT, i), shape, (draw, d)):
                    drifted = model.apply_drift_noise_to_conductance(g, nu, t)
                outcome.add(*kept, drifted)
    return outcome


def _agrees(way: DeviceNoise, trial: _Trial, expected: _Outcome) -> bool:
    """Whether a way to call the model gives what is expected and leaves the noise unchanged."""
    outcome, noise = _Outcome(), CommonNoise(0, trial.draws)
    # A model not made for this way fails as it likes: shapes, changes in place, numpy on a GPU.
    try:
        devices = way.program(trial.targets.clone(), noise, 0)
        times = [devices.at(i) for i in range(len(way.t_steps))]
        kept = [(g.clone(), None if nu is None else nu.clone()) for g, nu in times]
        drifted = [way.drift(g.clone(), nu, i, noise, 0) for i, (g, nu) in enumerate(times)]
    except Exception:
        return False
    for row in range(trial.n_rows):
        for (g, nu), after in zip(kept, drifted, strict=True):
            for d in range(trial.targets.shape[1]):
                outcome.add(g[row, d], None if nu is None else nu[row, d], after[row, d])
    return noise.is_unchanged() and outcome.is_close_to(expected)


def _treats_devices_alone(way: SingleNoise, targets: Tensor) -> bool:
    """Whether changing the extreme conductances of a tile leaves its other devices alone."""
    change = 1e-3 * (targets.max() - targets.min())
    largest = targets == targets.amax(dim=(2, 3), keepdim=True)
    smallest = targets == targets.amin(dim=(2, 3), keepdim=True)
    changed = torch.where(largest, targets - change, targets)
    changed = torch.where(smallest, targets + change, changed)
    others = ~(largest | smallest)

    noise = CommonNoise(0, [0])
    before, after = way.program(targets, noise, 0), way.program(changed, noise, 0)
    for i in range(len(way.t_steps)):
        (g, nu), (g_changed, _) = before.at(i), after.at(i)
        drifted = way.drift(g, nu, i, noise, 0)
        drifted_changed = way.drift(torch.where(others, g, changed), nu, i, noise, 0)
        for one, other in ((g, g_changed), (drifted, drifted_changed)):
            if not torch.equal(one[others].nan_to_num(), other[others].nan_to_num()):
                return False
    return True


@contextmanager
def _serving_slice(
    noise: CommonNoise, key: Key, shape: Shape, place: tuple[int, ...]
) -> Iterator[None]:
    """Serves one device's part of the numbers, and notices numbers drawn in another way."""

    def normals(asked: Shape, call: int) -> Tensor:
        drawn = noise.normal((*key, call), shape, _CPU)[place]
        if asked != tuple(drawn.shape):
            raise UnservableNoiseError
        return drawn.clone()

    before = _generator_states()
    with Serving(normals):
        yield
    if _generator_states() != before:
        raise UnservableNoiseError


def _generator_states() -> bytes:
    """The states of torch's, numpy's and Python's global generators."""
    states = torch.get_rng_state().numpy(), np.random.get_state(), random.getstate()  # noqa: NPY002
    return pickle.dumps(states)
