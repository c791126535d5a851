import sys
from pathlib import Path

import pytest

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.network.references import call_function, is_reference, load_function


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("package.module:function", True),
        ("module:function", True),
        ("nets/my net.py:function", True),
        ("/home/me/net.py:Class.method", True),
        ("C:\\nets\\net.py:function", True),
        ("C:\\nets\\bert.pt", False),
        ("C:/nets/bert.pt", False),
        ("runs:1/bert.pt", False),
        ("bert.safetensors", False),
        ("pcm", False),
        ("", False),
        ("module:", False),
        (":function", False),
        ("a..b:function", False),
    ],
)
def test_functions_are_told_from_files_and_names(text: str, expected: bool) -> None:
    assert is_reference(text) == expected


def test_a_function_in_a_file_is_loaded_once_and_by_its_own_path(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net.py").write_text(f"def where():\n    return {folder!r}\n")
    first = load_function(f"{tmp_path}/a/net.py:where", "weights")
    second = load_function(f"{tmp_path}/b/net.py:where", "weights")
    assert (first(), second()) == ("a", "b")
    assert load_function(f"{tmp_path}/a/net.py:where", "weights") is first
    # Other processes can find what the file defines, so that it can be pickled.
    assert sys.modules[first.__module__].where is first


def test_a_module_in_the_current_directory_is_found_behind_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module_of_a_user.py").write_text(
        "class Nets:\n    def make():\n        return 7\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    before = list(sys.path)
    assert load_function("module_of_a_user:Nets.make", "weights")() == 7
    assert sys.path == [*before, str(tmp_path)]


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("no_colon", "package.module:function"),
        ("not_there_at_all:f", "raised ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("json:laods", "did you mean 'loads'"),
        ("json:decoder.JSONDecodr", "did you mean 'JSONDecoder'"),
        ("json:__name__", "of type str"),
        ("nets/missing.py:f", "no file 'nets/missing.py'"),
    ],
)
def test_a_name_that_leads_nowhere_is_answered_with_the_nearest(
    reference: str, expected: str
) -> None:
    with pytest.raises(InvalidArgument, match=r"^rpu_config ") as raised:
        load_function(reference, "rpu_config")
    assert reference in str(raised.value)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import package_that_is_not_installed", "package_that_is_not_installed"),
        ("1 / 0", "ZeroDivisionError"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit", "SystemExit"),
    ],
)
def test_a_file_that_cannot_be_imported_is_named_and_not_kept(
    tmp_path: Path, code: str, expected: str
) -> None:
    path = tmp_path / "broken.py"
    path.write_text(code)
    with pytest.raises(InvalidArgument, match="raised") as raised:
        load_function(f"{path}:f", "weights")
    assert expected in str(raised.value)
    path.write_text("def f():\n    return 'mended'\n")
    assert load_function(f"{path}:f", "weights")() == "mended"


def test_what_a_function_raises_is_said_in_one_line_and_kept_as_the_cause() -> None:
    def fail() -> None:
        raise RuntimeError("no\n   weights.")

    with pytest.raises(InvalidArgument, match=r"RuntimeError: no weights\.$") as raised:
        call_function(fail, "module:fail", "weights")
    assert isinstance(raised.value.__cause__, RuntimeError)
