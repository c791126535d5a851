"""The report: one page that needs no other file, and each figure as PNG and SVG beside it."""

from __future__ import annotations

import base64
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.hardware import format_duration
from wpo_optuna.report import figures
from wpo_optuna.report.drawing import save
from wpo_optuna.report.measurements import DEVICE_SPREAD
from wpo_optuna.report.record import read_study
from wpo_optuna.study import attributes
from wpo_optuna.study.environment import check_directory

if TYPE_CHECKING:
    from optuna import Study

REPORT_FILE = "report.html"
FIGURES = "figures"

_NOT_MEASURED = "This is measured when a study has been scored."


class ReportFiles(NamedTuple):
    """A report as it was written: the page, and each of its figures as PNG and SVG beside it."""

    page: Path
    figures: tuple[Path, ...]


def write_report(studies: Sequence[Study], page: str | os.PathLike[str]) -> ReportFiles:
    """Writes a report on a study, or on several side by side.

    Args:
        studies: the studies, each with at least one completed trial.
        page: the page's file, or a directory for it; figures are written into the directory
            ``figures`` beside it.

    Raises:
        InvalidArgument: no study is given, one has no completed trial, or the file cannot be
            written.
    """
    if not studies:
        raise InvalidArgument("studies is empty: at least one study is needed.")
    records = [read_study(study) for study in studies]
    page = Path(page)
    page = page / REPORT_FILE if page.is_dir() else page
    check_directory(page.parent, "output")  # before the work of drawing is done for nothing
    folder = page.parent / FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[tuple[str, str], Path | str] = {
        ("", "search_progress"): save(figures.search_progress, records, folder / "search_progress")
    }
    for record in records:
        prefix = re.sub(r"[^\w.-]", "_", record.name) + "-" if len(records) > 1 else ""
        for figure_of, subject in figures.figures_of_study(record).items():
            name = figure_of.__name__
            drawn[record.name, name] = (
                _NOT_MEASURED
                if subject is None
                else save(figure_of, subject, folder / f"{prefix}{name}")
            )
    problems = {record.settings[attributes.FINGERPRINT] for record in records}
    text = _template().render(
        records=records,
        figures=drawn,
        is_one_problem=len(problems) == 1 and None not in problems,
        device_spread=DEVICE_SPREAD,
    )
    page.write_text(text, encoding="utf-8")
    written = [path for path in drawn.values() if isinstance(path, Path)]
    return ReportFiles(page, tuple(f for svg in written for f in (svg.with_suffix(".png"), svg)))


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
        "as_url": _as_url,
        "duration": format_duration,
        "quoted": shlex.quote,
        "shown": _shown,
    }
    return environment.get_template("page.html.j2")


def _as_url(svg: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode()


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
