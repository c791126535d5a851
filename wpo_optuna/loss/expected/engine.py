"""The engine that evaluates the expectation of the loss."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from aihwkit.inference.compensation.drift import (
    GlobalDriftCompensation,
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
)
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.simulator.tiles.inference import InferenceTile
from numpy.typing import ArrayLike, NDArray

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.base import LossEngine
from wpo_optuna.loss.expected.converter_curves import curves_of
from wpo_optuna.loss.expected.device_moments import DeviceMoments, tabulate_device_moments
from wpo_optuna.loss.expected.readout_table import tabulate_readout
from wpo_optuna.loss.expected.tables import Kind, tile_tables
from wpo_optuna.loss.expected.weight_nodes import weight_nodes
from wpo_optuna.loss.readout import AnalogReadout
from wpo_optuna.network.tile_mapping import split_sizes

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.loss.expected.evaluation import Tile
    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

FloatArray = NDArray[np.float64]

_KINDS = {
    type(None): Kind(compensates=False, reads_reference=False),
    GlobalDriftCompensation: Kind(compensates=True, reads_reference=True),
    GlobalDriftCompensationWithExactReference: Kind(compensates=True, reads_reference=False),
    PerColumnDriftCompensation: Kind(compensates=True, reads_reference=True),
}


class ExpectedEngine(LossEngine):
    """Evaluates the expectation of the loss over all noise.

    JAX compiles the formulas when they are first used, and their derivatives when a gradient is
    first asked for: some seconds each, once per machine for all problems that have as many pairs,
    knots and times and the same kind of compensation.

    Args:
        problem: the problem whose strategies are evaluated.
        threads: how many threads share a batch; None takes as many as torch does, of the cores
            that this process may use. Values do not depend on it.

    Raises:
        InvalidArgument: the hardware has a property of which no expectation is known here; the
            message names the engine to use.
    """

    name = "expected"

    def __init__(self, problem: WeightProgrammingProblem, threads: int | None = None) -> None:
        super().__init__(problem)
        self._threads = threads
        rpu_config = problem.evaluation_rpu_config()
        _check_hardware(rpu_config)
        self._compensation = type(getattr(rpu_config, "drift_compensation", None))
        widths = split_sizes(problem.test_out_features, rpu_config.mapping.max_output_size)
        self._columns = [tile.numpy() for tile in problem.test_weights.split(widths, dim=1)]
        self._devices = self._device_moments(problem.g_min, problem.g_max)
        self._knots = np.linspace(-1, 1, problem.hypercube.n_knots)
        self._tiles = self._tabulate(self._knots, self._devices)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies in other processes tabulate anew: JAX's arrays are bound to theirs."""
        return type(self), (self.problem, self._threads)

    def tnmse(self, x: ArrayLike, seed: int | None = None) -> FloatArray:
        """See :meth:`LossEngine.tnmse`; there is no noise to be seeded."""
        decoded = self.problem.hypercube.decode_arrays(x)
        factors = np.stack([decoded.f, -decoded.f], axis=2).reshape(len(decoded.f), -1)
        return self._tnmse(factors, decoded.g, self._tiles)

    def tnmse_of(
        self, converter: BaseConductanceConverter, repeats: int = 100, seed: int = 0
    ) -> FloatArray:
        """See :meth:`LossEngine.tnmse_of`: the expectation, repeated.

        Raises:
            InvalidArgument: the converter does more than span curves over the largest absolute
                weight and add up conductances.
        """
        cube, devices = self.problem.hypercube, self._devices
        described = curves_of(converter, cube.n_knots)
        # Devices that count nothing: converters of fewer pairs need no code of their own.
        missing = max(2 * cube.n_pairs - len(described.factors), 0)
        factors = np.append(described.factors, np.zeros(missing))
        curves = np.concatenate([described.curves, *[described.curves[:1]] * missing])
        low, high = float(curves.min()), float(curves.max())
        if low < devices.g_us[0] or high > devices.g_us[-1]:
            devices = self._device_moments(min(low, devices.g_us[0]), max(high, devices.g_us[-1]))
        is_known = devices is self._devices and np.array_equal(described.knots, self._knots)
        tiles = self._tiles if is_known else self._tabulate(described.knots, devices)
        return np.repeat(self._tnmse(factors[None], curves[None], tiles), repeats)

    def value_and_grad(self, x: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """TNMSE ``(n,)`` and its gradient ``(n, d)`` at points ``(n, d)`` or one point ``(d,)``.

        The value agrees with :meth:`tnmse` to the single precision in which the reference, and
        hence the hypercube, holds weights.

        Raises:
            InvalidArgument: x has another number of coordinates or leaves the unit cube.
        """
        from wpo_optuna.loss.expected.evaluation import tnmse_and_gradient

        cube = self.problem.hypercube
        kind = _KINDS[self._compensation]
        return tnmse_and_gradient(cube.check_points(x), cube, self._tiles, kind, self._n_threads())

    def _tnmse(self, factors: FloatArray, curves: FloatArray, tiles: list[Tile]) -> FloatArray:
        """TNMSE (n,) of signed factors (n, D) and curves (n, D, K)."""
        from wpo_optuna.loss.expected.evaluation import tnmse

        return tnmse(factors, curves, tiles, _KINDS[self._compensation], self._n_threads())

    def _n_threads(self) -> int:
        return self._threads or min(len(os.sched_getaffinity(0)), torch.get_num_threads())

    def _device_moments(self, g_low: float, g_high: float) -> DeviceMoments:
        problem = self.problem
        return tabulate_device_moments(problem.noise_model, problem.t_steps, g_low, g_high)

    def _tabulate(self, knots: FloatArray, devices: DeviceMoments) -> list[Tile]:
        """The tiles, for curves with these knots."""
        # JAX is imported by those who compute with it.
        from wpo_optuna.loss.expected.evaluation import tile

        problem, tiles = self.problem, []
        per_column = self._compensation is PerColumnDriftCompensation
        for columns in self._columns:
            nodes = weight_nodes(columns, knots)
            readout = tabulate_readout(
                problem.rpu_config.forward, nodes.largest, nodes.mean_absolute, nodes.n_rows
            )
            tables = tile_tables(nodes, knots, problem.max_abs_weight, devices, readout, per_column)
            tiles.append(tile(columns.shape[1] / problem.test_out_features, tables))
        return tiles


def _check_hardware(rpu_config: Any) -> None:
    """Raises unless the expectation is known for these parts of an RPU configuration."""
    if rpu_config.tile_class is not InferenceTile:
        raise _unknown(f"rpu_config.tile_class = {rpu_config.tile_class.__name__}")
    compensation = type(getattr(rpu_config, "drift_compensation", None))
    # A subclass might do anything.
    if compensation not in _KINDS:
        raise _unknown(f"rpu_config.drift_compensation = {compensation.__name__}")
    model = type(rpu_config.noise_model)
    for name in ("apply_programming_noise", "apply_drift_noise"):
        if getattr(model, name) is not getattr(BaseNoiseModel, name):
            raise _unknown(f"rpu_config.noise_model = {model.__name__}, which overrides {name}")
    try:
        AnalogReadout(rpu_config.forward)
    except InvalidArgument as error:
        raise _unknown("rpu_config.forward with such settings") from error


def _unknown(what: str) -> InvalidArgument:
    return InvalidArgument(
        f'{what} is nothing the expected engine knows the expectation of: use the engine "aihwkit".'
    )
