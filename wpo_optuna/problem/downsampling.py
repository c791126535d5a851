"""The test matrix: a small matrix whose entries are distributed like a network's weights."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor


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
