"""The accuracy of the example network over a year."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from experiments import digits_accuracy
from wpo_optuna.evaluate.accuracy import accuracy
from wpo_optuna.strategy import ProgrammingStrategy

# Two pairs that share each weight evenly, with some conductance kept in all devices.
STRATEGY = ProgrammingStrategy(
    (1.0, 1.0), ((5.0, 12.0, 25.0), (25.0, 12.0, 5.0)) * 2, g_min=0.0, g_max=25.0
)


def test_the_shipped_network_reads_98_percent_of_the_held_out_digits() -> None:
    assert accuracy(digits_accuracy.network(), digits_accuracy.batches()) == 441 / 450


def test_the_experiment_writes_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = STRATEGY.save(tmp_path / "mine.json")
    arguments = ["--strategy", str(path), "--repeats", "2", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["digits_accuracy", *arguments])
    digits_accuracy.main()
    out = capsys.readouterr().out
    with (tmp_path / "out" / "pcm" / "summary.csv").open() as file:
        last = {row["programming"]: row for row in csv.DictReader(file) if row["time"] == "1y"}
    for programming in ("baseline", "optimised"):
        mean = float(last[programming]["mean"])
        assert f"{programming} {100 * mean:.2f} % (±" in out
        assert f"{100 * (441 / 450 - mean):.2f} points below the digital network" in out
    assert (tmp_path / "out" / "pcm" / "over_time.svg").is_file()
    assert ProgrammingStrategy.load(tmp_path / "out" / "pcm" / "strategy.json") == STRATEGY


def test_hardware_that_knows_certain_times_alone_is_followed_at_those() -> None:
    hardware = digits_accuracy.NAMED_RPU_CONFIGS["reram-wan"]
    narrow = ProgrammingStrategy((1.0,), ((0.0, 20.0), (20.0, 0.0)), g_min=0.0, g_max=40.0)
    result = digits_accuracy.follow(hardware, narrow, repeats=1, seed=0)
    assert result.t_steps == (1.0, 86400.0, 172800.0)
