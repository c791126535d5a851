"""What is optimised: a weight distribution, the hardware it is programmed on, and for how long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from aihwkit.inference.converter.base import BaseConductanceConverter
from aihwkit.inference.converter.conductance import (
    CustomPairConductanceConverter,
    NPairConductanceConverter,
    SinglePairConductanceConverter,
)
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.simulator.configs import InferenceRPUConfig
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.hypercube import Hypercube
from wpo_optuna.problem.downsampling import downsample_weights
from wpo_optuna.problem.fingerprint import Description, describe, fingerprint

BASELINE_CONVERTERS = (
    SinglePairConductanceConverter,
    NPairConductanceConverter,  # DualPairConductanceConverter is one
    CustomPairConductanceConverter,
)

# A tile without a limit on its inputs (max_input_size 0) is represented by this many rows.
ROWS_OF_UNLIMITED_TILE = 512

# aihwkit's converters take weights that are all smaller than this for zero.
SMALLEST_MAX_ABS_WEIGHT = 1e-7

# The parts of an RPU configuration that act between programming and reading a weight.
_ACTING_PARTS = (
    "device", "drift_compensation", "forward", "mapping", "noise_model", "simulator_tile_class",
    "tile_class",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class WeightProgrammingProblem:
    """A weight programming problem; immutable.

    Everything mutable that acts on the loss is copied, so that later changes to the caller's
    objects change nothing.
    Names and defaults of the options are those of aihwkit's ``WeightProgrammingOptimizer``.

    Attributes:
        weights: the network's weights (unitless), any shape.
        f_lst: significance factor of each pair of conductances, None where it is to be found.
        rpu_config: the hardware: noise model, drift compensation, forward pass, tile size.
        t_steps: times after programming in s, ascending, over which the error is averaged.
        g_converter_baseline: the programming to compare with; its g_min and g_max (µS) are those
            of the devices.
        symmetric: whether negative and positive weights mirror each other.
        nbins: knots of a curve for weights from zero to the largest.
        test_out_features: columns of the test matrix.
        g_err: how far targets may be over- or underprogrammed, as a fraction of g_max - g_min.
        f_min: lowest free factor.
        f_max: highest free factor.
        use_max_kw: whether the largest weight always takes the whole range of conductance.
        loss_margin: by how much (relative) the baseline is to be beaten for a loss below zero.
        baseline_iterations: draws of the baseline that are averaged.
        seed: seed of the shuffle of the test matrix, and of the search unless it has its own.

    Raises:
        InvalidArgument: an argument cannot be used.
    """

    weights: Tensor
    f_lst: Sequence[float | None]
    rpu_config: InferenceRPUConfig
    t_steps: Sequence[float]
    g_converter_baseline: Any
    symmetric: bool = True
    nbins: int = 6
    test_out_features: int = 20
    g_err: float = 0.0
    f_min: float = 0.1
    f_max: float = 5.0
    use_max_kw: bool = False
    loss_margin: float = 0.125
    baseline_iterations: int = 100
    seed: int = 100

    def __post_init__(self) -> None:
        _check_weights(self.weights)
        _check_options(self)
        _check_hardware(self.rpu_config, self.g_converter_baseline)
        self._set("f_lst", _checked_factors(self.f_lst))
        self._set("rpu_config", deepcopy(self.rpu_config))
        self._set("g_converter_baseline", deepcopy(self.g_converter_baseline))
        self._set("t_steps", _checked_times(self.t_steps, self.rpu_config.noise_model))
        self._set("weights", self.weights.detach())
        _check_test_matrix(self)
        # The matrix is made now, so that training the network further does not change it.
        _check_baseline(self.g_converter_baseline, self.test_weights)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def g_min(self) -> float:
        """Lowest conductance of a device in µS."""
        return float(self.g_converter_baseline.g_min)

    @property
    def g_max(self) -> float:
        """Highest conductance of a device in µS."""
        return float(self.g_converter_baseline.g_max)

    @property
    def noise_model(self) -> BaseNoiseModel:
        """The noise model of the devices; not to be changed."""
        return self.rpu_config.noise_model

    @property
    def test_in_features(self) -> int:
        """Rows of the test matrix: the tile's inputs."""
        return int(self.rpu_config.mapping.max_input_size) or ROWS_OF_UNLIMITED_TILE

    @cached_property
    def test_weights(self) -> Tensor:
        """The test matrix W, ``(test_in_features, test_out_features)`` in float32, unitless."""
        shape = (self.test_in_features, self.test_out_features)
        return downsample_weights(self.weights, shape, self.seed)

    @cached_property
    def max_abs_weight(self) -> float:
        """Largest absolute weight m of the test matrix, which is that of the weights."""
        return float(self.test_weights.abs().max())

    @cached_property
    def hypercube(self) -> Hypercube:
        """The search space."""
        return Hypercube(
            f_lst=tuple(self.f_lst),
            g_min=self.g_min,
            g_max=self.g_max,
            max_abs_weight=self.max_abs_weight,
            symmetric=self.symmetric,
            nbins=self.nbins,
            g_err=self.g_err,
            f_min=self.f_min,
            f_max=self.f_max,
            use_max_kw=self.use_max_kw,
        )

    def evaluation_rpu_config(self) -> InferenceRPUConfig:
        """A new copy of the RPU configuration, without the scaling of outputs.

        Output scales would distort the distribution of weights; the reference switches them off
        as well (``WeightProgrammingOptimizer.__init__``).
        """
        rpu_config = deepcopy(self.rpu_config)
        rpu_config.mapping.weight_scaling_omega = 0.0
        rpu_config.mapping.weight_scaling_columnwise = False
        rpu_config.mapping.learn_out_scaling = False
        rpu_config.mapping.out_scaling_columnwise = False
        return rpu_config

    def loss(self, tnmse: ArrayLike, baseline: float) -> NDArray[np.float64]:
        """The hypercube loss: (TNMSE - baseline)/baseline + loss_margin; NaN becomes +inf.

        Source: ``loss_weights`` of the reference.
        """
        relative = (np.asarray(tnmse, dtype=np.float64) - baseline) / baseline + self.loss_margin
        return np.where(np.isnan(relative), np.inf, relative)

    @cached_property
    def description(self) -> Description:
        """Everything that changes the loss, by dotted path."""
        ordered = self.test_weights.flatten().sort().values
        described: Description = describe(ordered, "weights")
        for name in (
            "f_lst", "t_steps", "symmetric", "nbins", "test_out_features", "g_err", "f_min",
            "f_max", "use_max_kw", "loss_margin", "baseline_iterations", "seed",
        ):  # fmt: skip
            described |= describe(getattr(self, name), name)
        described |= describe(self.g_converter_baseline, "g_converter_baseline")

        rpu_config = self.evaluation_rpu_config()
        rpu_config.noise_model.g_converter = None  # each strategy brings its own
        for part in _ACTING_PARTS:
            described |= describe(getattr(rpu_config, part, None), f"rpu_config.{part}")
        data_type = rpu_config.runtime.data_type
        described |= describe(data_type, "rpu_config.runtime.data_type")
        return described

    @cached_property
    def fingerprint(self) -> str:
        """Stable hash of everything that changes the loss."""
        return fingerprint(self.description)


