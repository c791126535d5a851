"""Statistics of measured devices, and of devices that a noise model simulates in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from numpy.typing import NDArray

from wpo_optuna.hardware.measurements import LEAST_TIMES, Measurements

FloatArray = NDArray[np.float64]

# Draws of the bootstrap.
_RESAMPLINGS = 1000
# Devices simulated for each group of targets, and for each measured device, at least.
_SIMULATED, _COPIES = 2000, 10
_NUMBERS_AT_ONCE = 2_000_000
# Logarithms tell of drift where programming scatters by less than this fraction of the conductance.
_LARGEST_SCATTER = 1 / 3


def simulate(model: BaseNoiseModel, target: FloatArray, t: FloatArray, seed: int) -> FloatArray:
    """Conductances ``(n, T)`` of devices as :func:`program_and_read` reads them."""
    return program_and_read(model, target, t, seed)[1]


def program_and_read(
    model: BaseNoiseModel, target: FloatArray, t: FloatArray, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Conductances of devices of a noise model in µS, programmed ``(n,)`` and read ``(n, T)``.

    Args:
        model: the noise model.
        target: what the devices are programmed to in µS ``(n,)``.
        t: times of reading after programming in s ``(T,)``.
        seed: seed of torch's generator, which is put back afterwards.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        # torch.manual_seed would also seed the generators of other devices, for good.
        torch.default_generator.manual_seed(seed)
        # Copies: noise models change their arguments.
        g_target = torch.tensor(target, dtype=torch.float32)
        programmed = model.apply_programming_noise_to_conductance(g_target.clone())
        nu = model.generate_drift_coefficients(g_target.clone())
        read = [
            model.apply_drift_noise_to_conductance(
                programmed.clone(), None if nu is None else nu.clone(), seconds
            )
            for seconds in t.tolist()
        ]
        return programmed.double().numpy(), torch.stack(read, dim=1).double().numpy()


@dataclass(frozen=True, eq=False)
class _Block:
    """Numbers of devices that are drawn together in the bootstrap.

    Attributes:
        values: of each device ``(n, m)``; NaN where a device has none.
        spreads: of which columns the logarithm of the standard deviation is a statistic beside the
            mean ``(m,)``; a logarithm, as its error does not depend on what it happens to be.
    """

    values: FloatArray
    spreads: tuple[bool, ...]

    def statistics(self, counts: NDArray[Any] | None = None) -> FloatArray:
        """Statistics ``(N, k)`` of devices that count so often ``(N, n)``; of each once if None."""
        is_known = np.isfinite(self.values)
        centre = np.nanmean(self.values, axis=0)
        values = np.where(is_known, self.values - centre, 0.0)
        counts = np.ones((1, len(values))) if counts is None else counts
        n = counts @ is_known
        mean = counts @ values / n
        variance = (counts @ values**2 / n - mean**2) * n / (n - 1)
        spread = np.log(variance[:, list(self.spreads)].clip(1e-24)) / 2
        return np.hstack([centre + mean, spread])

    def resampled(self, random: np.random.Generator, n_devices: int) -> FloatArray:
        """Statistics ``(N, k)`` of so many devices drawn from these, many times."""
        size = len(self.values)
        # A few draws at a time, so that millions of devices need no gigabytes.
        at_once = max(1, min(_RESAMPLINGS, _NUMBERS_AT_ONCE // size))
        draws = (
            random.multinomial(n_devices, np.full(size, 1 / size), size=at_once)
            for _ in range(_RESAMPLINGS // at_once)
        )
        return np.vstack([self.statistics(counts) for counts in draws])


class DeviceStatistics:
    """Statistics of measurements, and of simulations of the same targets and times.

    Args:
        measurements: what was read.
        t_0: the time in s after programming from which drift counts.
        seed: of simulations and draws.

    Attributes:
        measurements, t_0: as given.
        groups: numbers of the devices of each target, or of neighbouring ones.
        targets: mean target of each group in µS ``(G,)``.
        has_drift: the groups whose drift can be measured ``(G,)``.
        statistics: those of the measurements ``(k,)``.
        errors: by what these and a simulation's may differ by chance ``(k,)``.
    """

    def __init__(self, measurements: Measurements, t_0: float, seed: int) -> None:
        self.measurements, self.t_0, self._seed = measurements, t_0, seed
        self.groups = measurements.groups()
        self.targets = np.array([measurements.target[group].mean() for group in self.groups])
        # Every device is simulated several times.
        copies = [max(_COPIES, -(-_SIMULATED // len(group))) for group in self.groups]
        of_groups = zip(self.groups, copies, strict=True)
        self._chosen = np.concatenate([np.tile(group, n) for group, n in of_groups])
        ends = np.cumsum([len(group) * n for group, n in zip(self.groups, copies, strict=True)])
        self._simulated_groups = np.split(np.arange(ends[-1]), ends[:-1])
        self.has_drift = np.array([self._tells_drift(group) for group in self.groups])
        if not self.has_drift.any():
            self.has_drift[-1] = True
        blocks = self._blocks(measurements, self.groups)
        self._sizes = [len(block.values) for block in blocks]
        self.statistics = np.hstack([block.statistics() for block in blocks])[0]
        # Those of the simulation scatter as well.
        self._more_scatter = np.sqrt(1 + 1 / min(copies))
        self.errors = self._resampled(blocks).std(axis=0) * self._more_scatter + 1e-12

    @property
    def g_range(self) -> tuple[float, float]:
        """Lowest and highest target in µS."""
        target = self.measurements.target
        return float(target.min()), float(target.max())

    def logarithm_of_time(self) -> FloatArray:
        """log(t/t_0 + 1) ``(T,)``, by which drift is a straight line."""
        return np.log1p(self.measurements.t / self.t_0)

    def simulated(self, model: BaseNoiseModel) -> FloatArray:
        """Statistics ``(k,)`` of devices of a noise model, with the same noise each time."""
        return np.hstack([block.statistics() for block in self._simulated_blocks(model)])[0]

    def scatter(self, model: BaseNoiseModel) -> FloatArray:
        """By what statistics of as many devices as were measured differ by chance ``(N, k)``."""
        drawn = self._resampled(self._simulated_blocks(model))
        return (drawn - drawn.mean(axis=0)) * self._more_scatter

    def _resampled(self, blocks: Sequence[_Block]) -> FloatArray:
        random = np.random.default_rng(self._seed)
        sizes = zip(blocks, self._sizes, strict=True)
        return np.hstack([block.resampled(random, size) for block, size in sizes])

    def _simulated_blocks(self, model: BaseNoiseModel) -> list[_Block]:
        told = self.measurements
        conductance = simulate(model, told.target[self._chosen], told.t, self._seed)
        conductance[np.isnan(told.conductance[self._chosen])] = np.nan
        devices = Measurements(told.target[self._chosen], told.t, conductance, told.are_followed)
        return self._blocks(devices, self._simulated_groups)

    def _tells_drift(self, group: NDArray[np.intp]) -> bool:
        readings = self.measurements.conductance[group]
        is_positive = np.mean(readings[np.isfinite(readings)] > 0) > 0.95
        scatter = np.std(programming_errors(self.measurements, group))
        mean_target = self.measurements.target[group].mean()
        return bool(is_positive and scatter < _LARGEST_SCATTER * mean_target)

    def _blocks(self, devices: Measurements, groups: Sequence[NDArray[np.intp]]) -> list[_Block]:
        blocks = []
        for group, has_drift in zip(groups, self.has_drift, strict=True):
            conductance, errors = devices.conductance[group], programming_errors(devices, group)
            if not has_drift:
                blocks.append(_Block(errors[:, None], (True,)))
            elif devices.are_followed:
                line = drift_lines(conductance, self.logarithm_of_time())
                blocks.append(_Block(np.column_stack([errors, *line]), (True, True, False)))
            else:
                blocks += [
                    _Block(logarithm_of(cell[np.isfinite(cell)])[:, None], (True,))
                    for cell in conductance.T
                    if np.isfinite(cell).sum() > 1
                ]
        return blocks


def programming_errors(devices: Measurements, group: NDArray[np.intp]) -> FloatArray:
    """How far the earliest readings are from their targets, in µS."""
    errors = devices.conductance[group] - devices.target[group][:, None]
    is_known = np.isfinite(errors)
    if devices.are_followed:
        return errors[np.arange(len(group)), is_known.argmax(axis=1)]
    earliest = errors[:, is_known.any(axis=0).argmax()]
    return earliest[np.isfinite(earliest)]


def logarithm_of(conductance: FloatArray) -> FloatArray:
    """Logarithms of conductances in µS; NaN of those that are not above zero."""
    return np.log(np.where(conductance > 0, conductance, np.nan))


def drift_lines(conductance: FloatArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Each device's drift coefficient, and the logarithm of what scatters about its line.

    Args:
        conductance: in µS ``(n, T)``; NaN where a device was not read.
        x: by which the logarithm of a conductance is a line ``(T,)``.
    """
    y = logarithm_of(conductance)
    is_known = np.isfinite(y)
    n = is_known.sum(axis=1)
    x, y = np.where(is_known, x, 0.0), np.where(is_known, y, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        dx = np.where(is_known, x - (x.sum(axis=1) / n)[:, None], 0.0)
        dy = np.where(is_known, y - (y.sum(axis=1) / n)[:, None], 0.0)
        slope = (dx * dy).sum(axis=1) / (dx**2).sum(axis=1)
        rest = ((dy - slope[:, None] * dx) ** 2).sum(axis=1) / (n - 2)
        is_enough = (n >= LEAST_TIMES) & (rest > 0)
        return np.where(is_enough, -slope, np.nan), np.where(is_enough, np.log(rest) / 2, np.nan)
