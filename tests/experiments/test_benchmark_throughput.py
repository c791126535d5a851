"""The stopwatch of the throughput benchmark, and a study so short that only the form counts."""

from __future__ import annotations

import threading
import time

import pytest

from experiments.benchmark_throughput import Stopwatch, Throughput, measure_study, table
from experiments.reference_problem import reference_problem


def test_a_section_within_another_counts_once_and_other_threads_do_not_count() -> None:
    stopwatch = Stopwatch()

    def elsewhere() -> None:
        with stopwatch.section("outer"):
            time.sleep(0.3)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    with stopwatch.section("outer"):
        time.sleep(0.05)
        with stopwatch.section("inner"):
            time.sleep(0.1)
    thread.join()
    assert stopwatch.seconds["inner"] == pytest.approx(0.1, abs=0.08)
    assert 0.05 <= stopwatch.seconds["outer"] < 0.25


def test_the_table_extrapolates_the_plain_script_and_says_so() -> None:
    ours = Throughput("wpo_optuna", 1000, 1.0, {"loss": 0.5}, 1.0, 200.0)
    plain = Throughput("plain script", 10, 10.0, {}, 0.0)
    text = table([ours], plain, 500.0)
    assert "1000 trials: 500 times the plain script" in text
    assert "extrapolated: 167 minutes for 10 000 trials" in text
    assert "500 MiB, and 200 MiB" in text


@pytest.mark.slow
def test_a_measured_study_is_complete_and_its_parts_add_up() -> None:
    run = measure_study(reference_problem(), 300)
    assert {"sampling", "loss", "storage", "tracking"} <= run.sections.keys()
    assert sum(run.sections.values()) < 1.5 * run.seconds
