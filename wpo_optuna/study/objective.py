"""The hypercube loss as an Optuna objective."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from wpo_optuna.study import attributes
from wpo_optuna.study.description import about, keep, names_in
from wpo_optuna.study.estimate import check_finite

if TYPE_CHECKING:
    import optuna

    from wpo_optuna.loss import LossEngine
    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

# A draw of the baseline that no draw of the search repeats.
_BASELINE_SEED_OFFSET = 7919


@dataclass(frozen=True)
class Evaluation:
    """What one trial found out.

    Attributes:
        loss: the hypercube loss, the trial's value.
        tnmse: time-averaged normalised mean-squared error.
        baseline: the baseline's.
        f_lst: significance factors.
        g_lst: conductance curves in µS.
        k_w: scale from unitless weights to µS.
    """

    loss: float
    tnmse: float
    baseline: float
    f_lst: list[float]
    g_lst: list[list[float]]
    k_w: float

    def attributes(self) -> dict[str, Any]:
        """The trial's user attributes."""
        return {name: value for name, value in vars(self).items() if name != "loss"}


class HypercubeObjective:
    """Optuna objective: suggests a point of the hypercube and returns its loss.

    The value is ``(TNMSE - baseline)/baseline + loss_margin``, to be minimised: negative means
    that the baseline is beaten by the margin. The trial keeps ``tnmse``, ``baseline``, and
    ``f_lst``, ``g_lst`` and ``k_w`` as its point decodes to them, as user attributes (see
    :meth:`~wpo_optuna.ProgrammingStrategy.normalised` for comparing them). The study keeps what it
    is about, so that whoever shows it (:class:`~wpo_optuna.MlflowTracker`, a report) finds
    hardware, times, factors and baseline.

    Args:
        problem: the weight programming problem.
        engine: evaluates strategies.
        baseline: TNMSE of the baseline; None evaluates ``problem.g_converter_baseline`` with the
            engine, averaged over ``problem.baseline_iterations`` draws.
    """

    def __init__(
        self,
        problem: WeightProgrammingProblem,
        engine: LossEngine,
        baseline: float | None = None,
    ) -> None:
        self.problem = problem
        self.engine = engine
        self._given_baseline = baseline
        self.distributions = problem.hypercube.distributions()

    @cached_property
    def baseline(self) -> float:
        """TNMSE of the baseline.

        Source: ``get_loss_baseline`` of the reference, which however evaluates the converter of
        the noise model and not the baseline it was given.

        Raises:
            WeightProgrammingError: the noise model gives values that are no numbers.
        """
        if self._given_baseline is not None:
            return self._given_baseline
        draws = self.engine.tnmse_of(
            self.problem.g_converter_baseline,
            repeats=self.problem.baseline_iterations,
            seed=self.problem.seed + _BASELINE_SEED_OFFSET,
        )
        check_finite(draws, "the baseline's TNMSE", self.problem)
        return float(draws.mean())

    def __call__(self, trial: optuna.Trial) -> float:
        """Evaluates one trial."""
        x = [trial.suggest_float(name, 0.0, 1.0) for name in self._names_in_study_of(trial)]
        evaluation = self.evaluate([x])[0]
        for name, value in evaluation.attributes().items():
            trial.set_user_attr(name, value)
        return evaluation.loss

    def point(self, params: dict[str, Any]) -> list[float]:
        """The point ``(d,)`` that a trial's parameters stand for."""
        return self.problem.hypercube.point(params)

    def evaluate(self, x: ArrayLike, tnmse: ArrayLike | None = None) -> list[Evaluation]:
        """Evaluates points ``(n, d)`` at once.

        Args:
            x: the points.
            tnmse: their TNMSE where it is known already.

        Raises:
            WeightProgrammingError: none of several points has a TNMSE that is a number.
        """
        points = np.asarray(x, dtype=np.float64)
        values = self.engine.tnmse(points) if tnmse is None else np.asarray(tnmse)
        if len(values) > 1 and not np.isfinite(values).any():
            check_finite(values, "the TNMSE of every trial", self.problem)
        losses = self.problem.loss(values, self.baseline)
        decoded = self.problem.hypercube.decode_arrays(points)
        columns = (losses, values, decoded.f, decoded.g, decoded.k_w)
        return [
            Evaluation(loss, value, self.baseline, f, g, k_w)
            for loss, value, f, g, k_w in zip(*(c.tolist() for c in columns), strict=True)
        ]

    def _names_in_study_of(self, trial: optuna.Trial) -> tuple[str, ...]:
        """Names of the coordinates in the trial's study, which is first told what it is about."""
        study = getattr(trial, "study", None)
        if study is None:  # a FixedTrial
            return self.problem.hypercube.names
        names = names_in(study, self.problem.hypercube)
        if attributes.FINGERPRINT not in study.user_attrs:
            keep(study, about(self, names))
        return names
