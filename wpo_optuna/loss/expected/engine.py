"""The engine that evaluates the expectation of the loss."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from aihwkit.inference.compensation.drift import (
    GlobalDriftCompensation,
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
)
from aihwkit.inference.converter.conductance import (
    CustomPairConductanceConverter,
    DualPairConductanceConverter,
    NPairConductanceConverter,
    SinglePairConductanceConverter,
)
from numpy.typing import ArrayLike, NDArray

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.base import LossEngine, not_batched
from wpo_optuna.loss.expected.compiled import jax_device
from wpo_optuna.loss.expected.device_moments import DeviceMoments, tabulate_device_moments
from wpo_optuna.loss.expected.evaluation import (
    conductance,
    conductance_and_gradient,
    placed,
    tnmse,
    tnmse_and_gradient,
)
from wpo_optuna.loss.expected.loss import Kind, Tables
from wpo_optuna.loss.expected.readout_table import tabulate_readout
from wpo_optuna.loss.expected.weight_nodes import weight_nodes
from wpo_optuna.loss.noise import step_on_weights
from wpo_optuna.loss.parallel import one_thread
from wpo_optuna.loss.readout import AnalogReadout
from wpo_optuna.loss.reference import widths_of_tiles

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

FloatArray = NDArray[np.float64]

_KINDS = {
    type(None): Kind(compensates=False, reads_reference=False),
    GlobalDriftCompensation: Kind(compensates=True, reads_reference=True),
    GlobalDriftCompensationWithExactReference: Kind(compensates=True, reads_reference=False),
    PerColumnDriftCompensation: Kind(compensates=True, reads_reference=True),
}

_FILLED_IN_TURN = (
    SinglePairConductanceConverter,
    DualPairConductanceConverter,
    NPairConductanceConverter,
)


class ExpectedEngine(LossEngine):
    """Evaluates the expectation of the loss over all noise.

    JAX compiles the formulas when they are first used, and their derivatives when a gradient is
    first asked for: some seconds each, once per machine for all problems that have as many pairs,
    knots and times and the same kind of compensation. A batch is shared by as many threads as
    torch uses; values do not depend on it.

    Args:
        problem: the problem whose strategies are evaluated.
        device: where JAX computes, named as for torch: ``"cpu"`` or ``"cuda"``.

    Raises:
        InvalidArgument: the hardware has a property of which no expectation is known here, and the
            message names the engine to use; or JAX finds no such device.
    """

    name = "expected"

    def __init__(self, problem: WeightProgrammingProblem, *, device: str = "cpu") -> None:
        super().__init__(problem)
        self.device = device
        self._device = jax_device(device)
        rpu_config = problem.evaluation_rpu_config()
        readout = _known_readout(rpu_config)
        self._compensation = type(getattr(rpu_config, "drift_compensation", None))
        self._kind = _KINDS[self._compensation]
        tiles = problem.test_weights.split(widths_of_tiles(problem), dim=1)
        self._columns = [tile.numpy() for tile in tiles]
        self._readouts = [
            placed(tabulate_readout(readout, tile), self._device) for tile in self._columns
        ]
        self._devices = self._device_moments(problem.g_min, problem.g_max)
        self._tiles = self._tables(np.linspace(-1, 1, problem.hypercube.n_knots), self._devices)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies in other processes tabulate anew: JAX's arrays are bound to theirs."""
        return partial(type(self), device=self.device), (self.problem,)

    def tnmse(self, x: ArrayLike, seed: int | None = None) -> FloatArray:
        """See :meth:`LossEngine.tnmse`; there is no noise to be seeded."""
        return tnmse(*self._decoded(x), self._tiles, self._kind, self._device)

    def tnmse_and_conductance(
        self, x: ArrayLike, seed: int | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """See :meth:`LossEngine.tnmse_and_conductance`."""
        return self.tnmse(x), self.conductance(x)

    def tnmse_of(
        self, converter: BaseConductanceConverter, repeats: int = 100, seed: int = 0
    ) -> FloatArray:
        """See :meth:`LossEngine.tnmse_of`: the expectation, repeated.

        Raises:
            InvalidArgument: the converter is none of aihwkit's converters to pairs of devices.
        """
        value = tnmse(*self._converted(converter), self._kind, self._device)
        return np.repeat(value, repeats)

    def conductance(self, x: ArrayLike, seed: int | None = None) -> FloatArray:
        """See :meth:`LossEngine.conductance`; there is no noise to be seeded."""
        scaled = conductance(*self._decoded(x), self._tiles, self._device)
        return scaled / self._scale

    def conductance_of(
        self, converter: BaseConductanceConverter, repeats: int = 100, seed: int = 0
    ) -> FloatArray:
        """See :meth:`LossEngine.conductance_of`: the expectation, repeated.

        Raises:
            InvalidArgument: the converter is none of aihwkit's converters to pairs of devices.
        """
        scaled = conductance(*self._converted(converter), self._device)
        return np.repeat(scaled / self._scale, repeats)

    def value_and_grad(self, x: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """TNMSE ``(n,)`` and its gradient ``(n, d)`` at points ``(n, d)`` or one point ``(d,)``.

        The value agrees with :meth:`tnmse` to the single precision in which the reference, and
        hence the hypercube, holds weights.

        Raises:
            InvalidArgument: x has another number of coordinates or leaves the unit cube.
        """
        cube = self.problem.hypercube
        return tnmse_and_gradient(cube.check_points(x), cube, self._tiles, self._kind, self._device)

    def conductance_and_grad(self, x: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Mean conductance ``(n,)`` in µS and its gradient; see :meth:`value_and_grad`."""
        cube = self.problem.hypercube
        x = cube.check_points(x)
        scaled, gradient = conductance_and_gradient(x, cube, self._tiles, self._device)
        return scaled / self._scale, gradient / self._scale

    @property
    def _scale(self) -> float:
        """The sum over the tiles of what their mean square errors count in the TNMSE."""
        return 100 / self.problem.max_abs_weight**2

    def _decoded(self, x: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Signed factors (n, D) and curves (n, D, K) in µS of points of the hypercube."""
        decoded = self.problem.hypercube.decode_arrays(x)
        factors = np.stack([decoded.f, -decoded.f], axis=2).reshape(len(decoded.f), -1)
        return factors, decoded.g

    def _converted(
        self, converter: BaseConductanceConverter
    ) -> tuple[FloatArray, FloatArray, list[Tables]]:
        """Signed factors (1, D) and curves (1, D, K) in µS of a converter, and tables for it."""
        problem, devices = self.problem, self._devices
        factors, knots, curves = _curves_of(converter, problem.hypercube.n_knots)
        low, high = min(curves.min(), problem.g_min), max(curves.max(), problem.g_max)
        if (low, high) != (problem.g_min, problem.g_max):
            devices = self._device_moments(low, high)
        # Devices that count nothing: converters of fewer pairs need no code of their own.
        missing = [(0, max(2 * problem.hypercube.n_pairs - len(factors), 0))]
        factors, curves = np.pad(factors, missing), np.pad(curves, [*missing, (0, 0)], mode="edge")
        return factors[None], curves[None], self._tables(knots, devices)

    def _device_moments(self, g_low: float, g_high: float) -> DeviceMoments:
        problem = self.problem
        with one_thread():
            return tabulate_device_moments(problem.noise_model, problem.t_steps, g_low, g_high)

    def _tables(self, knots: FloatArray, devices: DeviceMoments) -> list[Tables]:
        """Tables of each tile, for curves with these knots."""
        problem = self.problem
        per_column = self._compensation is PerColumnDriftCompensation
        tiles = [
            Tables(
                nodes=weight_nodes(matrix, knots),
                devices=devices,
                readout=readout,
                scale=np.float64(self._scale * matrix.size / problem.test_weights.numel()),
                n_rows=np.float64(matrix.shape[0]),
                n_columns=np.float64(1 if per_column else matrix.shape[1]),
            )
            for matrix, readout in zip(self._columns, self._readouts, strict=True)
        ]
        return [placed(tables, self._device) for tables in tiles]


def _curves_of(
    converter: BaseConductanceConverter, n_knots: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """A converter as curves.

    Args:
        converter: one of aihwkit's converters to pairs of devices; another might do anything.
        n_knots: number of knots, where so many do for the kinks of the curves.

    Returns:
        Signed factor of each device in the weight ``(D,)``; knots, weights over the largest one
        from -1 to 1 ``(K,)``; conductances in µS at the knots, linear between them ``(D, K)``.
    """
    f = np.array(getattr(converter, "f_lst", [1.0]), np.float64)
    factors = np.stack([f, -f], axis=1).ravel()
    if type(converter) is CustomPairConductanceConverter:
        curves = np.array(converter.g_lst, np.float64)
        return factors, np.linspace(-1, 1, curves.shape[1]), curves
    if type(converter) not in _FILLED_IN_TURN:
        raise InvalidArgument(
            f"converter = {type(converter).__name__} is none of aihwkit's converters to pairs of "
            'devices, which alone the expected engine evaluates: use the engine "montecarlo".'
        )
    # A pair starts where those before it have reached the end of their range.
    ends = np.cumsum(f) / np.cumsum(f)[-1]
    starts = np.concatenate([[0.0], ends[:-1]])
    knots = np.concatenate([-ends[::-1], [0.0], ends])
    while len(knots) < n_knots:
        widest = np.diff(knots).argmax()
        knots = np.insert(knots, widest + 1, knots[widest : widest + 2].mean())
    weights = np.stack([knots, -knots])
    used = np.clip((weights - starts[:, None, None]) / (ends - starts)[:, None, None], 0, 1)
    curves = converter.g_min + (converter.g_max - converter.g_min) * used
    return factors, knots, curves.reshape(len(factors), -1)


def _known_readout(rpu_config: Any) -> AnalogReadout:
    """The tile's read-out; raises unless the expectation is known for the configuration."""
    compensation = type(getattr(rpu_config, "drift_compensation", None))
    # A subclass might do anything.
    if compensation not in _KINDS:
        raise not_batched(f"rpu_config.drift_compensation = {compensation.__name__}")
    model = rpu_config.noise_model
    if (name := step_on_weights(model)) is not None:
        told = f"rpu_config.noise_model = {type(model).__name__}, which overrides {name}"
        raise not_batched(told)
    return AnalogReadout.of_tile(rpu_config)
