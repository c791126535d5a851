"""The expected loss: deterministic, differentiable, and as fast as a table look-up.

docs/expected_loss.md derives the formulas and says what they neglect, and how large that is.
"""

from wpo_optuna.loss.expected.engine import ExpectedEngine

__all__ = ["ExpectedEngine"]
