"""The reference, ``aihwkit.inference.converter.wpo``, asked about this package's objects.

Its functions take one pickled dictionary, the attributes of its optimiser.
"""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from aihwkit.inference.converter import wpo
from numpy.typing import NDArray

from wpo_optuna.hypercube import Hypercube
from wpo_optuna.problem.weight_programming import WeightProgrammingProblem


def hypercube_dictionary(hypercube: Hypercube) -> dict[str, Any]:
    """What the reference's ``denormalize`` and ``partition_parameters`` read."""
    largest = torch.tensor(hypercube.max_abs_weight, dtype=torch.float32)
    return {
        "f_lst": list(hypercube.f_lst),
        "f_min": hypercube.f_min,
        "f_max": hypercube.f_max,
        "g_min": hypercube.g_min,
        "g_max": hypercube.g_max,
        "g_err": hypercube.g_err * (hypercube.g_max - hypercube.g_min),
        "symmetric": hypercube.symmetric,
        "use_max_kw": hypercube.use_max_kw,
        "nbins": hypercube.nbins,
        "max_abs_weight_unitless": largest,
        "weights_discretized_unitless": torch.linspace(-largest, largest, hypercube.n_knots),
    }


def problem_dictionary(
    problem: WeightProgrammingProblem, loss_baseline: float = 1.0
) -> dict[str, Any]:
    """What the reference's ``loss_fxn`` reads, with this problem's test matrix."""
    return hypercube_dictionary(problem.hypercube) | {
        "device": "cpu",
        "rpu_config": problem.evaluation_rpu_config(),
        "t_steps": list(problem.t_steps),
        "test_in_features": problem.test_in_features,
        "test_out_features": problem.test_out_features,
        "weights_downsampled_unitless": problem.test_weights,
        "loss_baseline": loss_baseline,
        "loss_margin": problem.loss_margin,
        "get_baseline": False,
    }


def reference_losses(
    problem: WeightProgrammingProblem,
    x: NDArray[np.float64],
    seeds: list[int],
    loss_baseline: float = 1.0,
) -> NDArray[np.float64]:
    """The reference's loss of a point ``(d,)``, once for each seed of torch's generator."""
    pickled = pickle.dumps(problem_dictionary(problem, loss_baseline))
    losses = []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.manual_seed(seed)
            losses.append(float(wpo.loss_fxn(x, pickled)))
    return np.array(losses)


def reference_optimizer(
    problem: WeightProgrammingProblem, **options: Any
) -> wpo.WeightProgrammingOptimizer:
    """The reference's optimiser for the same problem, silent and in one process."""
    names = (
        "nbins test_out_features g_err f_min f_max use_max_kw loss_margin baseline_iterations seed"
    )
    settings = {name: getattr(problem, name) for name in names.split()}
    return wpo.WeightProgrammingOptimizer(
        problem.weights,
        list(problem.f_lst),
        problem.rpu_config,
        list(problem.t_steps),
        problem.g_converter_baseline,
        problem.symmetric,
        **(settings | {"disp": False, "callback": None, "workers": 1} | options),
    )


def reference_bounds(hypercube: Hypercube) -> tuple[tuple[float, float], ...]:
    """The reference's bounds, without the optimiser they belong to."""
    optimizer = SimpleNamespace(**hypercube_dictionary(hypercube))
    return wpo.WeightProgrammingOptimizer.generate_hop_bounds(optimizer)
