"""The report: one page that needs no other file, and each figure as PNG and SVG beside it."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.hardware import format_duration
from wpo_optuna.report.figures import measured, search
from wpo_optuna.report.figures.drawing import Drawn, draw
from wpo_optuna.report.record import StudyRecord, are_about_one_problem, read_study
from wpo_optuna.study.results_folder import check_directory

if TYPE_CHECKING:
    from optuna import Study

    from wpo_optuna.study.estimate import Estimate

REPORT_FILE = "report.html"
FIGURES = "figures"

# Figures of one study; the names of these functions are those of the files.
_OF_THE_STUDY = (measured.conductance_curves, search.explored_factors, search.importance)
_OF_MEASUREMENTS = (
    measured.tnmse_over_time,
    measured.weight_errors,
    measured.weight_correlation,
    measured.devices,
)
_NOT_MEASURED = "This is measured when a study has been scored."


@dataclass(frozen=True)
class ReportFiles:
    """A report as it was written.

    Attributes:
        page: the page, which needs no other file.
        figures: each figure as PNG and SVG, for use elsewhere.
    """

    page: Path
    figures: tuple[Path, ...]


class StudyPart(NamedTuple):
    """What the page says of one study, and what the names of its figures begin with."""

    record: StudyRecord
    prefix: str


def write_report(studies: Sequence[Study], page: str | os.PathLike[str]) -> ReportFiles:
    """Writes a report on a study, or on several side by side.

    Args:
        studies: the studies, each with at least one completed trial.
        page: the page's file; figures are written into the directory ``figures`` beside it.

    Raises:
        InvalidArgument: no study is given, one has no completed trial, or the file cannot be
            written.
    """
    if not studies:
        raise InvalidArgument("studies is empty: at least one study is needed.")
    records = [read_study(study) for study in studies]
    page = Path(page)
    if page.is_dir():
        raise InvalidArgument(
            f"output = {str(page)!r}: this is a directory; a file is needed, such as "
            f"{str(page / REPORT_FILE)!r}."
        )
    check_directory(page.parent, "output")  # before the work of drawing is done for nothing
    figures = {"search_progress": draw(search.search_progress, records)}
    if len(records) > 1:
        figures["sampler_comparison"] = draw(search.sampler_comparison, records)
    parts = []
    for record in records:
        prefix = re.sub(r"[^\w.-]", "_", record.name) + "-" if len(records) > 1 else ""
        parts.append(StudyPart(record, prefix))
        figures |= {prefix + f.__name__: draw(f, record) for f in _OF_THE_STUDY}
        known = record.measurements
        for f in _OF_MEASUREMENTS:
            figures[prefix + f.__name__] = draw(f, known) if known else _NOT_MEASURED
    text = _template().render(
        parts=parts, figures=figures, is_one_problem=are_about_one_problem(records)
    )
    (page.parent / FIGURES).mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for name, figure in figures.items():
        if isinstance(figure, Drawn):
            paths += figure.save(page.parent / FIGURES, name)
    partial = page.with_name(page.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(page)
    return ReportFiles(page, tuple(paths))


def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wpo_optuna.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "as_url": lambda svg: "data:image/svg+xml;base64," + base64.b64encode(svg).decode(),
        "duration": lambda seconds: format_duration(float(seconds)),
        "interval": _interval,
        "shown": _shown,
    }
    return environment.get_template("page.html.j2")


def _interval(estimate: Estimate) -> str:
    """A mean and its 95 % interval."""
    return f"{estimate.mean:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def _shown(value: Any) -> str:
    """A setting as people write it."""
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
