"""The hypercube loss as an Optuna objective."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wpo_optuna.study import attributes
from wpo_optuna.study.attributes import CONDUCTANCE
from wpo_optuna.study.description import about, keep, names_in
from wpo_optuna.study.estimate import check_finite

if TYPE_CHECKING:
    import optuna

    from wpo_optuna.loss import LossEngine
    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem

# A draw of the baseline that no draw of the search repeats.
_BASELINE_SEED_OFFSET = 7919


Direction = Literal["minimize", "maximize"]


class SecondObjective(Protocol):
    """What a study optimises beside the loss.

    Attributes:
        name: what it is called in MLflow, and the name of the trials' user attribute.
        direction: of the optimisation.
    """

    name: str
    direction: Direction

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Its values ``(n,)`` at points ``(n, d)`` of the hypercube."""


class MeanConductance:
    """The mean conductance of a weight's devices in µS, which read power is proportional to.

    Args:
        engine: evaluates it, see :meth:`~wpo_optuna.loss.LossEngine.conductance`.
    """

    name = CONDUCTANCE
    direction: Direction = "minimize"

    def __init__(self, engine: LossEngine) -> None:
        self._engine = engine

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """See :class:`SecondObjective`."""
        return self._engine.conductance(x)


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
        conductance_us: mean conductance in µS per weight, where the engine tells it along with the
            TNMSE.
        second: name and value of the second objective, if there is one.
    """

    loss: float
    tnmse: float
    baseline: float
    f_lst: list[float]
    g_lst: list[list[float]]
    k_w: float
    conductance_us: float | None = None
    second: tuple[str, float] | None = None

    @property
    def values(self) -> list[float]:
        """The trial's values."""
        return [self.loss] if self.second is None else [self.loss, self.second[1]]

    def attributes(self) -> dict[str, Any]:
        """The trial's user attributes."""
        omitted = {"loss", "second"} | ({CONDUCTANCE} if self.conductance_us is None else set())
        told = {name: value for name, value in vars(self).items() if name not in omitted}
        # A user's metric may have any name.
        return told if self.second is None else dict([self.second]) | told


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
        second: what is optimised beside the loss, if anything, such as :class:`MeanConductance`.
            The study then has two directions, ``minimize`` and that of the second objective, and
            its trials two values.
    """

    def __init__(
        self,
        problem: WeightProgrammingProblem,
        engine: LossEngine,
        baseline: float | None = None,
        second: SecondObjective | None = None,
    ) -> None:
        self.problem = problem
        self.engine = engine
        self.second = second
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

    @property
    def directions(self) -> list[Direction]:
        """Those of a study of this objective."""
        return ["minimize"] if self.second is None else ["minimize", self.second.direction]

    def __call__(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        """Evaluates one trial."""
        x = [trial.suggest_float(name, 0.0, 1.0) for name in self._names_in_study_of(trial)]
        evaluation = self.evaluate([x])[0]
        for name, value in evaluation.attributes().items():
            trial.set_user_attr(name, value)
        return evaluation.loss if self.second is None else tuple(evaluation.values)

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
        values, conductances = self.engine.tnmse_and_conductance(points)
        values = values if tnmse is None else np.asarray(tnmse)
        if len(values) > 1 and not np.isfinite(values).any():
            check_finite(values, "the TNMSE of every trial", self.problem)
        losses = self.problem.loss(values, self.baseline)
        decoded = self.problem.hypercube.decode_arrays(points)
        columns = (losses, values, decoded.f, decoded.g, decoded.k_w)
        told = [None] * len(points) if conductances is None else conductances.tolist()
        second: list[tuple[str, float] | None] = [None] * len(points)
        if self.second is not None:
            is_known = conductances is not None and self.second.name == CONDUCTANCE
            known = conductances if is_known else self.second(points)
            second = [(self.second.name, value) for value in np.asarray(known).tolist()]
        return [
            Evaluation(loss, value, self.baseline, f, g, k_w, conductance, other)
            for loss, value, f, g, k_w, conductance, other in zip(
                *(c.tolist() for c in columns), told, second, strict=True
            )
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
