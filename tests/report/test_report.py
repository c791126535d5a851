"""The report as a page and as a command, from stored studies."""

from __future__ import annotations

import base64
import html
import re
import shutil
from datetime import UTC
from pathlib import Path
from xml.etree import ElementTree

import optuna
import pytest
import reported_studies
from reported_studies import ALSO_FINISHED, EMPTY, FINISHED, UNFINISHED, stored_study
from small_problems import seedable_rpu_config, small_problem

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.report.__main__ import main
from wpo_optuna.report.measurements import Measurements, measure
from wpo_optuna.report.page import write_report
from wpo_optuna.study import attributes
from wpo_optuna.study.scoring import Scores

FIGURES_OF_THE_SEARCH = {"conductance_curves", "explored_factors"}
FIGURES_OF_A_STUDY = FIGURES_OF_THE_SEARCH | {
    "tnmse_over_time", "weight_errors", "weight_correlation", "importance", "devices",
    "sensitivity",
}  # fmt: skip


class Page:
    """A page taken apart: without scripts, and with an end for every tag, or reading it fails."""

    def __init__(self, path: Path) -> None:
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"<(script|link|iframe|object)\b|<[^>]*\son\w+=", source)
        body = source.partition("<body>")[2].partition("</body>")[0]
        for tag in set(re.findall(r"<(\w+)", body)) - {"img"}:
            assert len(re.findall(rf"<{tag}\b", body)) == body.count(f"</{tag}>"), tag
        self.ids = re.findall(r'\bid="([^"]*)"', body)
        self.urls = re.findall(r'\b(?:src|href|srcset)="([^"]*)"', body)
        self.words = html.unescape(re.sub(r"<[^>]*>", " ", body)).split()
        self.text = " ".join(self.words)


def copy_of(name: str) -> optuna.Study:
    """A stored study in memory, to be changed."""
    storage = optuna.storages.InMemoryStorage()
    original = stored_study(name)._storage
    optuna.copy_study(from_study_name=name, from_storage=original, to_storage=storage)
    return optuna.load_study(study_name=name, storage=storage)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Path]:
    """The report of a finished study, made by the command from a copy of its storage."""
    directory = tmp_path_factory.mktemp("report")
    shutil.copy(reported_studies.directory() / "wpo.db", directory)
    output = directory / "new" / "report.html"
    storage = f"sqlite:///{directory}/wpo.db"
    assert main(["--study-name", FINISHED, "--storage", storage, "--output", str(output)]) == 0
    return Page(output), output


def test_the_page_needs_no_other_file_and_has_each_figure_that_lies_beside_it_once(
    written: tuple[Page, Path],
) -> None:
    page, output = written
    links = {url[1:] for url in page.urls if url.startswith("#")}
    assert links <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    images = [url.partition(";base64,") for url in page.urls if not url.startswith("#")]
    names = FIGURES_OF_A_STUDY | {"search_progress"}
    assert len(images) == len(names)
    assert {kind for kind, _, _ in images} == {"data:image/svg+xml"}
    embedded = {base64.b64decode(data) for _, _, data in images}
    for svg in embedded:
        for element in ElementTree.fromstring(svg).iter():
            for name, value in element.attrib.items():
                assert not name.endswith("href") or value.startswith(("#", "data:image/png;"))
    style = output.read_text(encoding="utf-8").partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style

    figures = output.parent / "figures"
    expected = {f"{name}.{ending}" for name in names for ending in ("png", "svg")}
    assert {path.name for path in figures.iterdir()} == expected
    assert {path.read_bytes() for path in figures.glob("*.svg")} == embedded
    for path in figures.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_page_says_what_the_study_holds(written: tuple[Page, Path]) -> None:
    page, _ = written
    scores = Scores.from_json(stored_study().user_attrs[attributes.SCORES])
    for finalist in scores.finalists:
        assert f"{finalist.tnmse.mean:.5f}" in page.words
        assert f"{finalist.tnmse_of_engine:.5f}" in page.words
    difference = 100 * scores.improvement
    side = "below" if difference >= 0 else "above"
    winner, baseline = scores.winner, scores.baseline
    assert (
        f"has a TNMSE of {winner.mean:.4f} [{winner.low:.4f}, {winner.high:.4f}], "
        f"{abs(difference):.1f} % {side} the baseline's {baseline.mean:.4f}"
    ) in page.text
    measured = Measurements.load(reported_studies.directory() / FINISHED)
    assert measured is not None
    for t, (mean, _, high) in zip(("1s", "1min", "1h"), measured.optimised.tnmse,
                                  strict=True):  # fmt: skip
        assert t in page.words
        assert f"{mean:.4f} ± {high - mean:.4f}" in page.text
    assert "PCMLikeNoiseModel" in page.text
    assert "t_steps_s 1s, 1min, 1h" in page.text
    assert stored_study().user_attrs[attributes.FINGERPRINT] in page.words


def test_the_page_begins_with_what_was_asked_and_found_and_how_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = stored_study()
    monkeypatch.chdir(reported_studies.directory())
    files = write_report([study], tmp_path / "report.html")
    beginning = Page(files.page).text.partition("Finalists The best")[0]
    ended = max(trial.datetime_complete for trial in study.trials)
    assert f"last trial {ended.astimezone(UTC):%Y-%m-%d %H:%M} UTC" in beginning
    assert "hardware pcm: PCMLikeNoiseModel, 0 to 25 µS" in beginning
    assert "baseline dual:1,1: DualPairConductanceConverter, f = 1, 1" in beginning
    assert "search random, 60 trials by the montecarlo engine" in beginning
    assert f"--config {FINISHED}/settings.yaml" in beginning
    assert f"evaluate --strategy {FINISHED}/strategy.json --rpu-config pcm" in beginning
    snippet = re.search(r"<pre>(from .*?)</pre>", files.page.read_text(encoding="utf-8"), re.S)
    assert snippet is not None
    rpu_config = seedable_rpu_config()
    exec(html.unescape(snippet[1]), {"analog_model": rpu_config})
    assert len(rpu_config.noise_model.g_converter.f_lst) == 2


