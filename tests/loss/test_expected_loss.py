"""The formulas in JAX against plain numpy, strategy by strategy; gradients against differences."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from expected_problems import PROBLEMS, device_problem
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator
from scipy.special import log_ndtr

from wpo_optuna.loss.expected import ExpectedEngine
from wpo_optuna.loss.expected.device_moments import tabulate_device_moments
from wpo_optuna.loss.expected.loss import Kind
from wpo_optuna.loss.expected.readout_table import gamma_excess_table, tabulate_readout
from wpo_optuna.loss.expected.weight_nodes import weight_nodes
from wpo_optuna.loss.gradient_search import polish
from wpo_optuna.loss.readout import AnalogReadout
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

FloatArray = NDArray[np.float64]


def _tiles_of_8_columns() -> WeightProgrammingProblem:
    rpu_config = device_problem(rows=64).rpu_config
    rpu_config.mapping.max_output_size = 8
    return device_problem(rows=64, rpu_config=rpu_config)


# One of each kind of arithmetic. Most, and all compiled for themselves, are under -m slow.
KINDS = {
    "reference": PROBLEMS["reference"],
    "per column, 64 rows": PROBLEMS["per column, 64 rows"],
    "tiles of 8 columns": _tiles_of_8_columns,
}
OTHER_KINDS = {
    "weights beyond the read-out's table": PROBLEMS["Hermes, one device"],
    "input noise": lambda: device_problem(forward={"inp_noise": 0.01}),
    "no compensation": PROBLEMS["no compensation"],
    "ReRAM of Wan": PROBLEMS["ReRAM of Wan"],
    "exact reference": PROBLEMS["exact reference"],
    "three pairs": PROBLEMS["three pairs"],
    "asymmetric strategies": PROBLEMS["asymmetric strategies"],
    "moments of two terms": PROBLEMS["moments of two terms"],
}
ALL_KINDS = [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHER_KINDS)]


@cache
def engine_for(kind: str) -> ExpectedEngine:
    return ExpectedEngine((KINDS | OTHER_KINDS)[kind]())


class Plain:
    """The formulas of docs/expected_loss.md for one tile, with loops and numpy's interpolation."""

    def __init__(self, problem: WeightProgrammingProblem, kind: Kind, per_column: bool) -> None:
        self.kind, self.knots = kind, np.linspace(-1, 1, problem.hypercube.n_knots)
        self.normalisation = problem.max_abs_weight
        matrix = problem.test_weights.numpy()
        self.n_rows, self.n_columns = len(matrix), 1 if per_column else matrix.shape[1]
        self.nodes = weight_nodes(matrix, self.knots)
        self.devices = d = tabulate_device_moments(
            problem.noise_model, problem.t_steps, problem.g_min, problem.g_max
        )
        self.grid = d.g_low + (d.g_high - d.g_low) * np.linspace(0, 1, len(d.programmed[0])) ** 2
        self.readout = r = tabulate_readout(AnalogReadout.of_tile(problem.rpu_config), matrix)
        means = np.linspace(-r.largest_mean, r.largest_mean, r.mean_cells + 1)
        deviations = r.largest_deviation * np.linspace(0, 1, r.variance_cells + 1) ** 2
        values = np.stack([r.response, r.slope, r.second_moment], axis=-1)
        values = values[: means.size * deviations.size].reshape(means.size, deviations.size, 3)
        self.normal = RegularGridInterpolator((means, deviations**2), values)
        excess = gamma_excess_table()
        self.excess = RegularGridInterpolator([np.arange(n) for n in excess.shape], excess)

    def tnmse(self, a: FloatArray, g: FloatArray) -> float:
        nodes, m = self.nodes, self.nodes.largest
        self.a, self.g, self.s = a, g, np.abs(a @ g).max()
        low, high = self._span(m)
        total = 0.0
        rule = [(0, 1)] if self.kind.compensates else [(-1, 0.5), (1, 0.5)]
        w, v = self._programmed(nodes.weights / m, m)
        for node, share in rule:
            span = low + node * high
            errors = []
            for t in range(len(self.devices.target)):
                moments = [
                    self._in_time(*each, span, t)
                    for each in zip(nodes.weights / m, w, v, strict=True)
                ]
                errors.append(self._error(np.transpose(moments), w, v))
            total += share * np.mean(errors)
        return 100 * total / self.normalisation**2

    def _at(self, table: FloatArray, g: float) -> float:
        return float(np.interp(g, self.grid, table))

    def _programmed(self, u: FloatArray, m: float) -> tuple[FloatArray, FloatArray]:
        d, scale = self.devices, m / self.s
        targets = np.array([np.interp(u, self.knots, curve) for curve in self.g])
        mean = np.interp(targets, self.grid, d.programmed[0])
        variance = np.interp(targets, self.grid, d.programmed[1])
        return scale * self.a @ mean, scale**2 * self.a**2 @ variance

    def _span(self, m: float) -> tuple[float, float]:
        mean, variance = self._programmed(self.nodes.extremes / m, m)
        size, deviation = np.abs(mean), np.sqrt(variance)
        x = np.linspace(max((size - 4.5 * deviation).max(), 0), (size + 6 * deviation).max(), 24)
        within = [log_ndtr((y - size) / deviation) + log_ndtr((y + size) / deviation) for y in x]
        beyond = 1 - np.exp(within @ self.nodes.counts)
        first = x[0] + np.trapezoid(beyond, x)
        square = x[0] ** 2 + 2 * np.trapezoid(beyond * x, x) + (x[1] - x[0]) ** 2 / 6
        return first, np.sqrt(square - first**2)

    def _in_time(
        self, u: float, w: float, v: float, span: float, t: int
    ) -> tuple[float, float, float, float, float]:
        """E w_t, E w_t², Cov(ŵ, w_t), third and fourth cumulant at one node."""
        given = []
        rule = ((-1, 1 / 6), (0, 2 / 3), (1, 1 / 6))
        for offset, share in ((np.sqrt(3 * v) * node, share) for node, share in rule):
            c = np.zeros(4)
            for a, curve in zip(self.a * span / self.s, self.g, strict=True):
                target = np.interp(u, self.knots, curve)
                present = np.interp((w + offset) / span, self.knots, curve)
                mean, square = (
                    sum(
                        self._at(self.devices.target[t, k, r], target)
                        * self._at(self.devices.present[t, k, r], present)
                        for r in range(self.devices.target.shape[2])
                    )
                    for k in (0, 1)
                )
                mean *= a
                ratio = mean * (square - 1)
                c += mean * ratio ** np.arange(4) * (1, 1, 2, 6)
            given.append((share, offset, *c))
        p, offset, c1, c2, c3, c4 = np.transpose(given)
        mean, square = p @ c1, p @ (c2 + c1**2)
        d = c1 - mean
        fourth = p @ (c4 + 3 * c2**2 + 4 * c3 * d + 6 * c2 * d**2 + d**4)
        third = p @ (c3 + 3 * c2 * d + d**3)
        return mean, square, p @ (offset * c1), third, fourth - 3 * (square - mean**2) ** 2

    def _read(
        self, mean: FloatArray, square: FloatArray, third: FloatArray, fourth: FloatArray
    ) -> tuple[float, FloatArray, float]:
        """Mean read-out, its slope at the nodes, and the variance of a single one."""
        r, shares = self.readout, self.nodes.shares
        added = r.variance_per_square * (shares @ square) + r.added_variance
        variance = square - mean**2 + added
        size = np.maximum(np.abs(mean) / r.largest_mean, np.sqrt(variance) / r.largest_deviation)
        size = np.maximum(size, 1)
        inside = np.clip(mean / size, -r.largest_mean, r.largest_mean)
        capped = np.minimum(variance / size**2, r.largest_deviation**2)
        response, slope, output = self.normal((inside, capped)).T
        response, output = size * response, size**2 * output
        v = output - mean**2
        for q in np.flatnonzero(fourth > 1e-6 * v**2):
            width = np.sqrt(fourth[q] / 6)
            asymmetry = np.sign(mean[q]) * third[q] / (2 * np.sqrt(v[q]) * width)
            scale = width / v[q]
            place = (
                min(abs(mean[q]) / np.sqrt(v[q]) / 8, 1) * 40,
                (np.clip(asymmetry, -1, 1) + 1) * 4,
                min(scale / (scale + 0.7) * 13, 12),
            )
            response[q] += np.sqrt(v[q]) * self.excess([place])[0]
        spread = output - response**2 + (self.n_columns - 1) * added * slope**2
        return float(shares @ response), slope, float(shares @ spread)

    def _error(self, moments: FloatArray, w: FloatArray, v: FloatArray) -> float:
        shares, weights = self.nodes.shares, self.nodes.weights
        mean, square, covariance, third, fourth = moments
        s, b, target = shares @ square, shares @ (weights * mean), shares @ weights**2
        if not self.kind.compensates:
            return s - 2 * b + target
        r, slope, nu = self._read(mean, square, third, fourth)
        r0, slope0, nu0 = self.nodes.mean_absolute, 0 * w, 0.0
        if self.kind.reads_reference:
            r0, slope0, nu0 = self._read(w, w**2 + v, 0 * w, 0 * w)
        factor = r0 / r
        nu, nu0 = nu / r**2, nu0 / r0**2
        both = shares @ (slope0 * slope * covariance) / (r0 * r)
        c = slope0 * covariance / r0 - slope * (square - mean**2) / r
        bracket = (nu0 + nu - 2 * both) * factor**2 * s
        bracket += 2 * (nu - both) * (factor**2 * s - factor * b)
        bracket += 2 * shares @ ((2 * factor**2 * mean - factor * weights) * c)
        bracket /= self.n_rows * self.n_columns
        return factor**2 * s - 2 * factor * b + target + bracket


