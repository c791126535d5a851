"""What is optimised: a weight distribution, the hardware it is programmed on, and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.simulator.configs import InferenceRPUConfig
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.hypercube import Hypercube
from wpo_optuna.notebook import table
from wpo_optuna.problem import validation
from wpo_optuna.problem.fingerprint import Description, describe, fingerprint

# A tile without a limit on its inputs (max_input_size 0) is represented by this many rows.
_ROWS_OF_UNLIMITED_TILE = 512

# What a problem has besides its weights, its baseline and its hardware.
_OPTIONS = (
    "f_lst", "t_steps", "symmetric", "nbins", "test_out_features", "g_err", "f_min", "f_max",
    "use_max_kw", "loss_margin", "baseline_iterations", "seed",
)  # fmt: skip

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
        other_rpu_configs: further hardware that the same strategy is to serve.
        over: what counts of the errors on several devices relative to the baseline's there:
            ``"mean"`` or ``"worst"``.

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
    other_rpu_configs: Sequence[InferenceRPUConfig] = ()
    over: Literal["mean", "worst"] = "mean"

    def __post_init__(self) -> None:
        validation.check_weights(self.weights)
        validation.check_options(self)
        validation.check_hardware(self.rpu_config)
        validation.check_baseline(self.g_converter_baseline)
        self._set("f_lst", validation.checked_factors(self.f_lst))
        self._set("rpu_config", deepcopy(self.rpu_config))
        self._set("g_converter_baseline", deepcopy(self.g_converter_baseline))
        self._set("t_steps", validation.checked_times(self.t_steps, self.noise_model))
        self._set("weights", self.weights.detach())
        if self.test_in_features * self.test_out_features < 2:
            raise InvalidArgument(
                f"test_out_features = {self.test_out_features} with rpu_config.mapping."
                f"max_input_size = {self.test_in_features}: the test matrix needs two entries or "
                "more, for the least and the greatest weight."
            )
        # The matrix is made now, so that training the network further does not change it.
        validation.try_baseline(self.g_converter_baseline, self.test_weights)
        self._set("other_rpu_configs", tuple(map(deepcopy, self.other_rpu_configs)))
        _ = self.on_each_device  # each is checked

    def __repr__(self) -> str:
        told = [f"{name} {value}" for name, value in self._facts().items()]
        return f"<WeightProgrammingProblem: {', '.join(told)}>"

    def _repr_html_(self) -> str:
        """What notebooks show: what is optimised, on which hardware, and what is to be beaten."""
        return table("WeightProgrammingProblem", self._facts().items())

    def _facts(self) -> dict[str, str]:
        from wpo_optuna.hardware import format_duration

        factors = ", ".join("None" if f is None else f"{f:.4g}" for f in self.f_lst)
        devices = type(self.noise_model).__name__
        n_others = len(self.other_rpu_configs)
        others = f" and {n_others} others, {self.over} of all" if n_others else ""
        return {
            "weights": f"{self.weights.numel():,}",
            "f_lst": f"[{factors}]",
            "devices": f"{devices}, {self.g_min:.4g} to {self.g_max:.4g} µS{others}",
            "times": " ".join(map(format_duration, self.t_steps)),
            "baseline": type(self.g_converter_baseline).__name__,
            "dimensions": str(self.hypercube.dimension),
        }

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
        return int(self.rpu_config.mapping.max_input_size) or _ROWS_OF_UNLIMITED_TILE

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

    @cached_property
    def on_each_device(self) -> tuple[WeightProgrammingProblem, ...]:
        """The problem of each hardware alone, the first one's first."""
        if not self.other_rpu_configs:
            return (self,)
        problems = []
        for rpu_config in (self.rpu_config, *self.other_rpu_configs):
            validation.check_hardware(rpu_config)
            is_alike = rpu_config.mapping.max_input_size == self.rpu_config.mapping.max_input_size
            # A test matrix represents itself, and sorting all weights may take seconds.
            weights = self.test_weights if is_alike else self.weights
            alone = replace(self, weights=weights, rpu_config=rpu_config, other_rpu_configs=())
            problems.append(alone)
        return tuple(problems)

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
        for name in _OPTIONS:
            described |= describe(getattr(self, name), name)
        described |= describe(self.g_converter_baseline, "g_converter_baseline")

        described |= self._describe_hardware("rpu_config")
        for number, problem in enumerate(self.on_each_device[1:]):
            described |= problem._describe_hardware(f"other_rpu_configs.{number}")
            described |= describe(self.over, "over")
        return described

    def _describe_hardware(self, path: str) -> Description:
        rpu_config = self.evaluation_rpu_config()
        rpu_config.noise_model.g_converter = None  # each strategy brings its own
        described = describe(rpu_config.runtime.data_type, f"{path}.runtime.data_type")
        for part in _ACTING_PARTS:
            described |= describe(getattr(rpu_config, part, None), f"{path}.{part}")
        return described

    @cached_property
    def fingerprint(self) -> str:
        """Stable hash of everything that changes the loss."""
        return fingerprint(self.description)


def downsample_weights(weights: Tensor, shape: tuple[int, int], seed: int) -> Tensor:
    """Represents a distribution of weights by a matrix of the given shape.

    The sorted weights are interpolated linearly at evenly spaced ranks, keeping both extremes, and
    the rows are shuffled: columns stay stratified samples of the whole distribution. A shape with
    more entries than ``weights`` upsamples. Ranks are computed in float64, since a float32 index
    cannot address more than 16 million weights.

    Source: ``downsample_weight_distribution`` and ``shuffle_weights`` of
    ``aihwkit.inference.converter.wpo``, which draw from numpy's global generator.

    Args:
        weights: any tensor of weights (unitless).
        shape: rows and columns of the matrix.
        seed: seed of the shuffle.

    Returns:
        float32 tensor of the given shape.
    """
    n_entries = shape[0] * shape[1]
    ordered = torch.sort(weights.detach().cpu().flatten().to(torch.float64)).values
    quantiles = F.interpolate(
        ordered[None, None], size=(n_entries,), mode="linear", align_corners=True
    )
    rows = np.random.default_rng(seed).permutation(shape[0])
    return quantiles.reshape(shape)[torch.from_numpy(rows)].to(torch.float32)
