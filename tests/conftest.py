"""What all tests share."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings
from small_problems import small_problem

from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

# The tests' tensors are small: threads would only contend with each other.
torch.set_num_threads(1)

# HYPOTHESIS_PROFILE=explore looks further than the examples that every run repeats.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture
def problem() -> WeightProgrammingProblem:
    """Two pairs of PCM devices on a tile of 24 x 8, with 14 dimensions."""
    return small_problem()


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores stop after 60 draws: small tiles scatter so much that they would need thousands."""
    monkeypatch.setattr("wpo_optuna.study.estimate._MOST_DRAWS", 60)
