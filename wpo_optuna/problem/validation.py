"""What a weight programming problem needs of its arguments, each refusal in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from aihwkit.inference.converter.conductance import (
    CustomPairConductanceConverter,
    NPairConductanceConverter,
    SinglePairConductanceConverter,
)
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.simulator.configs import InferenceRPUConfig
from torch import Tensor

from wpo_optuna.errors import InvalidArgument, first_line

if TYPE_CHECKING:
    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

# aihwkit's converters take weights that are all smaller than this for zero.
_SMALLEST_MAX_ABS_WEIGHT = 1e-7


def check_weights(weights: Any) -> None:
    """Refuses what is no tensor of finite numbers, one of them at least not zero."""
    kind = type(weights).__name__
    _need(isinstance(weights, Tensor), f"weights is a {kind}", "a torch tensor of weights")
    _need(weights.numel() > 0, "weights is empty", "at least one weight")
    is_dense = weights.layout is torch.strided and not weights.is_meta
    _need(is_dense, "weights is sparse, nested or without data", "a dense tensor of numbers")
    is_float = weights.is_floating_point()
    _need(is_float, f"weights has type {weights.dtype}", "a tensor of floating-point numbers")
    values = weights.detach().float()
    n_bad = values.numel() - int(torch.isfinite(values).sum())
    bad = f"weights contains {n_bad} NaN or infinite values among {weights.numel()}"
    _need(n_bad == 0, bad, "a tensor of numbers that are finite in single precision")
    largest = float(values.abs().max())
    _need(largest > 0, "weights are all zero", "at least one that differs from zero")
    _need(
        largest >= _SMALLEST_MAX_ABS_WEIGHT,
        f"weights has {largest:g} as its largest absolute value",
        f"one of at least {_SMALLEST_MAX_ABS_WEIGHT:g}, which aihwkit tells from zero,",
    )


def check_options(problem: WeightProgrammingProblem) -> None:
    """Refuses options that are no numbers, or none of those accepted."""
    whole = {"nbins": 2, "test_out_features": 1, "baseline_iterations": 1}
    for name, lowest in whole.items():
        value = getattr(problem, name)
        is_accepted = _is_whole(value) and value >= lowest
        _need(is_accepted, f"{name} = {value!r}", f"a whole number of at least {lowest}")
    seed, f_min, f_max, g_err = problem.seed, problem.f_min, problem.f_max, problem.g_err
    is_seed = _is_whole(seed) and 0 <= seed < 2**32
    _need(is_seed, f"seed = {seed!r}", "a whole number from 0 to 2^32 - 1")
    for name in ("g_err", "f_min", "f_max", "loss_margin"):
        value = getattr(problem, name)
        _need(_is_finite(value), f"{name} = {value!r}", "a finite number")
    _need(g_err >= 0, f"g_err = {g_err!r}", "a number of at least 0")
    _need(0 < f_min < f_max, f"f_min = {f_min!r}, f_max = {f_max!r}", "0 < f_min < f_max")
    is_known = problem.over in ("mean", "worst")
    _need(is_known, f"over = {problem.over!r}", "'mean' or 'worst'")
    for name in ("symmetric", "use_max_kw"):
        value = getattr(problem, name)
        _need(isinstance(value, bool), f"{name} = {value!r}", "True or False")


def check_hardware(rpu_config: Any) -> None:
    """Refuses what is no configuration of inference hardware with a noise model."""
    kind = type(rpu_config).__name__
    is_config = isinstance(rpu_config, InferenceRPUConfig)
    _need(is_config, f"rpu_config is a {kind}", "an InferenceRPUConfig")
    kind = type(rpu_config.noise_model).__name__
    is_model = isinstance(rpu_config.noise_model, BaseNoiseModel)
    _need(
        is_model, f"rpu_config.noise_model is a {kind}", "one of aihwkit's inference noise models"
    )
    for name in ("max_input_size", "max_output_size"):
        size = getattr(rpu_config.mapping, name)
        is_size = _is_whole(size) and size >= 0
        _need(is_size, f"rpu_config.mapping.{name} = {size!r}", "a whole number, 0 for no limit,")


def check_baseline(baseline: Any) -> None:
    """Refuses a converter that is no pairs of devices with a range and positive factors."""
    _need(
        isinstance(
            baseline,
            SinglePairConductanceConverter
            | NPairConductanceConverter  # DualPairConductanceConverter is one
            | CustomPairConductanceConverter,
        ),
        f"g_converter_baseline is a {type(baseline).__name__}",
        "a SinglePair-, DualPair-, NPair- or CustomPairConductanceConverter",
    )
    low, high = baseline.g_min, baseline.g_max
    is_range = _is_finite(low) and _is_finite(high) and 0 <= low < high
    has_range = f"g_converter_baseline has g_min = {low}, g_max = {high}"
    _need(is_range, has_range, "0 <= g_min < g_max (µS)")
    factors = _as_sequence(getattr(baseline, "f_lst", [1.0]))
    has_factors = f"g_converter_baseline has f_lst = {factors!r}"
    is_positive = bool(factors) and all(_is_finite(f) and f > 0 for f in factors or ())
    _need(is_positive, has_factors, "one positive factor for each pair of conductances")


def try_baseline(baseline: Any, weights: Tensor) -> None:
    """Converts weights: aihwkit accepts curves that cannot work."""
    name = f"g_converter_baseline, a {type(baseline).__name__},"
    try:
        back = baseline.convert_back_to_weights(*baseline.convert_to_conductances(weights))
    except (ValueError, RuntimeError) as error:  # for instance curves of different lengths
        raise InvalidArgument(f"{name} cannot convert the weights: {error}.") from error
    is_finite = bool(torch.isfinite(back).all())
    needed = "a curve that gives at least one weight that differs from zero"
    _need(is_finite, f"{name} turns the weights into NaN or infinity", needed)


def checked_factors(f_lst: object) -> tuple[float | None, ...]:
    """Factors of the pairs as floats, None where they are to be found."""
    factors = _as_sequence(f_lst)
    needed = "a list with one significance factor, or None to find it, for each pair"
    _need(bool(factors), f"f_lst = {f_lst!r}", needed)
    assert factors is not None
    for f in factors:
        is_accepted = f is None or (_is_finite(f) and f > 0)
        needed = "a positive number, or None where the factor is to be found,"
        _need(is_accepted, f"f_lst = {list(factors)!r} contains {f!r}", needed)
    return tuple(None if f is None else float(f) for f in factors)


def checked_times(t_steps: object, noise_model: BaseNoiseModel) -> tuple[float, ...]:
    """Times after programming in s as floats, such as the noise model can be evaluated at."""
    given = _as_sequence(t_steps)
    _need(bool(given), f"t_steps = {t_steps!r}", "a list of at least one time in s")
    assert given is not None
    for t in given:
        is_time = _is_finite(t) and t >= 0
        contains = f"t_steps = {list(given)!r} contains {t!r}"
        _need(is_time, contains, "a time after programming that is finite and not negative (s)")
    times = tuple(float(t) for t in given)
    is_ascending = all(earlier < later for earlier, later in pairwise(times))
    needed = f"a list that ascends, each time once, e.g. {sorted(set(times))},"
    _need(is_ascending, f"t_steps = {list(given)!r}", needed)
    for t in times:
        _try_time(noise_model, t)
    return times


def _try_time(noise_model: BaseNoiseModel, t: float) -> None:
    """Evaluates the noise model on one device at a time in s."""
    g_target = torch.full((1,), float(getattr(noise_model, "g_max", None) or 1.0) / 2)
    with torch.random.fork_rng(devices=[]):
        try:
            g_programmed = noise_model.apply_programming_noise_to_conductance(g_target.clone())
            nu = noise_model.generate_drift_coefficients(g_target.clone())
            noise_model.apply_drift_noise_to_conductance(g_programmed, nu, t)
        # Noise models raise what they like (aihwkit's ReRAM one an ArgumentError).
        except Exception as error:
            raise InvalidArgument(
                f"t_steps contains {t:g} s, which {type(noise_model).__name__} does not support: "
                f"{first_line(error)}."
            ) from error


def _as_sequence(values: object) -> Sequence[Any] | None:
    """Lists, tuples, arrays, tensors and ranges as lists or tuples; None for anything else."""
    if isinstance(values, np.ndarray | Tensor):
        values = values.tolist()
    return values if isinstance(values, list | tuple | range) else None


def _need(is_met: bool, what: str, needed: str) -> None:
    if not is_met:
        raise InvalidArgument(f"{what}: {needed} is needed.")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
