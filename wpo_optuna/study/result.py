"""What a study found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from wpo_optuna.study.environment import versions

if TYPE_CHECKING:
    from aihwkit.inference.converter.conductance import CustomPairConductanceConverter
    from optuna import Study

    from wpo_optuna.strategy import ProgrammingStrategy
    from wpo_optuna.study.estimate import Estimate
    from wpo_optuna.study.objective import HypercubeObjective
    from wpo_optuna.study.scoring import Scores

T = TypeVar("T")


@dataclass(frozen=True)
class StudyResult:
    """What a study found.

    Attributes:
        study: the Optuna study.
        objective: the problem, its engine and the engine's baseline.
        scores: scores of the finalists and the baseline on fresh noise; None if interrupted.
        strategy: the winner's strategy; None if interrupted.
        search_time: seconds this run spent searching (sampling, evaluating, storing, polishing).
        n_new_trials: trials that this run completed.
        run_id: the MLflow run of the study; None without tracking, or while MLflow is away.
        experiment_id: the run's experiment; None likewise.
        results: folder with the files that were written; None if none.
        page: the report; None if there is none.
    """

    study: Study
    objective: HypercubeObjective
    scores: Scores | None
    strategy: ProgrammingStrategy | None
    search_time: float
    n_new_trials: int
    run_id: str | None = None
    experiment_id: str | None = None
    results: Path | None = None
    page: Path | None = None

    @property
    def interrupted(self) -> bool:
        """Whether the user stopped the study before its results were scored."""
        return self.scores is None

    @property
    def converter(self) -> CustomPairConductanceConverter:
        """The winner's aihwkit converter.

        Raises:
            ValueError: the study was interrupted.
        """
        return _of_finished(self.strategy).to_converter()

    @property
    def tnmse(self) -> Estimate:
        """The winner's TNMSE on fresh noise, with its 95 % interval.

        Raises:
            ValueError: the study was interrupted.
        """
        return _of_finished(self.scores).winner

    @property
    def baseline(self) -> Estimate:
        """The baseline's TNMSE on fresh noise, with its 95 % interval.

        Raises:
            ValueError: the study was interrupted.
        """
        return _of_finished(self.scores).baseline

    @property
    def success(self) -> bool:
        """Whether the winner beats the baseline by the problem's margin."""
        return bool(self.objective.problem.loss(self.tnmse.mean, self.baseline.mean) < 0)


def _of_finished(value: T | None) -> T:
    if value is None:
        raise ValueError("The study was interrupted before its results were scored; resume it.")
    return value


def with_provenance(
    strategy: ProgrammingStrategy, study: Study, objective: HypercubeObjective, scores: Scores
) -> ProgrammingStrategy:
    """The winner's strategy, and where it comes from."""
    return replace(
        strategy,
        provenance={
            "study_name": study.study_name,
            "trial_number": scores.winning_trial,
            "problem_fingerprint": objective.problem.fingerprint,
            "tnmse": vars(scores.winner),
            "baseline": vars(scores.baseline),
            "engine": objective.engine.name,
            "engine_bias": scores.engine_bias,
            "noise_model": type(objective.problem.noise_model).__name__,
            "versions": versions(),
        },
    )
