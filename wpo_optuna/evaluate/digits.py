"""The built-in example: a small network that reads handwritten digits, and images held out from it.

The images are the test set of ``experiments.train_digits``, 450 of those in scikit-learn. They are
E. Alpaydin's and C. Kaynak's "Optical Recognition of Handwritten Digits" (UCI Machine Learning
Repository, CC BY 4.0).
"""

from __future__ import annotations

from collections import OrderedDict

from safetensors.torch import load_file
from torch import Tensor, nn

from wpo_optuna.study.problem_setup import EXAMPLE_FILE

HELD_OUT_FILE = EXAMPLE_FILE.with_name("digits_held_out.safetensors")


def network() -> nn.Sequential:
    """The built-in network, trained."""
    layers = OrderedDict[str, nn.Module](
        fc1=nn.Linear(64, 64), relu1=nn.ReLU(), fc2=nn.Linear(64, 32), relu2=nn.ReLU(),
        fc3=nn.Linear(32, 16), relu3=nn.ReLU(), fc4=nn.Linear(16, 10),
    )  # fmt: skip
    trained = nn.Sequential(layers)
    trained.load_state_dict(load_file(EXAMPLE_FILE))
    return trained.eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    """The held-out images (450, 64), with pixels in [0, 1], and the digits they show."""
    held_out = load_file(HELD_OUT_FILE)
    return [(held_out["images"].float() / 16, held_out["digits"].long())]
