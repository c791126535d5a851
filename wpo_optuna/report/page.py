"""The report: one page that needs no other file, and each figure as PNG and SVG beside it."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.hardware import format_duration
from wpo_optuna.report.figures import errors, hardware, search
from wpo_optuna.report.figures.drawing import Drawn, draw
from wpo_optuna.report.record import StudyRecord, are_about_one_problem, read_study

if TYPE_CHECKING:
    from optuna import Study

    from wpo_optuna.study.estimate import Estimate

REPORT_FILE = "report.html"
FIGURES = "figures"

# Figures of one study; the names of these functions are those of the files.
_OF_A_STUDY = (
    hardware.conductance_curves,
    errors.tnmse_over_time,
    errors.weight_errors,
    errors.weight_correlation,
    search.explored_factors,
    search.importance,
)


@dataclass(frozen=True)
class ReportFiles:
    """A report as it was written.

    Attributes:
        page: the page, which needs no other file.
        figures: each figure as PNG and SVG, for use elsewhere.
    """

    page: Path
    figures: tuple[Path, ...]


@dataclass(frozen=True)
class StudyPart:
    """What the page shows of one study.

    Attributes:
        record: the study.
        figures: its figures by name, or why there is none.
        same_hardware: name of an earlier study on the page whose hardware and weights are the same.
    """

    record: StudyRecord
    figures: Mapping[str, Drawn | str]
    same_hardware: str | None


def write_report(
    studies: Sequence[Study],
    page: str | os.PathLike[str],
    results: Mapping[str, Path] | None = None,
) -> ReportFiles:
    """Writes a report on a study, or on several side by side.

    Args:
        studies: the studies, each with at least one completed trial.
        page: the page's file; figures are written into the directory ``figures`` beside it.
        results: results folders by name of the study, where its measurements are; without one a
            study names its own.

    Raises:
        InvalidArgument: no study is given, one has no completed trial, or the file cannot be
            written.
    """
    if not studies:
        raise InvalidArgument("studies is empty: at least one study is needed.")
    records = [read_study(study, (results or {}).get(study.study_name)) for study in studies]
    page = Path(page)
    _prepare(page)
    common: dict[str, Drawn | str] = {"search_progress": draw(search.search_progress, records)}
    if len(records) > 1:
        common["sampler_comparison"] = draw(search.sampler_comparison, records)
    parts = _parts(records)
    text = _template().render(
        parts=parts, figures=common, is_one_problem=are_about_one_problem(records)
    )
    contents = _figure_files(parts, common)
    try:
        (page.parent / FIGURES).mkdir(exist_ok=True)
        paths = tuple(page.parent / FIGURES / name for name in contents)
        for path, content in zip(paths, contents.values(), strict=True):
            path.write_bytes(content)
        partial = page.with_name(page.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(page)
    except OSError as error:
        raise _unwritable(page, error) from error
    return ReportFiles(page, paths)


def _parts(records: Sequence[StudyRecord]) -> list[StudyPart]:
    parts: list[StudyPart] = []
    drawn: dict[str, str] = {}  # the study whose device model is shown, by fingerprint
    for record in records:
        figures = {figure.__name__: draw(figure, record) for figure in _OF_A_STUDY}
        same = drawn.get(record.fingerprint or "")
        if same is None:
            figures["devices"] = draw(hardware.devices, record)
            if record.fingerprint and record.measurements is not None:
                drawn[record.fingerprint] = record.name
        parts.append(StudyPart(record, figures, same))
    return parts


def _figure_files(
    parts: Sequence[StudyPart], common: Mapping[str, Drawn | str]
) -> dict[str, bytes]:
    """Contents of the figures' files by name; of several studies, the study's name comes first."""
    named = dict(common)
    for part in parts:
        of_study = re.sub(r"[^\w.-]", "_", part.record.name) + "-" if len(parts) > 1 else ""
        named |= {of_study + name: figure for name, figure in part.figures.items()}
    files: dict[str, bytes] = {}
    for name, figure in named.items():
        if isinstance(figure, Drawn):
            files |= {f"{name}.png": figure.png, f"{name}.svg": figure.svg}
    return files


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


def _prepare(page: Path) -> None:
    """Makes the page's directory, before the work of drawing is done for nothing.

    Raises:
        InvalidArgument: the file cannot be written there.
    """
    if page.is_dir():
        raise InvalidArgument(
            f"output = {str(page)!r}: this is a directory; a file is needed, such as "
            f"{str(page / REPORT_FILE)!r}."
        )
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        partial = page.with_name(page.name + ".partial")
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise _unwritable(page, error) from error


def _unwritable(page: Path, error: OSError) -> InvalidArgument:
    reason = error.strerror or type(error).__name__
    return InvalidArgument(f"output = {str(page)!r}: this file cannot be written ({reason}).")
