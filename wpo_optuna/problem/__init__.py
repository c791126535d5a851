"""What is optimised: a weight programming problem and its fingerprint."""

from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

__all__ = ["WeightProgrammingProblem"]