def _check_weights(weights: object) -> None:
    if not isinstance(weights, Tensor):
        raise InvalidArgument(
            f"weights is a {type(weights).__name__}: a torch tensor of weights is needed."
        )
    if weights.numel() == 0:
        raise InvalidArgument("weights is empty: at least one weight is needed.")
    if weights.layout is not torch.strided or weights.is_meta:
        kind = "a meta tensor, without data" if weights.is_meta else "sparse or nested"
        raise InvalidArgument(f"weights is {kind}: a dense tensor of numbers is needed.")
    # Eight-bit floats know no arithmetic.
    if weights.is_floating_point() and weights.element_size() == 1:
        weights = weights.to(torch.float32)
    if not weights.is_floating_point():
        raise InvalidArgument(
            f"weights has type {weights.dtype}: floating-point numbers are needed."
        )
    if not bool(torch.isfinite(weights).all()):
        n_bad = int((~torch.isfinite(weights)).sum())
        raise InvalidArgument(
            f"weights contains {n_bad} NaN or infinite values among {weights.numel()}: all "
            "weights must be finite."
        )
    largest = float(weights.detach().abs().max())
    if largest == 0.0:
        raise InvalidArgument("weights are all zero: at least one must differ from zero.")
    if not SMALLEST_MAX_ABS_WEIGHT <= largest <= torch.finfo(torch.float32).max:
        raise InvalidArgument(
            f"weights has {largest:g} as its largest absolute value: aihwkit needs one from "
            f"{SMALLEST_MAX_ABS_WEIGHT:g} up that single precision can hold."
        )