@pytest.mark.parametrize("kind", [k for k in ALL_KINDS if k != "tiles of 8 columns"])
def test_values_are_those_of_plain_numpy(kind: str) -> None:
    problem = (KINDS | OTHER_KINDS)[kind]()
    of_kind = Kind(kind != "no compensation", kind not in ("no compensation", "exact reference"))
    plain = Plain(problem, of_kind, per_column="per column" in kind)
    points = np.random.default_rng(1).random((2, problem.hypercube.dimension))
    decoded = problem.hypercube.decode_arrays(points)
    a = np.stack([decoded.f, -decoded.f], axis=2).reshape(2, -1)
    expected = [plain.tnmse(*strategy) for strategy in zip(a, decoded.g, strict=True)]
    np.testing.assert_allclose(engine_for(kind).tnmse(points), expected, rtol=1e-7)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_gradient_is_the_limit_of_finite_differences(kind: str) -> None:
    engine = engine_for(kind)
    rng = np.random.default_rng(2)
    x = rng.uniform(0.05, 0.95, (8, engine.problem.hypercube.dimension))
    direction = rng.standard_normal(x.shape)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    # Tables are interpolated linearly: a longer step would cross their kinks.
    step = 1e-8
    ahead, behind = (engine.value_and_grad(x + s * direction)[0] for s in (step, -step))
    _, gradient = engine.value_and_grad(x)
    differences = (ahead - behind) / (2 * step)
    expected = (gradient * direction).sum(axis=1)
    deviations = np.abs(expected - differences) / np.linalg.norm(gradient, axis=1)
    assert deviations.max() < 1e-6, deviations


