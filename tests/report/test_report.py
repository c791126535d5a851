"""The report as a page and as a command, from stored studies."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import optuna
import pytest
import reported_studies
from reported_studies import ALSO_FINISHED, EMPTY, FINISHED, UNFINISHED, stored_study

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.report.__main__ import main, write_report
from wpo_optuna.report.figures.drawing import Illustration, Omission
from wpo_optuna.report.reporting.contents import chapters_of, opening_of, title_of
from wpo_optuna.report.reporting.page import Paragraph, Table
from wpo_optuna.report.reporting.study_record import read_study
from wpo_optuna.study.scoring import SCORES, Scores

FIGURES_OF_THE_SEARCH = {"conductance_curves", "explored_factors"}
VOID = {"meta", "img", "source", "br", "link", "hr"}
FIGURES_OF_A_STUDY = {
    "conductance_curves", "tnmse_over_time", "weight_errors", "weight_correlation",
    "explored_factors", "importance", "devices",
}  # fmt: skip


class Page(html.parser.HTMLParser):
    """A page taken apart: well-formed, or reading it fails."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.urls: list[str] = []
        self.alternatives: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert value is not None
            assert not name.startswith("on"), "a report has no scripts"
            if name in ("src", "href", "srcset", "data", "action"):
                self.urls.append(value)
            if name == "id":
                self.ids.append(value)
            if name == "alt":
                self.alternatives.append(value)
        assert tag not in ("script", "link", "iframe", "object")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.extend(data.split())

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Path]:
    """The report of a finished study, made by the command from a copy of its storage."""
    directory = tmp_path_factory.mktemp("report")
    shutil.copy(reported_studies.database(), directory / "wpo.db")
    output = directory / "new" / "report.html"
    storage = f"sqlite:///{directory}/wpo.db"
    arguments = ["--study-name", FINISHED, "--storage", storage, "--output", str(output)]
    assert main(arguments) == 0
    return Page(output), output


