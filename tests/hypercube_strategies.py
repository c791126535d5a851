"""Random hypercubes and points in them, for hypothesis."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from wpo_optuna.hypercube import Hypercube

ANY_SLACK = st.sampled_from([0.0, 0.01, 0.3, 2.0])


@st.composite
def hypercubes(draw: st.DrawFn, g_err: st.SearchStrategy[float] = ANY_SLACK) -> Hypercube:
    """Hypercubes with 1 to 4 pairs, fixed and free factors mixed, and all options.

    Args:
        draw: hypothesis's own.
        g_err: how far targets may be missed; by default none, little, much and more than all.
    """
    factors = st.none() | st.floats(0.01, 20.0)
    g_min = draw(st.sampled_from([0.0, 0.5, 9.0]) | st.floats(0.0, 50.0))
    f_min = draw(st.floats(0.01, 2.0))
    return Hypercube(
        f_lst=tuple(draw(st.lists(factors, min_size=1, max_size=4))),
        g_min=g_min,
        g_max=g_min + draw(st.floats(1.0, 100.0)),
        max_abs_weight=float(np.float32(draw(st.floats(1e-4, 1e3)))),
        symmetric=draw(st.booleans()),
        nbins=draw(st.integers(2, 9)),
        g_err=draw(g_err),
        f_min=f_min,
        f_max=f_min + draw(st.floats(0.1, 10.0)),
        use_max_kw=draw(st.booleans()),
    )


def points(hypercube: Hypercube, n: int = 3) -> st.SearchStrategy[NDArray[np.float64]]:
    """Points ``(n, d)``: inside, on faces and at corners."""
    coordinates = st.floats(0.0, 1.0) | st.sampled_from([0.0, 0.5, 1.0])
    return hnp.arrays(np.float64, (n, hypercube.dimension), elements=coordinates)


@st.composite
def hypercubes_with_points(
    draw: st.DrawFn, g_err: st.SearchStrategy[float] = ANY_SLACK
) -> tuple[Hypercube, NDArray[np.float64]]:
    """A hypercube and three points ``(3, d)`` in it."""
    hypercube = draw(hypercubes(g_err))
    return hypercube, draw(points(hypercube))
