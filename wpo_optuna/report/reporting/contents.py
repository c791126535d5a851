"""What a report of one study, or of several side by side, says in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wpo_optuna.report.figures import (
    conductance_curves,
    devices,
    error_distributions,
    explored,
    importance,
    sampler_comparison,
    search_progress,
    tnmse_over_time,
    weight_correlation,
)
from wpo_optuna.report.figures.drawing import Illustration, Omission
from wpo_optuna.report.reporting import facts
from wpo_optuna.report.reporting.page import Paragraph, Table

if TYPE_CHECKING:
    from wpo_optuna.report.reporting.study_record import StudyRecord

Content = Paragraph | Table | Illustration | Omission


@dataclass(frozen=True)
class Chapter:
    """A part of the report before its figures are drawn.

    Attributes:
        title: its heading.
        contents: what is below it.
        level: 2, or 3 for parts of a study's chapter.
        study: the study that its figures are of; None if the report is about that alone, or if
            they are of all.
    """

    title: str
    contents: Sequence[Content]
    level: int = 2
    study: str | None = None


def title_of(records: Sequence[StudyRecord]) -> str:
    """The report's heading."""
    if len(records) == 1:
        return f"Weight programming study {records[0].name}"
    return f"{len(records)} weight programming studies side by side"


def opening_of(records: Sequence[StudyRecord]) -> list[Paragraph]:
    """What is said first: the result, in sentences."""
    if len(records) == 1:
        return [Paragraph(sentence, i == 0) for i, sentence in enumerate(facts.result(records[0]))]
    return [Paragraph(facts.comparison(records), True)]


def chapters_of(records: Sequence[StudyRecord]) -> list[Chapter]:
    """Everything after the opening."""
    if len(records) == 1:
        record = records[0]
        return [*_study_chapters(record, 2, None), *_hardware_chapters(record, 2, None)]
    chapters = [
        Chapter(
            sampler_comparison.TITLE,
            [facts.comparison_table(records), sampler_comparison.illustrate(records)],
        ),
        Chapter(search_progress.TITLE, [search_progress.illustrate(records)]),
    ]
    hardware_of: dict[str, str] = {}
    for record in records:
        opening = [Paragraph(sentence) for sentence in facts.result(record)]
        chapters.append(Chapter(f"Study {record.name}", opening))
        chapters.extend(_study_chapters(record, 3, record.name))
        known = record.fingerprint and hardware_of.get(record.fingerprint)
        if known:
            same = f"Weights and hardware are those of study {known}."
            chapters.append(Chapter("Problem", [Paragraph(same)], 3, record.name))
            continue
        chapters.extend(_hardware_chapters(record, 3, record.name))
        if record.fingerprint and record.measurements is not None:
            hardware_of[record.fingerprint] = record.name
    return chapters


def _study_chapters(record: StudyRecord, level: int, study: str | None) -> list[Chapter]:
    def chapter(title: str, *contents: Content | None) -> Chapter:
        return Chapter(title, [c for c in contents if c is not None], level, study)

    over_time = tnmse_over_time.illustrate(record)
    search: list[Content] = [explored.illustrate(record), importance.illustrate(record)]
    if study is None:
        search.insert(0, search_progress.illustrate([record]))
    return [
        chapter("Finalists", *facts.finalists(record)),
        chapter(conductance_curves.TITLE, conductance_curves.illustrate(record)),
        chapter(
            tnmse_over_time.TITLE,
            over_time,
            facts.tnmse_table(record) if isinstance(over_time, Illustration) else None,
        ),
        chapter(error_distributions.TITLE, error_distributions.illustrate(record)),
        chapter(weight_correlation.TITLE, weight_correlation.illustrate(record)),
        chapter("Search", *search),
    ]


def _hardware_chapters(record: StudyRecord, level: int, study: str | None) -> list[Chapter]:
    return [
        Chapter(devices.TITLE, [devices.illustrate(record)], level, study),
        Chapter("Problem", facts.problem(record), level, study),
    ]
