"""The expected conductance of strategies, which the read power of a tile is proportional to.

It takes the same steps as the expected loss: docs/expected_loss.md has the formula.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from wpo_optuna.loss.expected.loss import (
    Programmed,
    Tables,
    cells_of,
    conductances_again,
    hermite_rule,
    programmed_strategies,
    summed_products,
)

# Nodes for the weight after programming.
CONDUCTANCE_NODES = 9


def expected_conductance(a: Array, g: Array, t: Tables) -> Array:
    """Mean over a tile's weights and the times of the sum of a weight's conductances ``(n,)``.

    Args:
        a, g, t: see :func:`expected_tnmse`; of the tables, the read-out does not matter.

    Returns:
        the mean in µS, times the tile's ``scale``.
    """
    p, span, deviation = programmed_strategies(a, g, t)
    mean = jnp.zeros_like(span)
    for node, share in hermite_rule(2):
        mean += share * conductance_given_span(p, a, span + node * deviation, t)
    return mean * t.scale


def conductance_given_span(p: Programmed, a: Array, span: Array, t: Tables) -> Array:
    """Mean conductance ``(n,)`` in µS of the weights of a tile, given m' ``(n,)``."""
    present, _ = conductances_again(p, span, t, CONDUCTANCE_NODES)
    of_target, of_present = t.devices.mean
    cells = cells_of(present, t.devices)
    means = summed_products(of_target, of_present, p.targets, cells)
    shares = np.array([share for _, share in hermite_rule(CONDUCTANCE_NODES)])[:, None, None]
    # Devices without a factor fill up the strategy.
    of_weights = jnp.where((a != 0)[:, None], (shares * means).sum(1), 0).sum(0)
    return (t.nodes.shares[:, None] * of_weights).sum(0)