def _as_list(values: object) -> object:
    """Arrays, tensors and ranges as lists; anything else as it is."""
    if isinstance(values, np.ndarray | Tensor):
        return values.tolist()
    return list(values) if isinstance(values, range) else values


def _checked_factors(f_lst: object) -> tuple[float | None, ...]:
    f_lst = _as_list(f_lst)
    if not isinstance(f_lst, list | tuple) or not f_lst:
        raise InvalidArgument(
            f"f_lst = {f_lst!r}: give a list with one significance factor, or None to find it, "
            "for each pair of conductances."
        )
    for f in f_lst:
        if f is not None and not (_is_real(f) and math.isfinite(f) and f > 0):
            raise InvalidArgument(
                f"f_lst = {list(f_lst)!r} contains {f!r}: significance factors are positive "
                "numbers, or None where the factor is to be found."
            )
    return tuple(None if f is None else float(f) for f in f_lst)


def _check_options(problem: WeightProgrammingProblem) -> None:
    for name, lowest in (("nbins", 2), ("test_out_features", 1), ("baseline_iterations", 1)):
        value = getattr(problem, name)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < lowest:
            raise InvalidArgument(
                f"{name} = {value!r}: a whole number of at least {lowest} is needed."
            )
    seed = problem.seed
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise InvalidArgument(f"seed = {seed!r}: a whole number from 0 to 2^32 - 1 is needed.")
    for name in ("g_err", "f_min", "f_max", "loss_margin"):
        value = getattr(problem, name)
        if not _is_real(value) or not math.isfinite(value):
            raise InvalidArgument(f"{name} = {value!r}: a finite number is needed.")
    if problem.g_err < 0:
        raise InvalidArgument(f"g_err = {problem.g_err!r}: a number of at least 0 is needed.")
    if not 0 < problem.f_min < problem.f_max:
        raise InvalidArgument(
            f"f_min = {problem.f_min!r}, f_max = {problem.f_max!r}: 0 < f_min < f_max is needed."
        )
    for name in ("symmetric", "use_max_kw"):
        if not isinstance(getattr(problem, name), bool):
            raise InvalidArgument(f"{name} = {getattr(problem, name)!r}: True or False is needed.")


def _check_hardware(rpu_config: object, baseline: object) -> None:
    if not isinstance(rpu_config, InferenceRPUConfig):
        raise InvalidArgument(
            f"rpu_config is a {type(rpu_config).__name__}: an InferenceRPUConfig is needed."
        )
    if not isinstance(rpu_config.noise_model, BaseNoiseModel):
        raise InvalidArgument(
            f"rpu_config.noise_model is a {type(rpu_config.noise_model).__name__}: one of "
            "aihwkit's inference noise models is needed."
        )
    for name in ("max_input_size", "max_output_size"):
        size = getattr(rpu_config.mapping, name)
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 0:
            raise InvalidArgument(
                f"rpu_config.mapping.{name} = {size!r}: a whole number is needed, 0 for no limit."
            )
    if not isinstance(baseline, BASELINE_CONVERTERS):
        raise InvalidArgument(
            f"g_converter_baseline is a {type(baseline).__name__}: a SinglePair-, DualPair-, "
            "NPair- or CustomPairConductanceConverter is needed."
        )
    range_us = (baseline.g_min, baseline.g_max)
    if not all(map(_is_real, range_us)) or not 0 <= range_us[0] < range_us[1] < math.inf:
        raise InvalidArgument(
            f"g_converter_baseline has g_min = {baseline.g_min}, g_max = {baseline.g_max}: "
            "0 <= g_min < g_max is needed (µS)."
        )


