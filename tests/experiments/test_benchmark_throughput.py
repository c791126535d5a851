"""The throughput benchmark: what its table says, and a study so short that only the form counts."""

from __future__ import annotations

import pytest

from experiments.benchmark_throughput import Throughput, measure_study, table
from experiments.reference_problem import reference_problem


def test_the_table_extrapolates_the_plain_script_and_says_so() -> None:
    ours = Throughput("wpo_optuna", 1000, 1.0, 2.0)
    text = table([ours], Throughput("plain script", 10, 10.0, 10.0), 500.0)
    assert "500x" in text
    assert "extrapolated: 167 minutes for 10 000 trials" in text
    assert "500 MiB" in text


@pytest.mark.slow
def test_a_measured_study_is_complete_and_its_search_is_a_part_of_the_whole() -> None:
    run = measure_study(reference_problem(), 300)
    assert 0 < run.search < run.whole
