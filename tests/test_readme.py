"""What README and docs say can be done: commands are such, and the code runs as it stands."""

from __future__ import annotations

import importlib
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wpo_optuna.evaluate import __main__ as evaluate
from wpo_optuna.hardware import NAMED_RPU_CONFIGS
from wpo_optuna.hardware import __main__ as hardware
from wpo_optuna.report import __main__ as report
from wpo_optuna.study import __main__ as study
from wpo_optuna.study import run
from wpo_optuna.track import __main__ as track

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PARSERS = {
    "wpo_optuna.study": study._parser,
    "wpo_optuna.evaluate": evaluate._parser,
    "wpo_optuna.report": report._parser,
    "wpo_optuna.track": track._parser,
    "wpo_optuna.hardware": hardware._parser,
}


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """The arguments of every ``python -m`` in the pages, in blocks and in sentences."""
    lines = []
    for text in (page.read_text(encoding="utf-8") for page in PAGES):
        lines += [line for block in blocks("bash", text) for line in block.splitlines()]
        lines += re.findall(r"`(python -m [^`]*)`", text)
    found = {match[1] for line in lines if (match := re.search(r"python -m (.*)", line))}
    return [shlex.split(line) for line in sorted(found)]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_is_one(words: list[str]) -> None:
    module, *arguments = words
    if module in PARSERS:
        PARSERS[module]().parse_args(arguments)
    elif module != "pytest":
        assert callable(importlib.import_module(module).main)


def test_the_commands_for_ones_own_network_do_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = [block for block in blocks("bash") if "--list-rpu-configs" in block]
    listing, search, accuracy = (shlex.split(line)[3:] for line in block.splitlines())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    network = """
        import torch

        def network():
            torch.manual_seed(0)
            return torch.nn.Sequential(torch.nn.Linear(20, 10))

        def batches():
            inputs = torch.randn(30, 20)
            return [(inputs, network()(inputs).argmax(dim=1))]
        """
    for name in ("mynet.py", "mydata.py"):
        Path(name).write_text(textwrap.dedent(network))
    generator = torch.Generator().manual_seed(0)
    save_file({"0.weight": torch.randn(10, 20, generator=generator)}, "model.safetensors")

    assert study.main(listing) == 0
    assert set(NAMED_RPU_CONFIGS) <= set(capsys.readouterr().out.split())
    quick = [
        "--n-trials",
        "20",
        "--finalists",
        "1",
        "--no-self-check",
        "--tracking-uri",
        "none",
        "--no-report",
    ]
    assert study.main([*search, *quick]) == 0
    assert "study            mine in sqlite:///wpo.db" in capsys.readouterr().out
    assert evaluate.main([*accuracy, "--repeats", "1", "--tracking-uri", "none"]) == 0
    assert "optimised" in capsys.readouterr().out


def test_the_python_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, but for the number of trials and draws."""
    original, given = run.run_study, []

    def quick(problem: Any, **options: Any) -> Any:
        given.append(options)
        short = {"n_trials": 20, "self_check": False, "finalists": 1}
        return original(problem, **(options | short))

    monkeypatch.setattr(run, "run_study", quick)
    code, drop_in = blocks("python")
    names: dict[str, Any] = {}
    exec(compile(code, "README", "exec"), names)
    assert given == [{"n_trials": 500, "storage": "memory", "tracking_uri": False}]
    assert type(names["converter"]).__name__ == "CustomPairConductanceConverter"
    assert np.isfinite(names["result"].tnmse.mean)
    exec(compile(drop_in, "README", "exec"), names)
    assert names["WeightProgrammingOptimizer"].__module__ == "wpo_optuna.optimizer"


def test_no_page_has_a_gap_to_be_filled_and_every_link_leads_somewhere() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert "@@" not in text, page
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (page.parent / target).exists(), f"{page}: {target}"
