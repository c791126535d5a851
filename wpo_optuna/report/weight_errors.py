"""What becomes of the weights over time: errors, their distribution, and the correlation left."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wpo_optuna.study.estimate import Estimate

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.loss.base import DrawingEngine

FloatArray = NDArray[np.float64]

DRAWS = 16
# Draws whose single weights are kept for distributions: memory, and enough for smooth curves.
_POOLED_DRAWS = 8
# Figures of single weights have a panel for each time; of more times, these many are shown.
MOST_PANELS = 4
_N_BINS = 61
_OUTSIDE_BINS = 5e-3

# The part of the weights within the band of errors.
BAND = (0.025, 0.5, 0.975)
# Groups of targets, by rank: finer in the tails, which reach furthest.
_TAIL = np.array([0.0, 2e-4, 1e-3, 3e-3, 0.01, 0.03])
_GROUPS = np.concatenate([_TAIL, np.linspace(0.1, 0.9, 17), 1 - _TAIL[::-1]])
_LEAST_IN_GROUP = 16


@dataclass(frozen=True)
class WeightErrors:
    """Errors of programmed weights, all relative to the largest absolute weight m.

    Attributes:
        tnmse: 100 times the mean of ``((α w − W) / m)²`` at each of the T times, and its 95 %
            interval ``(T, 3)``: mean, low, high.
        shown: indices of the S times that the following are about ``(S,)``.
        standard_deviation: of the errors ``(S,)``.
        correlation: Pearson's, of acting and target weights ``(S,)``.
        edges: edges of the bins of the distribution of errors ``(B + 1,)``.
        density: share of the errors in each bin ``(S, B)``.
        targets: mean target weight of G groups of weights ``(G,)``, ascending.
        band: the 2.5 %, 50 % and 97.5 % quantiles of the errors in each group ``(S, 3, G)``.
    """

    tnmse: FloatArray
    shown: NDArray[np.int64]
    standard_deviation: FloatArray
    correlation: FloatArray
    edges: FloatArray
    density: FloatArray
    targets: FloatArray
    band: FloatArray


def times_shown(n_times: int, most: int = MOST_PANELS) -> NDArray[np.int64]:
    """Indices of the times that are shown: all, or so many evenly spread with both ends."""
    return np.linspace(0, n_times - 1, min(n_times, most)).round().astype(np.int64)


def measure_weight_errors(
    engine: DrawingEngine,
    converter: BaseConductanceConverter,
    seed: int,
    on_draw: Callable[[int], object] = lambda n: None,
) -> WeightErrors:
    """Programs the test matrix repeatedly.

    Args:
        engine: draws the weights.
        converter: how weights become conductances.
        seed: seed of the draws.
        on_draw: told 1 after each of the :data:`DRAWS` draws.
    """
    problem = engine.problem
    target = problem.test_weights.double().numpy().ravel() / problem.max_abs_weight
    order = np.argsort(target, kind="stable")
    target = target[order]
    shown = times_shown(len(problem.t_steps))

    tnmse = np.empty((DRAWS, len(problem.t_steps)))
    pooled = np.empty((len(shown), _POOLED_DRAWS, len(target)), dtype=np.float32)
    # One draw at a time: several of a large matrix would not fit the memory.
    seeds = np.random.SeedSequence(seed).generate_state(DRAWS, np.uint64)
    for draw, draw_seed in enumerate(seeds):
        weights = engine.weights_over_time(converter, int(draw_seed))
        acting = np.array([w.double().cpu().numpy().ravel() for w in weights])
        errors = acting[:, order] / problem.max_abs_weight - target
        tnmse[draw] = 100 * np.mean(errors**2, axis=1)
        if draw < _POOLED_DRAWS:
            pooled[:, draw] = errors[shown]
        on_draw(1)
    edges = _bin_edges(pooled)
    targets, band = _bands(target, pooled)
    estimates = [Estimate.of(draws) for draws in tnmse.T]
    return WeightErrors(
        tnmse=np.array([(e.mean, e.low, e.high) for e in estimates]),
        shown=shown,
        standard_deviation=pooled.std(axis=(1, 2), dtype=np.float64),
        correlation=np.array([_correlation(target, errors) for errors in pooled]),
        edges=edges,
        density=np.array([np.histogram(e, edges)[0] / e.size for e in pooled]),
        targets=targets,
        band=band,
    )


def _bin_edges(errors: NDArray[np.floating]) -> FloatArray:
    """Edges of bins that hold nearly all errors at every time, symmetric around zero."""
    reach = float(np.nanquantile(np.abs(errors), 1 - _OUTSIDE_BINS, axis=(1, 2)).max())
    return np.linspace(-1, 1, _N_BINS + 1) * (reach or 1.0)


def _correlation(target: FloatArray, errors: NDArray[np.floating]) -> float:
    """Pearson's correlation of acting and target weights, over all draws."""
    repeated = np.tile(target, len(errors))
    with np.errstate(invalid="ignore", divide="ignore"):  # all weights alike: NaN
        return float(np.corrcoef(repeated, repeated + errors.ravel())[0, 1])


def _bands(target: FloatArray, errors: NDArray[np.floating]) -> tuple[FloatArray, FloatArray]:
    """Mean target of each group (G,) and the quantiles of its errors (S, 3, G).

    Args:
        target: target weights, ascending ``(n,)``.
        errors: at each time, in each draw ``(S, draws, n)``.
    """
    least = math.ceil(_LEAST_IN_GROUP / errors.shape[1])
    planned = np.maximum(1, np.round(_GROUPS[1:] * len(target)).astype(int))
    ends = [0]
    # Equal weights belong to one group.
    for end in np.searchsorted(target, target[planned - 1], side="right").tolist():
        if end - ends[-1] >= least:
            ends.append(end)
    # A rest too small for a group of its own belongs to the last.
    ends = [*(ends[:-1] or ends), len(target)]
    groups = [slice(*ends[i : i + 2]) for i in range(len(ends) - 1)]
    quantiles = [np.quantile(errors[:, :, group], BAND, axis=(1, 2)) for group in groups]
    centres = np.array([target[group].mean() for group in groups])
    return centres, np.array(quantiles).transpose(2, 1, 0)
