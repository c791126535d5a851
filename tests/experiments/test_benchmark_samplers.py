"""The benchmarks of samplers and storage measure what they say."""

from __future__ import annotations

import re

import pytest

from experiments import benchmark_samplers, benchmark_storage
from wpo_optuna.samplers import SAMPLER_NAMES


def test_every_sampler_is_measured_after_few_and_many_trials(
    capsys: pytest.CaptureFixture[str],
) -> None:
    benchmark_samplers.main(["--histories", "40", "90", "--dimension", "3", "--trials", "12"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[0] for line in lines] == list(SAMPLER_NAMES)
    assert all(len(line) == 3 and float(line[1]) > 0 for line in lines)


def test_storing_and_reading_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark_storage.main(["--sizes", "300", "--plain-trials", "2"])
    told = capsys.readouterr().out
    assert re.search(r"storing, at +300 trials +\d", told)
    assert re.search(r"reading all +\d{4} ", told)
