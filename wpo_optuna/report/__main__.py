"""The command line: ``python -m wpo_optuna.report``, one page with all figures of a study."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wpo_optuna.study import attributes
from wpo_optuna.study.command_line import CommandParser
from wpo_optuna.study.environment import directory_of_study

if TYPE_CHECKING:
    from optuna import Study

    from wpo_optuna.report.page import ReportFiles

_RESULTS = Path("wpo_results")
_COMPARISON = "comparison"


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes a report on stored studies.

    Args:
        arguments: the command line without the program; None takes ``sys.argv``.

    Returns:
        exit status: 0, 1 on failure, 130 if interrupted; wrong usage exits with 2.
    """
    return _parser().run(arguments, _run, "Interrupted; no report.")


def _parser() -> CommandParser:
    parser = CommandParser(
        "report",
        description="Writes a report on a stored study, or on several side by side: one HTML page "
        "that needs no other file, and each figure as PNG and SVG.",
    )
    add = parser.add_argument
    add("--study-name", required=True, action="append", metavar="NAME", dest="study_names",
        help="name of a study; several times to compare studies")  # fmt: skip
    add("--storage", default="sqlite:///wpo.db", metavar="URL",
        help="Optuna storage of the studies (%(default)s)")  # fmt: skip
    add("--output", type=Path, metavar="FILE",
        help="the page; figures are written into the directory figures beside it "
        f"({_RESULTS}/NAME/report.html, or {_RESULTS}/{_COMPARISON}/report.html for several "
        "studies)")  # fmt: skip
    add("--tracking-uri", metavar="URI",
        help="MLflow tracking URI; with it the report is kept with each study's run")  # fmt: skip
    add("--experiment", metavar="NAME",
        help="MLflow experiment; by default the one the study was recorded in, or wpo")  # fmt: skip
    return parser


def _run(options: argparse.Namespace) -> int:
    # Everything heavy is imported here, so that --help and wrong usage answer at once.
    from wpo_optuna.storage import load_study
    from wpo_optuna.track.delivery import deliver
    from wpo_optuna.track.destination import Destination

    studies = [load_study(options.storage, name) for name in dict.fromkeys(options.study_names)]
    comparison = _COMPARISON if len(studies) > 1 else ""
    folder = directory_of_study(_RESULTS, comparison or studies[0].study_name)
    # Checked before anything is written.
    destinations = [
        Destination.of_study(study, options.tracking_uri, options.experiment)
        for study in studies
        if options.tracking_uri is not None
    ]
    from wpo_optuna.report.page import FIGURES, REPORT_FILE, write_report

    files = write_report(studies, options.output or folder / REPORT_FILE)
    print(f"report   {files.page}")
    print(f"figures  {files.page.parent / FIGURES} ({len(files.figures)} files)")
    for study, destination in zip(studies, destinations, strict=False):
        _put_into_results(files, study, comparison)
        print(f"MLflow   run {deliver(study, destination).run_id}")
    return 0


def _put_into_results(files: ReportFiles, study: Study, directory: str) -> None:
    """Copies a report into a study's results folder, from where all goes to MLflow."""
    folder = Path(study.user_attrs.get(attributes.RESULTS, ""))
    if not (attributes.RESULTS in study.user_attrs and folder.is_dir()):
        folder = directory_of_study(_RESULTS, study.study_name).resolve()
        study.set_user_attr(attributes.RESULTS, str(folder))
    for path in (files.page, *files.figures):
        copy = folder / directory / path.relative_to(files.page.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not (copy.exists() and copy.samefile(path)):
            shutil.copyfile(path, copy)


if __name__ == "__main__":
    sys.exit(main())
