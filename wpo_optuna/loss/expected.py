"""The expected loss: deterministic, differentiable, and as fast as a table look-up.

docs/expected_loss.md derives the formulas and says what they neglect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from aihwkit.inference.compensation.drift import (
    GlobalDriftCompensation,
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
)
from aihwkit.inference.converter.conductance import CustomPairConductanceConverter
from numpy.typing import ArrayLike, NDArray

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.base import LossEngine
from wpo_optuna.loss.differentiable_decode import decode
from wpo_optuna.loss.expected_tables import Compensation, ExpectedTables, expected_tables
from wpo_optuna.loss.expected_torch import expected_tnmse
from wpo_optuna.loss.moment_tables import tabulate_device_moments
from wpo_optuna.loss.readout_table import tabulate_readout
from wpo_optuna.loss.weight_nodes import WeightNodes, weight_nodes
from wpo_optuna.tile_mapping import split_sizes

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.problem import WeightProgrammingProblem

FloatArray = NDArray[np.float64]

_COMPENSATIONS = (
    GlobalDriftCompensation,
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
)

# Candidates whose intermediate arrays still fit the cache.
_CHUNK = 32

# Knots for converters that are no piecewise linear curves over evenly spaced knots.
_FINE_KNOTS = 401


class ExpectedEngine(LossEngine):
    """Evaluates the expectation of the loss over all noise.

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
        compensation = getattr(rpu_config, "drift_compensation", None)
        if compensation is not None and type(compensation) not in _COMPENSATIONS:
            known = ", ".join(cls.__name__ for cls in _COMPENSATIONS)
            raise InvalidArgument(
                f"rpu_config.drift_compensation = {type(compensation).__name__} is none that the "
                f'expected engine knows ({known} or None): use the engine "aihwkit".'
            )
        self._compensation = compensation
        self._devices = tabulate_device_moments(
            problem.noise_model, problem.t_steps, problem.g_min, problem.g_max
        )
        widths = split_sizes(problem.test_out_features, rpu_config.mapping.max_output_size)
        self._tiles = [tile.numpy() for tile in problem.test_weights.split(widths, dim=1)]
        self._tables = self._tabulate(problem.hypercube.n_knots)

    def tnmse(self, x: ArrayLike, seed: int | None = None) -> FloatArray:
        """See :meth:`LossEngine.tnmse`; there is no noise to be seeded."""
        decoded = self.problem.hypercube.decode_arrays(x)
        return self._evaluate(_signed(decoded.f), decoded.g, self._tables)

    def tnmse_of(
        self, converter: BaseConductanceConverter, repeats: int = 100, seed: int = 0
    ) -> FloatArray:
        """See :meth:`LossEngine.tnmse_of`: the expectation, repeated."""
        if isinstance(converter, CustomPairConductanceConverter):
            coefficients = _signed(np.array([converter.f_lst], dtype=np.float64))
            curves = np.array([converter.g_lst], dtype=np.float64)
        else:
            coefficients, curves = _curves_of(converter)
        tables = self._tabulate(curves.shape[2])
        return np.repeat(self._evaluate(coefficients, curves, tables), repeats)

    def value_and_grad(self, x: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """TNMSE ``(n,)`` and its gradient ``(n, d)`` at points ``(n, d)``.

        Raises:
            InvalidArgument: x has another number of coordinates or leaves the unit cube.
        """
        points = self.problem.hypercube.check_points(x)
        values, gradients = [], []
        for start in range(0, len(points), _CHUNK):
            part = torch.from_numpy(points[start : start + _CHUNK]).requires_grad_()
            f, curves = decode(self.problem.hypercube, part)
            value = self._mean_over_tiles(
                torch.stack([f, -f], dim=2).flatten(1), curves, self._tables
            )
            (gradient,) = torch.autograd.grad(value.sum(), part)
            values.append(value.detach().numpy())
            gradients.append(gradient.numpy())
        return np.concatenate(values), np.concatenate(gradients)

    def _evaluate(
        self, coefficients: FloatArray, curves: FloatArray, tables: list[ExpectedTables]
    ) -> FloatArray:
        with torch.no_grad():
            parts = [
                self._mean_over_tiles(
                    torch.from_numpy(coefficients[start : start + _CHUNK]),
                    torch.from_numpy(curves[start : start + _CHUNK]),
                    tables,
                ).numpy()
                for start in range(0, len(curves), _CHUNK)
            ]
        values = np.concatenate(parts) if parts else np.empty(0)
        return np.where(np.isnan(values), np.inf, values)

    def _mean_over_tiles(
        self, coefficients: torch.Tensor, curves: torch.Tensor, tables: list[ExpectedTables]
    ) -> torch.Tensor:
        """Mean of the tiles' errors, each with the number of its columns as weight."""
        total = torch.zeros(len(curves), dtype=torch.float64)
        for tile, of_tile in zip(self._tiles, tables, strict=True):
            share = tile.shape[1] / self.problem.test_out_features
            total = total + share * expected_tnmse(coefficients, curves, of_tile)
        return total

    def _tabulate(self, n_knots: int) -> list[ExpectedTables]:
        problem = self.problem
        forward = problem.rpu_config.forward
        tables = []
        for tile in self._tiles:
            nodes = weight_nodes(tile, n_knots)
            readout = tabulate_readout(forward, nodes.largest, nodes.mean_absolute, nodes.n_rows)
            tables.append(
                expected_tables(
                    nodes, n_knots, problem.max_abs_weight, self._devices, readout,
                    self._compensation_of(nodes),
                )
            )  # fmt: skip
        return tables

    def _compensation_of(self, nodes: WeightNodes) -> Compensation:
        kind = type(self._compensation)
        per_column = kind is PerColumnDriftCompensation
        return Compensation(
            is_on=self._compensation is not None,
            measures_reference=kind is not GlobalDriftCompensationWithExactReference,
            exact_reference=nodes.mean_absolute,
            group_size=nodes.n_rows * (1 if per_column else nodes.n_columns),
            n_columns=1 if per_column else nodes.n_columns,
        )


def _signed(f: FloatArray) -> FloatArray:
    """Coefficients (n, 2P) of g+ and g- of each pair in the weight, from the factors (n, P)."""
    return np.stack([f, -f], axis=2).reshape(len(f), -1)


def _curves_of(converter: BaseConductanceConverter) -> tuple[FloatArray, FloatArray]:
    """Coefficients (1, D) and curves (1, D, K) of any converter, from its conversions.

    Converters scale their curves with the largest weight, and turn conductances back to weights
    linearly.
    """
    weights = torch.linspace(-1, 1, _FINE_KNOTS)
    conductances, scales = converter.convert_to_conductances(weights)
    off = [torch.zeros(1) for _ in conductances]
    offset = converter.convert_back_to_weights(off, scales)
    coefficients = []
    for device in range(len(conductances)):
        on = [torch.ones(1) if d == device else torch.zeros(1) for d in range(len(conductances))]
        coefficients.append(float(converter.convert_back_to_weights(on, scales) - offset))
    curves = torch.stack(list(conductances)).double().numpy()
    return np.array([coefficients]), curves[None]
