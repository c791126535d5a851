"""Names and files of people who mean harm, or whose files are damaged.

Each is refused in one sentence before anything is written, or is taken for what it is.
"""

from __future__ import annotations

import html
import json
import struct
import tempfile
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reported_studies import search
from small_problems import small_problem

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.report.page import write_report
from wpo_optuna.strategy import FORMAT, ProgrammingStrategy
from wpo_optuna.study.__main__ import main
from wpo_optuna.study.environment import directory_of_study

MARKUP = "<script>alert('1')</script>\"&"


def strategy_file(**changes: Any) -> str:
    strategy = {"f_lst": [1.0], "g_lst_us": [[0, 0, 25], [25, 0, 0]], "g_min_us": 0, "g_max_us": 25}
    return json.dumps({"format": FORMAT, **strategy, **changes})


def safetensors(header: object, data: bytes, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(*shape: int, offsets: tuple[int, int] = (0, 16)) -> dict[str, Any]:
    return {"a.weight": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}


NAMES = {
    "a path upwards": ("../elsewhere", "must not lead elsewhere"),
    "a path upwards within": ("a/../../elsewhere", "must not lead elsewhere"),
    "an absolute path": ("/tmp/elsewhere", "must not lead elsewhere"),
    "a dot": (".", "must not lead elsewhere"),
    "a space": (" ", "printable"),
    "lines": ("a\nb", "printable"),
    "a NUL": ("a\0b", "printable"),
    "an escape": ("\x1b[2J", "printable"),
    "half a character": ("\udcff", "printable"),
    "300 characters": ("x" * 300, "'xxxxxxxxxxxxxxxxxxxx...', of 300 characters"),
    "parts of 300 bytes": ("a/" + "ä" * 150, "of 152 characters"),
    "600 characters": ("abc/" * 150, "at most 512 characters"),
}
DEEP = "[" * 100_000
STRATEGIES = {
    "NaN": (strategy_file(f_lst=[float("nan")]), "f_lst = [nan]"),
    "NaN in a curve": (strategy_file(g_lst_us=[[0, float("nan"), 25], [25, 0, 0]]), "nan µS"),
    "an infinite range": (strategy_file(g_max_us=float("inf")), "finite"),
    "a range of NaN": (strategy_file(g_min_us=float("nan")), "g_min = nan"),
    "1e400": (strategy_file().replace("25", "1e400"), "g_max = inf"),
    "400 digits": (strategy_file().replace("25", "9" * 400), "too large"),
    "5000 digits": (strategy_file().replace("25", "9" * 5000), "digits"),
    "the largest factor": (strategy_file(f_lst=[1e308]), "NaN or infinity"),
    "nesting": (DEEP, "recursion"),
    "nesting inside": (strategy_file().replace("[1.0]", DEEP), "recursion"),
    "a list": ("[]", "format"),
    "NULs": ("\0" * 99, "not a JSON file"),
    "nothing": ("", "not a JSON file"),
}
CONFIGURATIONS = {
    "a tag that runs a program": ("!!python/object/apply:os.system ['touch ran']", "constructor"),
    "a tag inside": ("n_trials: !!python/object/new:os.system [touch ran]", "constructor"),
    "nesting": ("nbins: " + "[" * 600, "is not YAML"),
    "5000 digits": ("nbins: " + "9" * 5000, "digits"),
    "infinity": ("g_max: .inf", "finite"),
    "aliases of aliases": (
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join(9 * ['*' + a])}]\n" for a, b in pairwise("abcdefghij"))
        + "sampler: *j",
        "aliases",
    ),
    "NUL": ("nbins: \0", "is not YAML"),
    "a list": ("- 1", "mapping"),
    "a path": ("study_name: ../elsewhere", "must not lead elsewhere"),
}
WEIGHTS = {
    "a header beyond the file": safetensors(tensor(2, 2), bytes(16), 10**6),
    "a header of 2^63 bytes": safetensors(tensor(2, 2), bytes(16), 2**63),
    "no header": safetensors(tensor(2, 2), bytes(16), 0),
    "data that are cut off": safetensors(tensor(2, 2), bytes(4)),
    "an offset beyond the file": safetensors(tensor(2, 2, offsets=(100, 116)), bytes(16)),
    "a shape larger than its data": safetensors(tensor(200, 200), bytes(16)),
    "a shape beyond 64 bits": safetensors(tensor(2**40, 2**40), bytes(16)),
    "a negative shape": safetensors(tensor(-2, -2), bytes(16)),
    "an end before the beginning": safetensors(tensor(2, 2, offsets=(16, 0)), bytes(16)),
    "tensors over each other": safetensors({**tensor(2, 2), "b": tensor(2, 2)["a.weight"]}, b"0"),
    "a list": safetensors([1], bytes(16)),
}
TENSOR_NAMES = {"lines": "a\nb.weight", "an escape": "\x1b[2J", "10 kB": "x" * 10_000}
CASES = [
    *(([f"--study-name={name}"], "", told) for name, told in NAMES.values()),
    *((["--baseline", "file"], text, told) for text, told in STRATEGIES.values()),
    *((["--config", "file"], text, told) for text, told in CONFIGURATIONS.values()),
    *((["--weights", "a.safetensors"], data, "not a complete") for data in WEIGHTS.values()),
    *(
        (
            ["--weights", "a.safetensors"],
            safetensors({name: tensor(2, 2)["a.weight"]}, bytes(16)),
            "printable",
        )
        for name in TENSOR_NAMES.values()
    ),
    (["--experiment", "x" * 600], "", "printable characters"),
    (["--experiment", "a\0b"], "", "printable characters"),
]
LABELS = [
    *(f"study name: {label}" for label in NAMES),
    *(f"strategy: {label}" for label in STRATEGIES),
    *(f"configuration: {label}" for label in CONFIGURATIONS),
    *(f"weights: {label}" for label in WEIGHTS),
    *(f"tensor name: {label}" for label in TENSOR_NAMES),
    "experiment: 600 characters",
    "experiment: a NUL",
]