def _check_test_matrix(problem: WeightProgrammingProblem) -> None:
    if problem.test_in_features * problem.test_out_features < 2:
        raise InvalidArgument(
            f"test_out_features = {problem.test_out_features} with rpu_config.mapping."
            f"max_input_size = {problem.test_in_features}: the test matrix needs two entries or "
            "more, for the least and the greatest weight."
        )


def _check_baseline(baseline: BaseConductanceConverter, weights: Tensor) -> None:
    """Tries the baseline: aihwkit accepts factors and curves that cannot work."""
    factors = _as_list(getattr(baseline, "f_lst", [1.0]))
    if (
        not isinstance(factors, list | tuple)
        or not factors
        or not all(_is_real(f) and math.isfinite(f) and f > 0 for f in factors)
    ):
        raise InvalidArgument(
            f"g_converter_baseline has f_lst = {factors!r}: one positive factor is needed for "
            "each pair of conductances."
        )
    try:
        back = baseline.convert_back_to_weights(*baseline.convert_to_conductances(weights))
    except (ValueError, RuntimeError) as error:  # for instance curves of different lengths
        raise InvalidArgument(
            f"g_converter_baseline, a {type(baseline).__name__}, cannot convert the weights: "
            f"{error}."
        ) from error
    if not bool(torch.isfinite(back).all()):
        raise InvalidArgument(
            f"g_converter_baseline, a {type(baseline).__name__}, turns the weights into NaN or "
            "infinity: its curves must give at least one weight that differs from zero."
        )


def _checked_times(t_steps: object, noise_model: BaseNoiseModel) -> tuple[float, ...]:
    t_steps = _as_list(t_steps)
    if not isinstance(t_steps, list | tuple) or not t_steps:
        raise InvalidArgument(
            f"t_steps = {t_steps!r}: give a list of at least one time after programming in s."
        )
    for t in t_steps:
        if not (_is_real(t) and math.isfinite(t) and t >= 0):
            raise InvalidArgument(
                f"t_steps = {list(t_steps)!r} contains {t!r}: times after programming are finite "
                "and not negative (s)."
            )
    times = tuple(float(t) for t in t_steps)
    if any(later <= earlier for earlier, later in pairwise(times)):
        raise InvalidArgument(
            f"t_steps = {list(t_steps)!r}: times must ascend, each one once, e.g. "
            f"{sorted(set(times))}."
        )
    for t in times:
        if reason := time_refusal(noise_model, t):
            raise InvalidArgument(
                f"t_steps contains {t:g} s, which {type(noise_model).__name__} does not support: "
                f"{reason}."
            )
    return times


def time_refusal(noise_model: BaseNoiseModel, t: float) -> str | None:
    """Why a noise model cannot be evaluated at time t in s, or None: tries it on one device."""
    g_target = torch.full((1,), float(getattr(noise_model, "g_max", None) or 1.0) / 2)
    with torch.random.fork_rng(devices=[]):
        try:
            g_programmed = noise_model.apply_programming_noise_to_conductance(g_target.clone())
            nu = noise_model.generate_drift_coefficients(g_target.clone())
            noise_model.apply_drift_noise_to_conductance(g_programmed, nu, t)
        # Noise models raise what they like (aihwkit's ReRAM one an ArgumentError).
        except Exception as error:
            return str(error).rstrip(".") or type(error).__name__
    return None


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
