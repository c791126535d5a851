"""The report: ``python -m wpo_optuna.report --study-name NAME``, one page with all figures.

It is made from the Optuna storage alone. What it shows of weights and hardware is measured at the
end of a study, see :mod:`wpo_optuna.report.reporting.measurements`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.study.command_line import run_command
from wpo_optuna.study.results_folder import directory_of_study
from wpo_optuna.track.delivery.messages import Artifact

if TYPE_CHECKING:
    from optuna import Study

    from wpo_optuna.report.figures.drawing import DrawnFigure
    from wpo_optuna.report.reporting.contents import Chapter
    from wpo_optuna.report.reporting.page import Section

PROGRAM = "python -m wpo_optuna.report"
REPORT_FILE = "report.html"
FIGURES = "figures"

_RESULTS = "wpo_results"
_COMPARISON = "comparison"


@dataclass(frozen=True)
class ReportFiles:
    """A report as it was written.

    Attributes:
        page: the page, which needs no other file.
        figures: each figure as PNG and SVG, for use elsewhere.
    """

    page: Path
    figures: tuple[Path, ...]

    @property
    def artifacts(self) -> list[tuple[Path, str | None]]:
        """Each file and its directory among the artifacts of an MLflow run; None for the top."""
        return [(self.page, None), *((figure, FIGURES) for figure in self.figures)]


def write_report(studies: Sequence[Study], path: str | os.PathLike[str]) -> ReportFiles:
    """Writes a report on a study, or on several side by side.

    Args:
        studies: the studies, each with at least one completed trial.
        path: the page's file; figures are written into the directory ``figures`` beside it.

    Raises:
        InvalidArgument: no study is given, one has no completed trial, or the file cannot be
            written.
    """
    from wpo_optuna.report.reporting.contents import chapters_of, opening_of, title_of
    from wpo_optuna.report.reporting.page import html_page
    from wpo_optuna.report.reporting.study_record import read_study

    if not studies:
        raise InvalidArgument("studies is empty: at least one study is needed.")
    records = [read_study(study) for study in studies]
    page = Path(path)
    _prepare(page)
    sections, drawn = _draw(chapters_of(records))
    text = html_page(title_of(records), opening_of(records), sections)
    try:
        figures = _write_figures(drawn, page.parent / FIGURES)
        partial = page.with_name(page.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(page)
    except OSError as error:
        raise _unwritable(page, error) from error
    return ReportFiles(page, figures)


def _draw(chapters: Sequence[Chapter]) -> tuple[list[Section], list[tuple[str, DrawnFigure]]]:
    """The page's sections, and the name and drawing of each figure in them."""
    from wpo_optuna.report.figures.drawing import Illustration, Omission, render
    from wpo_optuna.report.reporting.page import Block, OmittedFigure, Section

    drawn: list[tuple[str, DrawnFigure]] = []
    sections = []
    for chapter in chapters:
        blocks: list[Block] = []
        for content in chapter.contents:
            if isinstance(content, Illustration):
                figure = render(content)
                of_study = "" if chapter.study is None else f"{_as_file_name(chapter.study)}-"
                drawn.append((of_study + content.name, figure))
                blocks.append(figure)
            elif isinstance(content, Omission):
                blocks.append(OmittedFigure(f"{content.title}: {content.reason}"))
            else:
                blocks.append(content)
        sections.append(Section(chapter.title, blocks, chapter.level))
    return sections, drawn


def _write_figures(drawn: Sequence[tuple[str, DrawnFigure]], directory: Path) -> tuple[Path, ...]:
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in drawn:
        for ending, content in (("png", figure.png), ("svg", figure.svg)):
            paths.append(directory / f"{name}.{ending}")
            paths[-1].write_bytes(content)
    return tuple(paths)


def _as_file_name(study_name: str) -> str:
    return re.sub(r"[^\w.-]", "_", study_name)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes a report on stored studies.

    Args:
        arguments: the command line without the program; None takes ``sys.argv``.

    Returns:
        exit status: 0, 1 on failure, 130 if interrupted; wrong usage exits with 2.
    """
    options = _parser().parse_args(arguments)
    return run_command(
        lambda: _run(options), debug=options.debug, on_interruption="Interrupted; no report."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Writes a report on a stored study, or on several side by side: one HTML page "
        "that needs no other file, and each figure as PNG and SVG.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--study-name", required=True, action="append", metavar="NAME", dest="study_names",
        help="name of a study; several times to compare studies")  # fmt: skip
    add("--storage", default="sqlite:///wpo.db", metavar="URL",
        help="Optuna storage of the studies (%(default)s)")  # fmt: skip
    add("--output", type=Path, metavar="FILE",
        help="the page; figures are written into the directory figures beside it "
        f"({_RESULTS}/NAME/{REPORT_FILE}, or {_RESULTS}/{_COMPARISON}/{REPORT_FILE} for several "
        "studies)")  # fmt: skip
    add("--tracking-uri", metavar="URI",
        help="MLflow tracking URI; with it the report is kept with each study's run")  # fmt: skip
    add("--experiment", metavar="NAME",
        help="MLflow experiment; by default the one the study was recorded in, or wpo")  # fmt: skip
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _run(options: argparse.Namespace) -> int:
    # Everything heavy is imported here, so that --help and wrong usage answer at once.
    from wpo_optuna.study.environment import check_aihwkit

    check_aihwkit()
    from wpo_optuna.track.__main__ import deliver, destination_of, load_study

    names = list(dict.fromkeys(options.study_names))
    studies = [load_study(options.storage, name) for name in names]
    # Checked before anything is written.
    destinations = [
        destination_of(study, options.tracking_uri, options.experiment, "none")
        for study in studies
        if options.tracking_uri is not None
    ]
    directory = Path(_RESULTS, _COMPARISON)
    if len(names) == 1:
        directory = directory_of_study(Path(_RESULTS), names[0])
    files = write_report(studies, options.output or directory / REPORT_FILE)
    print(f"report   {files.page}")
    print(f"figures  {files.page.parent / FIGURES} ({len(files.figures)} files)")
    for study, destination in zip(studies, destinations, strict=False):
        extras = _extras(files, is_comparison=len(studies) > 1)
        print(f"MLflow   {deliver(study, destination, extras)}")
    return 0


def _extras(files: ReportFiles, is_comparison: bool) -> list[Artifact]:
    """The files for the run of a study, those of a comparison beside the study's own."""
    parent = [_COMPARISON] if is_comparison else []
    return [
        Artifact(str(path.resolve()), "/".join([*parent, *filter(None, [directory])]) or None)
        for path, directory in files.artifacts
    ]


if __name__ == "__main__":
    sys.exit(main())