def test_the_page_needs_no_other_file_and_its_links_lead_somewhere(
    written: tuple[Page, Path],
) -> None:
    page, output = written
    for url in page.urls:
        if url.startswith("#"):
            assert url[1:] in page.ids
            continue
        kind, _, data = url.partition(";base64,")
        assert kind == "data:image/svg+xml"
        svg = ElementTree.fromstring(base64.b64decode(data))
        for element in svg.iter():
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith(("#", "data:image/png;base64,"))
    assert len(set(page.ids)) == len(page.ids)
    style = output.read_text(encoding="utf-8").partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_every_figure_is_in_the_page_for_wide_and_narrow_screens_and_as_files(
    written: tuple[Page, Path],
) -> None:
    page, output = written
    names = FIGURES_OF_A_STUDY | {"loss_over_trials"}
    images = [url for url in page.urls if url.startswith("data:")]
    assert len(images) == 2 * len(page.alternatives) == 2 * len(names)
    files = {path.name for path in (output.parent / "figures").iterdir()}
    assert files == {f"{name}.{ending}" for name in names for ending in ("png", "svg")}
    embedded = {base64.b64decode(url.partition(",")[2]) for url in images}
    for name in names:
        png = (output.parent / "figures" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert png.rstrip().endswith(b"IEND\xaeB`\x82")
        assert (output.parent / "figures" / f"{name}.svg").read_bytes() in embedded


def test_the_page_says_the_scores_that_the_study_holds(written: tuple[Page, Path]) -> None:
    page, _ = written
    scores = Scores.from_json(stored_study().user_attrs[SCORES])
    for finalist in scores.finalists:
        assert f"{finalist.tnmse.mean:.5f}" in page.words
        assert f"{finalist.tnmse_of_engine:.5f}" in page.words
    assert f"{scores.winner.mean:.4f}" in page.words
    assert f"{scores.baseline.mean:.4f}" in page.words
    difference = 100 * scores.improvement
    side = "below" if difference >= 0 else "above"
    assert f"{abs(difference):.1f} % {side} the baseline's" in page.text
    assert "PCMLikeNoiseModel" in page.text
    assert stored_study().user_attrs["problem_fingerprint"] in page.words


def test_studies_side_by_side_are_compared_and_their_common_hardware_is_drawn_once() -> None:
    records = [read_study(stored_study(name)) for name in (FINISHED, ALSO_FINISHED, UNFINISHED)]
    assert title_of(records) == "3 weight programming studies side by side"
    (opening,) = opening_of(records)
    assert "the lowest TNMSE" in opening.text
    chapters = chapters_of(records)
    comparison = next(c for c in chapters[0].contents if isinstance(c, Table))
    for row, record in zip(comparison.rows, records, strict=True):
        assert row[0] == record.name
        if record.scores is None:
            assert "not scored yet" in row
        else:
            assert f"{record.scores.winner.mean:.4f}" in row[5]
            assert f"{record.scores.winner.low:.4f}, {record.scores.winner.high:.4f}" in row[5]

    drawn = {(c.study, figure.name) for c in chapters for figure in c.contents
             if isinstance(figure, Illustration)}  # fmt: skip
    assert {(None, "loss_over_trials"), (None, "sampler_comparison")} <= drawn
    assert {name for study, name in drawn if study == FINISHED} == FIGURES_OF_A_STUDY
    # The hardware is the same; thirty trials are too few for importance.
    missing = {"devices", "importance"}
    assert {name for study, name in drawn if study == ALSO_FINISHED} == FIGURES_OF_A_STUDY - missing
    assert {name for study, name in drawn if study == UNFINISHED} == FIGURES_OF_THE_SEARCH
    said = " ".join(c.text for chapter in chapters for c in chapter.contents
                    if isinstance(c, Paragraph))  # fmt: skip
    assert f"hardware are those of study {FINISHED}" in said
    reasons = {c.reason for chapter in chapters for c in chapter.contents
               if isinstance(c, Omission)}  # fmt: skip
    assert "Importance needs at least 50 trials proposed by the sampler; there are 30." in reasons


def test_a_study_searched_further_since_its_scoring_says_so() -> None:
    record = read_study(stored_study())
    assert record.scores is not None
    assert record.measurements is not None
    earlier = dataclasses.replace(
        record,
        scores=dataclasses.replace(record.scores, n_trials=50),
        measurements=dataclasses.replace(record.measurements, trial_number=1),
    )
    said = " ".join(paragraph.text for paragraph in opening_of([earlier]))
    assert "10 trials have been completed since the scoring" in said
    assert "measured of an earlier winner, trial 1" in said


def test_an_unfinished_study_has_a_report_that_says_what_is_missing(tmp_path: Path) -> None:
    files = write_report([stored_study(UNFINISHED)], tmp_path / "report.html")
    page = Page(files.page)
    assert "has not been scored on fresh noise" in page.text
    assert "measured when a study has been scored" in page.text
    names = {path.stem for path in files.figures}
    assert names == FIGURES_OF_THE_SEARCH | {"loss_over_trials"}
    assert files.artifacts[0] == (files.page, None)
    assert all(directory == "figures" for _, directory in files.artifacts[1:])


def test_a_study_made_with_plain_optuna_has_a_report(tmp_path: Path) -> None:
    from small_problems import small_problem

    study = optuna.create_study(study_name='<b>"plain" & ü</b>/$x$')
    objective = reported_studies.objective_of(small_problem(baseline_iterations=5))
    study.optimize(objective, n_trials=3)
    files = write_report([study, stored_study(UNFINISHED)], tmp_path / "new" / "page.html")
    page = Page(files.page)
    assert '<b>"plain" & ü</b>/$x$' in page.text
    assert "does not say what its problem is" in page.text
    assert "not known to be about the same problem" in page.text
    assert all(path.parent == tmp_path / "new" / "figures" for path in files.figures)
    assert tmp_path / "new" / "figures" / "cut_off-explored_factors.svg" in files.figures


def _run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str, name: str = FINISHED
) -> str:
    """The message of a command that fails, which has written nothing."""
    shutil.copy(reported_studies.database(), tmp_path / "wpo.db")
    storage = [] if "--storage" in arguments else ["--storage", f"sqlite:///{tmp_path}/wpo.db"]
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    assert main(["--study-name", name, *storage, *arguments]) == 1
    after = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    assert [path for path in after if not re.search(r"-(wal|shm)$", path.name)] == before
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err


def test_an_unknown_study_is_refused_with_the_names_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = _run(tmp_path, capsys, "--output", str(tmp_path / "r.html"), name="digit-random")
    assert "study_name = 'digit-random'" in message
    assert FINISHED in message


def test_a_study_without_a_completed_trial_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = _run(tmp_path, capsys, "--output", str(tmp_path / "new" / "r.html"), name=EMPTY)
    assert f"study_name = '{EMPTY}': it has no completed trial" in message


def test_a_study_about_something_else_is_refused(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="other")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    with pytest.raises(InvalidArgument, match="none of its trials is one of weight programming"):
        write_report([study], tmp_path / "report.html")
    with pytest.raises(InvalidArgument, match="studies is empty"):
        write_report([], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_is_not_there_or_cannot_be_read_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "r.html")]
    missing = f"sqlite:///{tmp_path}/missing.db"
    assert "there is no such file" in _run(tmp_path, capsys, *output, "--storage", missing)
    (tmp_path / "text.db").write_text("no database")
    text = f"sqlite:///{tmp_path}/text.db"
    assert "text.db" in _run(tmp_path, capsys, *output, "--storage", text)
    assert "accepted is" in _run(tmp_path, capsys, *output, "--storage", "ftp://x")


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path, tmp_path / "file" / "r.html", Path("/proc/none/r.html")):
        message = _run(tmp_path, capsys, "--output", str(output))
        assert f"output = '{output}'" in message


def test_a_tracking_uri_that_mlflow_does_not_take_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "r.html")]
    assert "tracking_uri" in _run(tmp_path, capsys, *output, "--tracking-uri", "ftp://x")