def test_on_faces_and_corners_of_the_cube_gradients_are_those_of_its_inside() -> None:
    engine = engine_for("reference")
    rng = np.random.default_rng(3)
    x = rng.random((3, engine.problem.hypercube.dimension))
    x[1] = np.where(rng.random(x.shape[1]) < 0.5, x[1].round(), x[1])
    x[2] = x[2].round()
    value, gradient = engine.value_and_grad(x)
    step = 1e-7
    for k in range(x.shape[1]):
        inwards = np.where(x[:, k] < 0.5, step, -step)
        moved = x.copy()
        moved[:, k] += inwards
        difference = (engine.value_and_grad(moved)[0] - value) / inwards
        np.testing.assert_allclose(
            (difference - gradient[:, k]) / np.abs(gradient).max(axis=1), 0, atol=1e-3
        )


def test_values_beside_gradients_are_the_values() -> None:
    engine = engine_for("tiles of 8 columns")
    x = np.random.default_rng(3).random((20, engine.problem.hypercube.dimension))
    # The hypercube holds weights in single precision, the gradient does not.
    np.testing.assert_allclose(engine.value_and_grad(x)[0], engine.tnmse(x), rtol=1e-5)


@pytest.mark.slow
def test_polishing_ends_low_where_most_coordinates_lie_on_faces() -> None:
    engine = engine_for("reference")
    starts = np.random.default_rng(0).random((400, engine.problem.hypercube.dimension))
    best = starts[engine.tnmse(starts).argsort()[:4]]
    _, values = polish(engine, best)
    # Hand-written adjoints in another language ended between 0.0570 and 0.0644 from here.
    assert values.min() < 0.058
    assert values.max() < 0.066