def test_a_layers_study_is_used_for_that_layer_and_says_what_came_after_its_scoring(
    tmp_path: Path,
) -> None:
    study = copy_of(FINISHED)
    scores = study.user_attrs[attributes.SCORES]
    winner, other = scores["finalists"]
    study.set_user_attr(attributes.SCORES, scores | {"n_trials": 50, "finalists": [other, winner]})
    study.set_user_attr(attributes.PARENT_STUDY, "network")
    text = Page(write_report([study], tmp_path).page).text
    assert f'apply_strategy(analog_model, {{"{FINISHED}": strategy}})' in text
    assert f"--strategy {FINISHED}=strategy.json" in text
    assert "10 trials have been completed since the scoring" in text
    assert f"measured of an earlier winner, trial {winner['trial_number']}" in text


def test_studies_side_by_side_are_compared(tmp_path: Path) -> None:
    studies = [stored_study(name) for name in (FINISHED, ALSO_FINISHED, UNFINISHED)]
    files = write_report(studies, tmp_path / "report.html")
    page = Page(files.page)
    assert "3 weight programming studies side by side" in page.text
    assert "found the lowest TNMSE" in page.text
    assert "not scored yet" in page.text
    assert "Importance needs at least 50 trials proposed by the sampler; there are 30." in page.text
    drawn = {path.stem for path in files.figures}
    # Thirty trials are too few for importance.
    of_also = FIGURES_OF_A_STUDY - {"importance"}
    assert drawn == {"search_progress"}.union(
        *({f"{study.replace(' ', '_')}-{name}" for name in names}
          for study, names in ((FINISHED, FIGURES_OF_A_STUDY), (ALSO_FINISHED, of_also),
                               (UNFINISHED, FIGURES_OF_THE_SEARCH)))
    )  # fmt: skip
    assert f"{UNFINISHED} random montecarlo 8 not scored yet" in page.text


def test_an_unfinished_study_or_one_without_its_folder_says_what_is_missing(
    tmp_path: Path,
) -> None:
    files = write_report([stored_study(UNFINISHED)], tmp_path / "report.html")
    page = Page(files.page)
    assert "has not been scored on fresh noise" in page.text
    assert "measured when a study has been scored" in page.text
    assert {path.stem for path in files.figures} == FIGURES_OF_THE_SEARCH | {"search_progress"}
    # A folder of another problem is as good as none.
    problem = small_problem(t_steps=[1.0])
    strategy = problem.hypercube.decode([0.5] * problem.hypercube.dimension)
    measure(problem, strategy, tmp_path / "other", winning_trial=0)
    study = copy_of(ALSO_FINISHED)
    study.set_user_attr(attributes.RESULTS, str(tmp_path / "other"))
    write_report([study], tmp_path / "report.html")
    assert "Device model: This is measured when" in Page(files.page).text


def test_a_study_made_with_plain_optuna_has_a_report(tmp_path: Path) -> None:
    study = optuna.create_study(study_name='<b>"plain" & ü</b>/$x$')
    objective = reported_studies.objective_of(small_problem(baseline_iterations=5))
    study.optimize(objective, n_trials=3)
    files = write_report([study, stored_study(UNFINISHED)], tmp_path / "new" / "page.html")
    page = Page(files.page)
    assert '<b>"plain" & ü</b>/$x$' in page.text
    assert "PCMLikeNoiseModel, 0 to 25 µS" in page.text
    assert "not known to be about the same problem" in page.text
    assert tmp_path / "new" / "figures" / "cut_off-explored_factors.svg" in files.figures


def _refusal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str, name: str = FINISHED
) -> str:
    """The message of a command that fails, which has written nothing."""
    shutil.copy(reported_studies.directory() / "wpo.db", tmp_path)
    storage = [] if "--storage" in arguments else ["--storage", f"sqlite:///{tmp_path}/wpo.db"]
    before = _files(tmp_path)
    assert main(["--study-name", name, *storage, *arguments]) == 1
    assert _files(tmp_path) == before
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err


def _files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if not p.name.endswith(("-wal", "-shm")))


def test_what_cannot_be_reported_is_refused_in_a_sentence_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "new" / "r.html")]
    message = _refusal(tmp_path, capsys, *output, name="digit-random")
    assert "--study-name 'digit-random'" in message
    assert FINISHED in message
    message = _refusal(tmp_path, capsys, *output, name=EMPTY)
    assert f"--study-name '{EMPTY}': it has no completed trial" in message
    missing = f"sqlite:///{tmp_path}/missing.db"
    assert "there is no such file" in _refusal(tmp_path, capsys, *output, "--storage", missing)
    assert "accepted is" in _refusal(tmp_path, capsys, *output, "--storage", "ftp://x")
    assert "--tracking-uri" in _refusal(tmp_path, capsys, *output, "--tracking-uri", "ftp://x")
    (tmp_path / "file").write_text("")
    message = _refusal(tmp_path, capsys, "--output", str(tmp_path / "file" / "r.html"))
    assert f"--output '{tmp_path / 'file'}'" in message
    study = optuna.create_study(study_name="other")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    for studies, told in (([study], "no completed trial of weight"), ([], "studies is empty")):
        with pytest.raises(InvalidArgument, match=told):
            write_report(studies, tmp_path / "new" / "report.html")
    assert not (tmp_path / "new").exists()
