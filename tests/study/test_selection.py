"""Finalists compared in the user's network: who wins, and what is said of it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from wpo_optuna import ProgrammingStrategy
from wpo_optuna.evaluate.accuracy import NetworkSetup, set_up_network
from wpo_optuna.hardware import parse_converter
from wpo_optuna.study import __main__ as study
from wpo_optuna.study.selection import Selection, select

NETWORK, IMAGES = "wpo_optuna.evaluate.digits:network", "wpo_optuna.evaluate.digits:batches"


@pytest.fixture(scope="module")
def digits() -> NetworkSetup:
    return set_up_network(model=NETWORK, data=IMAGES, metric=None, rpu_config="pcm")


def strategy(used_us: float) -> ProgrammingStrategy:
    """Two equal pairs that use so much of the range of 25 µS: the less, the noisier."""
    falling, rising = (used_us, 0.0, 0.0), (0.0, 0.0, used_us)
    return ProgrammingStrategy((1.0, 1.0), (rising, falling) * 2, 0.0, 25.0)


def selected(digits: NetworkSetup, *used_us: float) -> Selection:
    strategies = {10 * number: strategy(us) for number, us in enumerate(used_us, start=1)}
    baseline = parse_converter("dual:1,1", 0.0, 25.0, "baseline")
    return select(digits, strategies, baseline, 86400.0, programmings=8)


def test_the_finalist_that_keeps_more_accuracy_wins_whatever_its_tnmse(
    digits: NetworkSetup, tmp_path: Path
) -> None:
    selection = selected(digits, 1.0, 25.0)
    assert (selection.best, selection.contenders) == (20, (20,))
    assert "By accuracy trial 20 wins, by TNMSE trial 10: they differ." in selection.table()
    # What is settled is not measured again.
    assert {len(values) for values in selection.values.values()} == {8}
    selection.write(tmp_path / "selection.csv")
    rows = list(csv.DictReader((tmp_path / "selection.csv").open()))
    assert len(rows) == 3 * 8
    assert {row["programming"] for row in rows} == {"trial 10", "trial 20", "baseline"}


def test_finalists_that_accuracy_does_not_tell_apart_are_ranked_by_tnmse(
    digits: NetworkSetup,
) -> None:
    selection = selected(digits, 25.0, 25.0, 1.0)
    assert selection.contenders == (10, 20)
    assert selection.best == 10
    # Equal strategies with equal seeds are equal, in all rounds there are.
    assert list(selection.values[10]) == list(selection.values[20])
    assert len(selection.values[10]) == 8 * 8
    assert len(selection.values[30]) == 8
    assert "64 programmings do not tell its accuracy from that of trial 20" in selection.table()


def test_the_study_says_who_wins_and_keeps_both_strategies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--n-trials", "20", "--finalists", "2", "--no-self-check", "--no-report",
                 "--tracking-uri", "none", "--repeats", "2", "--study-name", "mine",
                 "--select-by", "metric", "--model", NETWORK, "--data", IMAGES]  # fmt: skip
    assert study.main(arguments) == 0
    told = capsys.readouterr().out
    assert "accuracy of the finalists after 360d" in told
    kept = ProgrammingStrategy.load("wpo_results/mine/strategy-by-metric.json")
    assert kept.provenance["selected_by"] == "accuracy"
    assert kept.provenance["study_name"] == "mine"
    assert Path("wpo_results/mine/strategy.json").is_file()


@pytest.mark.parametrize(
    "arguments",
    [[], ["--model", NETWORK], ["--model", NETWORK, "--data", IMAGES, "--per", "layer"]],
)
def test_what_a_selection_lacks_is_said_at_once(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert study.main(["--select-by", "metric", *arguments]) == 1
    assert "needs both" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
