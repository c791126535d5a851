"""The command ``wpo``, what all commands say to a mistake, and the names a user finds in Python."""

from __future__ import annotations

import pydoc
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import wpo_optuna
from wpo_optuna.__main__ import COMMANDS, main
from wpo_optuna.errors import InvalidArgument
from wpo_optuna.report import __main__ as report
from wpo_optuna.study import __main__ as study
from wpo_optuna.study.command_line import CommandParser
from wpo_optuna.study.environment import program_here
from wpo_optuna.study.settings import RunSettings, StudySettings
from wpo_optuna.study.text import resume_command

ROOT = Path(__file__).parents[1]


def test_wpo_is_installed_as_the_command_that_python_runs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["wpo"].partition(":")
    assert getattr(import_module(module), name) is main


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]], ids=str)
def test_wpo_alone_lists_the_commands(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    listed = capsys.readouterr().out
    for name, what in COMMANDS.items():
        assert f"{name:9} {what}" in listed
        assert callable(import_module(f"wpo_optuna.{name}.__main__").main)


def test_wpo_hands_everything_on_to_the_command_and_its_exit_status_back(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "wpo_optuna", "study"]
    listed = subprocess.run([*run, "--list-rpu-configs"], cwd=ROOT, capture_output=True, text=True)
    assert (listed.returncode, "hermes" in listed.stdout) == (0, True)
    assert subprocess.run([*run, "--nbins"], cwd=ROOT, capture_output=True).returncode == 2
    assert subprocess.run([*run, "--nbins", "x"], cwd=ROOT, capture_output=True).returncode == 1


@pytest.mark.parametrize(
    ("started", "called"),
    [
        ("/env/bin/wpo", "wpo study"),
        ("wpo.exe", "wpo study"),
        ("/src/wpo_optuna/__main__.py", "python -m wpo_optuna study"),
        ("/src/wpo_optuna/study/__main__.py", "python -m wpo_optuna.study"),
        ("/env/bin/ipython", "python -m wpo_optuna.study"),
        ("", "python -m wpo_optuna.study"),
    ],
)
def test_help_and_printed_commands_call_the_program_as_it_was_called(
    started: str, called: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [started])
    assert study._parser().format_usage() == f"usage: {called} [options]\n"
    first, *words = called.split()
    words = [program_here(first), *words, "--n-trials", "8"]
    assert resume_command([], 8) == " ".join(words)


def test_a_misspelt_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reprot"]) == 2
    assert "'reprot' (did you mean 'report'?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words", "meant"),
    [
        (study.main, ["--smapler", "de"], "--sampler"),
        (study.main, ["--n_trials=5"], "--n-trials"),
        (study.main, ["--no-polsh"], "--no-polish"),
        (report.main, ["--study-name", "s", "--storge", "x"], "--storage"),
    ],
)
def test_a_misspelt_option_gets_a_suggestion(
    command, words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(words)
    assert ended.value.code == 2
    assert f"(did you mean '{meant}'?)" in capsys.readouterr().err


def test_an_option_that_is_like_no_other_is_refused_without_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        study.main(["--zzz", "--n-trials"])
    assert "did you mean" not in capsys.readouterr().err


def test_all_flags_are_known_in_the_narrowest_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    flags = study._parser().flags()
    named = {"--" + name.replace("_", "-") for name in StudySettings.model_fields}
    others = {"--config", "--list-rpu-configs", "--list-weights", "--quiet", "--debug", "--help"}
    negated = {"--no-" + flag[2:] for flag in flags if "--no-" + flag[2:] in flags}
    assert set(flags) == named | others | negated
    assert "--no-polish" in negated


def test_words_out_of_a_list_are_taken_in_capitals() -> None:
    options = vars(study._parser().parse_args(["--sampler", "CMAES", "--trial-runs", "All"]))
    assert (options["sampler"], options["trial_runs"]) == ("cmaes", "all")
    settings = RunSettings.checked({"sampler": "TPE", "engine": "MonteCarlo"})
    assert (settings.sampler, settings.engine) == ("tpe", "montecarlo")


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("study_name = 'x': no.", "--study-name 'x': no."),
        ("g_min = 30, g_max = 25: a range.", "--g-min 30, --g-max 25: a range."),
        ("n_trials = 3 and maxiter = 3: give one.", "--n-trials 3 and --maxiter 3: give one."),
        ("weights 'a.npy': no such file.", "--weights 'a.npy': no such file."),
        ("model: it fails.", "--model: it fails."),
        ("t_steps contains 0 s: no.", "--t-steps contains 0 s: no."),
        ("seed is needed.", "--seed is needed."),
        ("study_name = 'x': or study_name = 'x-2'.", "--study-name 'x': or --study-name 'x-2'."),
        # What a file or Python says is not a flag.
        ("--config a.yaml: seed = 'x' cannot be.", "--config a.yaml: seed = 'x' cannot be."),
        ("baseline = 'a.json': between g_min = 0", "--baseline 'a.json': between g_min = 0"),
        ("sampler_options = 'x': no.", "sampler_options = 'x': no."),
        ("the model 'x': no.", "the model 'x': no."),
    ],
)
def test_messages_name_flags_on_the_command_line_and_arguments_in_python(
    sentence: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(options: object) -> int:
        raise InvalidArgument(sentence)

    def message(parser: CommandParser) -> str:
        assert parser.run([], refuse, on_interruption="") == 1
        return capsys.readouterr().err

    assert message(study._parser()) == f"error: {told}\n"
    assert message(CommandParser("other")) == f"error: {sentence}\n"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--storage", "postgresql://me:s3cret@h/d b"],
         "--storage postgresql://me:\"$STORAGE_PASSWORD\"'@h/d b'"),
        (["--tracking-uri=https://me:s3cret@h"],
         "--tracking-uri=https://me:\"$TRACKING_URI_PASSWORD\"@h"),
        (["--storage", "mysql://me:s3cret@h/d?ssl_password=s3cret"],
         "--storage mysql://me:\"$STORAGE_PASSWORD\"'@h/d?ssl_password='\"$STORAGE_PASSWORD\""),
        (["--storage", "postgresql://h/d"], "--storage postgresql://h/d"),
        (["--study-name", "***"], "--study-name '***'"),
    ],
)  # fmt: skip
def test_the_command_to_go_on_has_a_variable_in_place_of_a_password(
    given: list[str], expected: str
) -> None:
    printed = resume_command(given, 8)
    assert printed == f"{program_here('python')} -m wpo_optuna.study {expected} --n-trials 8"
    shell = f"set -- {printed.partition('.study ')[2]}; printf '%s\\n' \"$@\""
    passwords = {"STORAGE_PASSWORD": "s3cret", "TRACKING_URI_PASSWORD": "s3cret"}
    pasted = subprocess.run(["sh", "-c", shell], env=passwords, capture_output=True, text=True)
    assert pasted.stdout.splitlines() == [*given, "--n-trials", "8"]


def test_every_command_refuses_without_torch_what_needs_none(tmp_path: Path) -> None:
    words = (
        "study --storage foo://x", "study --tracking-uri ./mlruns", "evaluate --t-steps 1x",
        "evaluate --tracking-uri ./mlruns", "evaluate --strategy absent.json",
        "report --study-name x --storage sqlite:///absent.db",
        "track --study-name x --storage sqlite:///absent.db",
    )  # fmt: skip
    code = (
        "import sys, wpo_optuna.__main__ as wpo\n"
        f"for words in {words!r}: assert wpo.main(words.split()) == 1\n"
        "print(sorted({'torch', 'aihwkit', 'mlflow'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
    assert len(result.stderr.splitlines()) == len(words)
    assert not list(tmp_path.iterdir())


def test_dir_and_help_show_the_public_names() -> None:
    shown = [name for name in dir(wpo_optuna) if not name.startswith("__")]
    assert shown == sorted(wpo_optuna.__all__)
    text = pydoc.plain(pydoc.render_doc(wpo_optuna))
    description, _, details = text.partition("PACKAGE CONTENTS")
    for name in wpo_optuna.__all__:
        assert name in description
        assert f"class {name}(" in details or f"    {name}(" in details
