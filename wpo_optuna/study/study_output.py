"""What a finished study leaves behind: files, and what MLflow shows of the result."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wpo_optuna.report.__main__ import REPORT_FILE, ReportFiles, write_report
from wpo_optuna.report.reporting.measurements import keep_measurements
from wpo_optuna.study.environment import versions

if TYPE_CHECKING:
    from optuna import Study

    from wpo_optuna.strategy import ProgrammingStrategy
    from wpo_optuna.study.objective import HypercubeObjective
    from wpo_optuna.study.progress import Progress
    from wpo_optuna.study.scoring import Scores
    from wpo_optuna.track.tracker import MlflowTracker

STRATEGY_FILE = "strategy.json"


class ReportWarning(UserWarning):
    """The report could not be made; the study is finished nevertheless."""


@dataclass(frozen=True)
class StudyFiles:
    """Files of a finished study.

    Attributes:
        strategy: the winner's strategy.
        report: the report; None if it was not wanted or could not be made.
    """

    strategy: Path
    report: ReportFiles | None


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
            "tnmse": scores.winner.to_json(),
            "baseline": scores.baseline.to_json(),
            "engine": objective.engine.name,
            "engine_bias": scores.engine_bias,
            "noise_model": type(objective.problem.noise_model).__name__,
            "versions": versions(),
        },
    )


def keep_report_data(
    study: Study,
    objective: HypercubeObjective,
    scores: Scores,
    strategy: ProgrammingStrategy,
    progress: Progress,
) -> None:
    """Measures what a report shows of the hardware and the winner; a failure is a warning."""
    try:
        keep_measurements(study, objective, scores, strategy, progress)
    except Exception as error:  # figures are not worth the loss of a result
        warnings.warn(f"The report will lack figures: {error}", ReportWarning, stacklevel=2)


def write_attachments(directory: Path, attachments: Mapping[str, str]) -> None:
    """Writes text files into a directory, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in attachments.items():
        (directory / name).write_text(text, encoding="utf-8")


def make_report(directory: Path, study: Study) -> ReportFiles | None:
    """Writes the report into a directory; a failure is a warning."""
    try:
        return write_report([study], directory / REPORT_FILE)
    except Exception as error:  # figures are not worth the loss of a result
        warnings.warn(f"The report could not be made: {error}", ReportWarning, stacklevel=2)
        return None


def hand_to_mlflow(
    tracker: MlflowTracker,
    scores: Scores,
    search_time: float,
    texts: Mapping[str, str],
    report: ReportFiles | None,
) -> None:
    """Gives the tracker the result: scores as metrics, texts and figures as artifacts.

    Args:
        tracker: delivers it in the background.
        scores: scores of the winner and the baseline.
        search_time: seconds this run spent searching.
        texts: contents of text artifacts, by name.
        report: the report, if there is one.
    """
    metrics = {
        "improvement_percent": 100 * scores.improvement,
        "engine_bias_percent": 100 * scores.engine_bias,
        "search_time_s": search_time,
    }
    for name, estimate in (("winner", scores.winner), ("scored_baseline", scores.baseline)):
        metrics[f"{name}_tnmse"] = estimate.mean
        metrics[f"{name}_tnmse_low"] = estimate.low
        metrics[f"{name}_tnmse_high"] = estimate.high
        metrics[f"{name}_draws"] = float(estimate.draws)
    tracker.log_metrics(metrics)
    for name, text in texts.items():
        tracker.log_text(text, name)
    for path, artifact_path in report.artifacts if report is not None else ():
        tracker.log_artifact(path, artifact_path)
