"""Reading the weights of a user's network."""

from __future__ import annotations

from importlib.resources import as_file, files

import torch
from safetensors.torch import load_file
from torch import Tensor


def load_example_weights() -> Tensor:
    """All weights of the example network, a perceptron for handwritten digits, as one vector (n,).

    Source: ``experiments/train_digits.py``, which made the file that ships with the package.
    """
    with as_file(files("wpo_optuna") / "data" / "digits_mlp.safetensors") as path:
        tensors = load_file(path)
    return torch.cat(
        [tensors[name].flatten() for name in sorted(tensors) if tensors[name].ndim > 1]
    )
