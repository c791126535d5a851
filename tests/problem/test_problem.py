"""A problem is what it was when it was made, and one that cannot be used is never made."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from aihwkit.inference import (
    DualPairConductanceConverter,
    ReRamWan2022NoiseModel,
    SinglePairConductanceConverter,
)
from aihwkit.inference.converter.conductance import (
    CustomPairConductanceConverter,
    SingleDeviceConductanceConverter,
)
from aihwkit_reference import problem_dictionary, reference_optimizer
from hypothesis import given
from hypothesis import strategies as st
from small_problems import (
    gaussian_weights,
    small_problem,
    small_rpu_config,
)

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

DAY = 86400.0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"f_lst": [None], "symmetric": False, "g_err": 0.1, "use_max_kw": True},
        {"f_lst": [2.0, None, 3.0], "nbins": 2, "f_min": 0.5, "f_max": 9.0},
        {"g_converter_baseline": SinglePairConductanceConverter(g_min=5.0, g_max=40.0)},
    ],
)
def test_the_references_optimizer_sees_the_same_problem(options: dict[str, Any]) -> None:
    problem = small_problem(**options)
    optimizer = reference_optimizer(problem)
    ours, theirs = problem_dictionary(problem), optimizer.__dict__
    settings = ours.keys() - {"rpu_config", "weights_downsampled_unitless", "loss_baseline"}
    for name in settings - {"weights_discretized_unitless"}:
        assert ours[name] == theirs[name], name
    assert torch.equal(ours["weights_discretized_unitless"], theirs["weights_discretized_unitless"])
    assert str(ours["rpu_config"]) == str(theirs["rpu_config"])
    assert problem.hypercube.bounds == optimizer.generate_hop_bounds()
    np.testing.assert_allclose(
        np.sort(problem.test_weights.numpy().ravel()),
        np.sort(theirs["weights_downsampled_unitless"].numpy().ravel()),
        atol=1e-4,  # the reference's ranks are of single precision
    )


def test_later_changes_to_what_was_given_change_nothing() -> None:
    weights, rpu_config = gaussian_weights().requires_grad_(), small_rpu_config()
    baseline = DualPairConductanceConverter([1.0, 1.0], g_min=0.0, g_max=25.0)
    f_lst, t_steps = [1.0, None], [1.0, 60.0]
    problem = small_problem(
        weights=weights,
        rpu_config=rpu_config,
        g_converter_baseline=baseline,
        f_lst=f_lst,
        t_steps=t_steps,
    )
    untouched = deepcopy(problem)
    with torch.no_grad():
        weights.mul_(3.0)
    rpu_config.forward.out_noise = 0.5
    rpu_config.noise_model.prog_noise_scale = 9.0
    baseline.g_max, baseline.f_lst[0] = 99.0, 7.0
    f_lst[0] = 4.0
    t_steps.append(DAY)
    assert problem.max_abs_weight == untouched.max_abs_weight
    assert problem.description == untouched.description
    assert problem.hypercube == untouched.hypercube


def test_outputs_are_not_scaled_in_the_evaluation_and_the_problems_own_configuration_is_kept(
    problem: WeightProgrammingProblem,
) -> None:
    one, two = problem.evaluation_rpu_config(), problem.evaluation_rpu_config()
    for mapping in (one.mapping, two.mapping):
        assert mapping.weight_scaling_omega == 0.0
        assert not mapping.weight_scaling_columnwise
        assert not mapping.learn_out_scaling
        assert not mapping.out_scaling_columnwise
    assert problem.rpu_config.mapping.weight_scaling_omega == 1.0
    assert one is not two
    assert one.noise_model is not problem.noise_model


@given(
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5),
    st.floats(1e-3, 1e3),
    st.floats(-0.5, 0.9),
)
def test_the_loss_is_relative_to_the_baseline_and_the_margin(
    tnmse: list[float], baseline: float, margin: float
) -> None:
    losses = small_problem(loss_margin=margin).loss(tnmse, baseline)
    expected = [(value - baseline) / baseline + margin for value in tnmse]
    np.testing.assert_allclose(losses, expected, rtol=1e-12)


def custom_pair(curves: list[list[float]], **g_range: float) -> CustomPairConductanceConverter:
    return CustomPairConductanceConverter([1.0], curves, invertibility_test=False, **g_range)


UP = [0.0, 0.0, 25.0]


def with_attributes(make: Callable[[], Any], **attributes: Any) -> Any:
    changed = make()
    for path, value in attributes.items():
        *parents, name = path.split("__")
        target = changed
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, name, value)
    return changed


def single_pair(**attributes: Any) -> Any:
    return with_attributes(SinglePairConductanceConverter, **attributes)


def dual_pair(*f_lst: float) -> Any:
    return DualPairConductanceConverter(list(f_lst), g_min=0.0, g_max=25.0)


NAN, INF = float("nan"), float("inf")
# Argument, value, and what the message says besides the argument: the value, what is accepted.
BAD_INPUT: list[tuple[str, Any, list[str]]] = [
    ("weights", torch.empty(0), ["is empty", "at least one weight"]),
    ("weights", torch.zeros(5), ["all zero", "at least one that differs from zero"]),
    ("weights", torch.tensor([0.1, NAN, INF]), ["2 NaN or infinite", "among 3", "finite"]),
    ("weights", torch.tensor([1, 2, 3]), ["torch.int64", "floating-point"]),
    ("f_lst", [], ["[]", "one significance factor, or None", "each pair"]),
    ("f_lst", [1.0, -2.0], ["contains -2.0", "positive number, or None"]),
    ("f_lst", [0, None], ["contains 0:", "positive number, or None"]),
    ("f_lst", [1.0, "2"], ["contains '2'", "positive number, or None"]),
    ("t_steps", [], ["[]", "at least one time", "in s"]),
    ("t_steps", 60.0, ["60.0", "a list of"]),
    ("t_steps", [1.0, -60.0], ["contains -60.0", "not negative"]),
    ("t_steps", ["1s"], ["contains '1s'", "(s)"]),
    ("t_steps", [60.0, 1.0], ["[60.0, 1.0]", "ascend", "[1.0, 60.0]"]),
    ("t_steps", [1.0, 1.0, 60.0], ["[1.0, 1.0, 60.0]", "each time once", "[1.0, 60.0]"]),
    ("g_converter_baseline", None, ["NoneType", "SinglePair-", "CustomPairConductanceConverter"]),
    (
        "g_converter_baseline",
        SingleDeviceConductanceConverter(),
        ["a SingleDeviceConductanceConverter", "SinglePair-, DualPair-, NPair- or CustomPair"],
    ),
    ("g_converter_baseline", single_pair(g_min=25.0), ["g_min = 25.0", "g_max = 25.0", "µS"]),
    ("g_converter_baseline", dual_pair(1.0, 0.0), ["f_lst = [1.0, 0.0]", "positive factor"]),
    (
        "g_converter_baseline",
        custom_pair([UP, UP]),
        ["CustomPairConductanceConverter", "NaN", "at least one weight that differs from zero"],
    ),
    ("rpu_config", None, ["NoneType", "InferenceRPUConfig"]),
    ("rpu_config", type(small_rpu_config()), ["is a type", "InferenceRPUConfig"]),
    (
        "rpu_config",
        with_attributes(small_rpu_config, noise_model=None),
        ["rpu_config.noise_model", "NoneType", "inference noise models"],
    ),
    (
        "rpu_config",
        with_attributes(small_rpu_config, mapping__max_input_size=-1),
        ["rpu_config.mapping.max_input_size = -1", "whole number", "0 for no limit"],
    ),
    ("nbins", 1, ["= 1:", "at least 2"]),
    ("test_out_features", 0, ["= 0:", "at least 1"]),
    ("baseline_iterations", 0, ["= 0:", "at least 1"]),
    ("g_err", -0.01, ["= -0.01", "at least 0"]),
    ("f_min", 0.0, ["= 0.0", "f_max = 5.0", "0 < f_min < f_max"]),
    ("f_max", 0.05, ["= 0.05", "f_min = 0.1", "0 < f_min < f_max"]),
    ("loss_margin", NAN, ["= nan", "finite number"]),
    ("symmetric", "yes", ["= 'yes'", "True or False"]),
    ("seed", -1, ["= -1", "0 to 2^32 - 1"]),
    ("seed", 2**32, ["= 4294967296", "0 to 2^32 - 1"]),
]


@pytest.mark.parametrize(("argument", "value", "pieces"), BAD_INPUT)
def test_what_cannot_be_used_is_refused_in_one_sentence_that_says_what_can(
    argument: str, value: Any, pieces: list[str]
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        small_problem(**{argument: value})
    message = str(caught.value)
    assert argument in message
    for piece in pieces:
        assert piece in message
    assert "\n" not in message
    assert re.fullmatch(r"\S.*[.]", message)


def test_a_time_that_the_noise_model_does_not_know_is_refused_with_those_it_knows() -> None:
    rpu_config = small_rpu_config(ReRamWan2022NoiseModel())
    with pytest.raises(InvalidArgument) as caught:
        small_problem(rpu_config=rpu_config, t_steps=[1.0, 60.0])
    for piece in ("t_steps contains 60 s", "ReRamWan2022NoiseModel", "1.0, 86400.0, 172800.0"):
        assert piece in str(caught.value)


def test_what_python_and_notebooks_show_is_short_and_says_what_is_optimised() -> None:
    problem = small_problem(t_steps=[1.0, 3600.0, DAY])
    assert repr(problem) == (
        "<WeightProgrammingProblem: weights 400, f_lst [1, None], devices PCMLikeNoiseModel, "
        "0 to 25 µS, times 1s 1h 1d, baseline DualPairConductanceConverter, dimensions 14>"
    )
    assert "<tr><th>times</th><td>1s 1h 1d</td></tr>" in problem._repr_html_()