@pytest.mark.parametrize(("words", "content", "told"), CASES, ids=LABELS)
def test_it_is_refused_in_one_sentence_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    words: list[str], content: str | bytes, told: str,
) -> None:  # fmt: skip
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    data = content.encode() if isinstance(content, str) else content
    for name in ("file", "a.safetensors"):
        Path(name).write_bytes(data)
    # Should it not be refused, it does not take long.
    assert main([*words, "--n-trials=1", "--no-report", "--tracking-uri=sqlite:///m.db"]) == 1
    printed = capfd.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1, printed
    assert told in printed
    assert len(printed) < 2000, printed
    assert "--debug" not in printed, "an error of Python's own"
    files = {path.name for path in tmp_path.rglob("*")}
    assert files == {"here", "file", "a.safetensors"}


@pytest.mark.parametrize("name", [MARKUP, "'; DROP TABLE studies; --", "日本/ä", "-x", "x" * 255])
def test_other_names_stay_within_the_output(tmp_path: Path, name: str) -> None:
    folder = directory_of_study(tmp_path, name)
    assert tmp_path in folder.parents
    folder.mkdir(parents=True)


@settings(max_examples=40)
@given(
    st.text(min_size=1, max_size=600)
    | st.lists(st.sampled_from("ab./ä\0 "), min_size=1, max_size=12)
)
def test_any_name_makes_a_directory_within_the_output_or_is_refused(name: str | list[str]) -> None:
    with tempfile.TemporaryDirectory() as output:
        try:
            folder = directory_of_study(Path(output), "".join(name))
        except InvalidArgument:
            return
        folder.mkdir(parents=True)
        assert Path(output).resolve() in folder.resolve().parents


NUMBERS = st.floats() | st.integers() | st.none() | st.booleans() | st.text(max_size=3)
LISTS = st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=4))


@settings(max_examples=40)
@given(f_lst=LISTS, g_lst_us=LISTS, g_min_us=LISTS, g_max_us=LISTS, provenance=LISTS)
def test_any_contents_of_a_strategy_file_are_a_strategy_or_refused(**contents: Any) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(strategy_file(**contents))
        file.flush()
        with suppress(InvalidArgument):
            assert ProgrammingStrategy.load(file.name).spans_weights


def test_markup_in_a_name_is_shown_as_it_is(tmp_path: Path) -> None:
    study = search(f"sqlite:///{tmp_path}/wpo.db", MARKUP, small_problem(), n_trials=3)
    page = write_report([study], tmp_path / "report.html").page.read_text(encoding="utf-8")
    assert MARKUP in html.unescape(page)
    assert "<script>" not in page
