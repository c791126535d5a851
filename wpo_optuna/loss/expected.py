"""The expected loss: deterministic, differentiable, and as fast as a table look-up.

docs/expected_loss.md derives the formulas and says what they neglect, and how large that is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from aihwkit.inference.compensation.base import BaseDriftCompensation
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
from wpo_optuna.loss.converter_curves import curves_of
from wpo_optuna.loss.differentiable_decode import DecodedForGradient
from wpo_optuna.loss.expected_gradient import expected_tnmse_and_gradient
from wpo_optuna.loss.expected_kernel import expected_tnmse
from wpo_optuna.loss.expected_tables import Compensation, ExpectedTables, expected_tables
from wpo_optuna.loss.moment_tables import DeviceMoments, tabulate_device_moments
from wpo_optuna.loss.readout import AnalogReadout
from wpo_optuna.loss.readout_table import tabulate_readout
from wpo_optuna.loss.weight_nodes import WeightNodes, weight_nodes
from wpo_optuna.network.tile_mapping import split_sizes

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

FloatArray = NDArray[np.float64]

_COMPENSATIONS = (
    GlobalDriftCompensation,
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
)


class ExpectedEngine(LossEngine):
    """Evaluates the expectation of the loss over all noise.

    Numba compiles the formulas when they are first used, and their derivatives when a gradient is
    first asked for: some seconds each, once per machine.

    Args:
        problem: the problem whose strategies are evaluated.

    Raises:
        InvalidArgument: the hardware has a property of which no expectation is known here; the
            message names the engine to use.
    """

    name = "expected"

    def __init__(self, problem: WeightProgrammingProblem) -> None:
        super().__init__(problem)
        rpu_config = problem.evaluation_rpu_config()
        _check_hardware(rpu_config)
        self._compensation = getattr(rpu_config, "drift_compensation", None)
        widths = split_sizes(problem.test_out_features, rpu_config.mapping.max_output_size)
        self._columns = [tile.numpy() for tile in problem.test_weights.split(widths, dim=1)]
        self._devices = self._device_moments(problem.g_min, problem.g_max)
        self._tables = self._tabulate(problem.hypercube.n_knots, self._devices)

    def tnmse(self, x: ArrayLike, seed: int | None = None) -> FloatArray:
        """See :meth:`LossEngine.tnmse`; there is no noise to be seeded."""
        decoded = self.problem.hypercube.decode_arrays(x)
        return self._evaluate(_signed(decoded.f), decoded.g, self._tables)

    def tnmse_of(
        self, converter: BaseConductanceConverter, repeats: int = 100, seed: int = 0
    ) -> FloatArray:
        """See :meth:`LossEngine.tnmse_of`: the expectation, repeated.

        Raises:
            InvalidArgument: the converter does more than span curves over the largest absolute
                weight and add up conductances.
        """
        coefficients, curves = curves_of(converter)
        devices = self._devices
        low, high = float(curves.min()), float(curves.max())
        if low < devices.g_us[0] or high > devices.g_us[-1]:
            devices = self._device_moments(min(low, devices.g_us[0]), max(high, devices.g_us[-1]))
        tables = self._tabulate(curves.shape[2], devices)
        return np.repeat(self._evaluate(coefficients, curves, tables), repeats)

    def value_and_grad(self, x: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """TNMSE ``(n,)`` and its gradient ``(n, d)`` at points ``(n, d)`` or one point ``(d,)``.

        The value agrees with :meth:`tnmse` to the single precision in which the reference, and
        hence the hypercube, holds weights.

        Raises:
            InvalidArgument: x has another number of coordinates or leaves the unit cube.
        """
        decoded = DecodedForGradient(self.problem.hypercube, self.problem.hypercube.check_points(x))
        strategies = _signed(decoded.f), decoded.curves
        values = np.zeros(len(decoded.f))
        in_coefficients, in_curves = (np.zeros_like(array) for array in strategies)
        for share, tables in self._shares_of_tiles(self._tables):
            of_tile = expected_tnmse_and_gradient(*strategies, tables)
            values += share * of_tile[0]
            in_coefficients += share * of_tile[1]
            in_curves += share * of_tile[2]
        in_f = in_coefficients[:, ::2] - in_coefficients[:, 1::2]
        return np.where(np.isnan(values), np.inf, values), decoded.pull_back(in_f, in_curves)

    def _evaluate(
        self, coefficients: FloatArray, curves: FloatArray, tables: list[ExpectedTables]
    ) -> FloatArray:
        values = np.zeros(len(curves))
        for share, of_tile in self._shares_of_tiles(tables):
            values += share * expected_tnmse(coefficients, np.ascontiguousarray(curves), of_tile)
        return np.where(np.isnan(values), np.inf, values)

    def _shares_of_tiles(self, tables: list[ExpectedTables]) -> list[tuple[float, ExpectedTables]]:
        """Each tile's share of the columns, and its tables."""
        n_columns = self.problem.test_out_features
        return [
            (columns.shape[1] / n_columns, of_tile)
            for columns, of_tile in zip(self._columns, tables, strict=True)
        ]

    def _device_moments(self, g_low: float, g_high: float) -> DeviceMoments:
        problem = self.problem
        return tabulate_device_moments(problem.noise_model, problem.t_steps, g_low, g_high)

    def _tabulate(self, n_knots: int, devices: DeviceMoments) -> list[ExpectedTables]:
        """Tables of each tile, for curves with so many knots."""
        problem, tables = self.problem, []
        for columns in self._columns:
            nodes = weight_nodes(columns, n_knots)
            readout = tabulate_readout(
                problem.rpu_config.forward, nodes.largest, nodes.mean_absolute, nodes.n_rows
            )
            compensation = self._compensation_of(nodes)
            tables.append(
                expected_tables(
                    nodes, n_knots, problem.max_abs_weight, devices, readout, compensation
                )
            )
        return tables

    def _compensation_of(self, nodes: WeightNodes) -> Compensation:
        kind = type(self._compensation)
        n_columns = 1 if kind is PerColumnDriftCompensation else nodes.n_columns
        return Compensation(
            is_on=self._compensation is not None,
            measures_reference=kind is not GlobalDriftCompensationWithExactReference,
            exact_reference=nodes.mean_absolute,
            group_size=nodes.n_rows * n_columns,
            n_columns=n_columns,
        )


