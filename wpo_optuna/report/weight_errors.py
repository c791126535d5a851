"""What becomes of the weights over time: errors, their distribution, and the correlation left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from wpo_optuna.report.stored_array import Array
from wpo_optuna.study.estimate import Estimate

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.loss.base import DrawingEngine

DRAWS = 16
# Figures of single weights have a panel for each time; of more times, these many are shown.
MOST_PANELS = 4
_N_BINS = 61
_OUTSIDE_BINS = 5e-3
# The band of errors holds 95 % of the weights, in groups of equal width over the target weight.
BAND = (0.025, 0.5, 0.975)
_N_GROUPS = 25


@dataclass(frozen=True)
class WeightErrors:
    """Errors of programmed weights, all relative to the largest absolute weight m.

    All but the first are about S of the T times, see :func:`times_shown`.

    Attributes:
        tnmse: 100 times the mean of ``((α w − W) / m)²`` at each time, and its 95 % interval
            ``(T, 3)``: mean, low, high.
        standard_deviation: of the errors ``(S,)``.
        correlation: Pearson's, of acting and target weights ``(S,)``.
        edges: edges of the bins of the distribution of errors ``(B + 1,)``.
        density: share of the errors in each bin ``(S, B)``.
        targets: mean target weight of G groups of weights ``(G,)``, ascending.
        band: the 2.5 %, 50 % and 97.5 % quantiles of the errors in each group ``(S, 3, G)``.
    """

    tnmse: Array
    standard_deviation: Array
    correlation: Array
    edges: Array
    density: Array
    targets: Array
    band: Array


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
    shown = times_shown(len(problem.t_steps))
    tnmse, kept = [], []
    # One draw at a time: several of a large matrix would not fit the memory.
    for draw_seed in np.random.SeedSequence(seed).generate_state(DRAWS, np.uint64):
        weights = torch.stack(engine.weights_over_time(converter, int(draw_seed)))
        drawn = weights.double().cpu().flatten(1).numpy() / problem.max_abs_weight - target
        tnmse.append(100 * np.mean(drawn**2, axis=1))
        kept.append(drawn[shown].astype(np.float32))
        on_draw(1)
    errors = np.stack(kept, axis=1)
    reach = np.nanquantile(np.abs(errors), 1 - _OUTSIDE_BINS, axis=(1, 2)).max() or 1.0
    edges = np.linspace(-reach, reach, _N_BINS + 1)
    targets, band = _bands(target, errors)
    estimates = [Estimate.of(draws) for draws in np.array(tnmse).T]
    return WeightErrors(
        tnmse=np.array([(e.mean, e.low, e.high) for e in estimates]),
        standard_deviation=errors.std(axis=(1, 2), dtype=np.float64),
        correlation=np.array([_correlation(target, at_time) for at_time in errors]),
        edges=edges,
        density=np.array([np.histogram(e, edges)[0] / e.size for e in errors]),
        targets=targets,
        band=band,
    )


def _correlation(target: Array, errors: NDArray[np.floating]) -> float:
    """Pearson's correlation of acting and target weights, over all draws."""
    repeated = np.tile(target, len(errors))
    with np.errstate(invalid="ignore", divide="ignore"):  # all weights alike: NaN
        return float(np.corrcoef(repeated, repeated + errors.ravel())[0, 1])


def _bands(target: Array, errors: NDArray[np.floating]) -> tuple[Array, Array]:
    """Mean target of each group that is not empty (G,) and quantiles of its errors (S, 3, G).

    Args:
        target: target weights ``(n,)``.
        errors: at each time, in each draw ``(S, draws, n)``.
    """
    group = np.clip(((target + 1) / 2 * _N_GROUPS).astype(int), 0, _N_GROUPS - 1)
    members = [group == index for index in np.unique(group)]
    quantiles = [np.quantile(errors[:, :, m], BAND, axis=(1, 2)) for m in members]
    return np.array([target[m].mean() for m in members]), np.array(quantiles).transpose(2, 1, 0)