def _signed(f: FloatArray) -> FloatArray:
    """Coefficients (n, 2P) of g+ and g- of each pair in the weight, from the factors (n, P)."""
    return np.stack([f, -f], axis=2).reshape(len(f), -1)


def _check_hardware(rpu_config: Any) -> None:
    """Raises unless the expectation is known for these parts of an RPU configuration."""
    if rpu_config.tile_class is not InferenceTile:
        raise _unknown(f"rpu_config.tile_class = {rpu_config.tile_class.__name__}")
    compensation: BaseDriftCompensation | None = getattr(rpu_config, "drift_compensation", None)
    # A subclass might do anything.
    if compensation is not None and type(compensation) not in _COMPENSATIONS:
        raise _unknown(f"rpu_config.drift_compensation = {type(compensation).__name__}")
    model = type(rpu_config.noise_model)
    for name in ("apply_programming_noise", "apply_drift_noise"):
        if getattr(model, name) is not getattr(BaseNoiseModel, name):
            raise _unknown(f"rpu_config.noise_model = {model.__name__}, which overrides {name}")
    try:
        AnalogReadout(rpu_config.forward)
    except InvalidArgument as error:
        raise _unknown("rpu_config.forward with properties that couple weights") from error


def _unknown(what: str) -> InvalidArgument:
    return InvalidArgument(
        f'{what} is nothing the expected engine knows the expectation of: use the engine "aihwkit".'
    )
