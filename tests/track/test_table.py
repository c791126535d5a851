"""The table of all trials, and the best so far."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wpo_optuna.track.delivery import table as table_module
from wpo_optuna.track.delivery.best import BestSoFar
from wpo_optuna.track.delivery.messages import TrialRecord
from wpo_optuna.track.delivery.table import COLUMNS, TrialTable

numbers = st.floats(width=64, allow_nan=True, allow_infinity=True)


@st.composite
def trial_records(draw: st.DrawFn) -> TrialRecord:
    finite = st.floats(allow_nan=False, allow_infinity=False)
    return TrialRecord(
        number=draw(st.integers(0, 30)),
        state=draw(st.sampled_from(["COMPLETE", "PRUNED", "FAIL"])),
        tnmse=draw(numbers),
        loss=draw(numbers),
        baseline=draw(numbers),
        f_lst=tuple(draw(st.lists(finite, max_size=3))),
        g_lst=tuple(tuple(curve) for curve in draw(st.lists(st.lists(finite, max_size=3)))),
        k_w=draw(numbers),
        x=tuple(draw(st.lists(finite, min_size=2, max_size=2))),
        x_names=("f_1", "k_w"),
        phase=draw(st.none() | st.text(max_size=5)),
        started_ms=0,
        finished_ms=draw(st.integers(0, 2**40)),
    )


def same(a: float | None, b: float) -> bool:
    return (a is None and math.isnan(b)) or a == b


@settings(deadline=None, max_examples=40)
@given(records=st.lists(trial_records(), max_size=40), rows_in_memory=st.integers(1, 20))
def test_every_trial_is_in_the_table_once_at_full_precision_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, records: list[TrialRecord], rows_in_memory: int
) -> None:
    """Also when it is written before its end, and when most of it is on disk."""
    directory = tmp_path_factory.mktemp("table")
    table = TrialTable()
    first: dict[int, TrialRecord] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "_ROWS_IN_MEMORY", rows_in_memory)
        for record in records:
            table.add([record])
            first.setdefault(record.number, record)
            if record.number % 7 == 0:
                table.write(directory / "early.parquet", directory / "early.json")
        table.write(directory / "trials.parquet", directory / "trials.json")
    rows = pq.read_table(directory / "trials.parquet").to_pylist()
    table.close()

    assert [row["number"] for row in rows] == sorted(first)
    for row in rows:
        record = first[row["number"]]
        assert row["state"] == record.state
        assert row["phase"] == record.phase
        for name in ("tnmse", "loss", "baseline", "k_w", "improvement"):
            assert same(row[name], getattr(record, name)), name
        assert row["x"] == list(record.x)
        assert row["f_lst"] == (list(record.f_lst) or None)
        assert row["g_lst"] == ([list(curve) for curve in record.g_lst] or None)

    shown = json.loads((directory / "trials.json").read_text())
    assert shown["columns"] == list(COLUMNS)
    assert [row[0] for row in shown["data"]] == sorted(first)


def record_of(number: int, phase: str | None = None) -> TrialRecord:
    return TrialRecord(
        number, "COMPLETE", 0.0594123456789, -0.485, 0.1524, (1.0, 1 / 3), ((0.0, 25 / 3),), 12.5,
        (0.123456789,), ("f_1",), phase, 0, 1,
    )  # fmt: skip


def test_the_shown_table_rounds_numbers_and_leaves_cells_without_a_value_empty(
    tmp_path: Path,
) -> None:
    table = TrialTable()
    table.add([record_of(0)])
    (file,) = table.write(tmp_path / "t.parquet", tmp_path / "t.json")
    shown = json.loads(file.read_text())
    row = dict(zip(shown["columns"], shown["data"][0], strict=True))
    assert row["tnmse"] == 0.0594123
    assert row["f_lst"] == "[1, 0.333333]"
    assert row["g_lst"] == "[[0, 8.33333]]"
    assert row["phase"] == ""
    metadata = pq.read_schema(tmp_path / "t.parquet").metadata
    assert json.loads(metadata[b"x_names"]) == ["f_1"]


def test_a_table_too_large_for_the_ui_is_shown_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "_MOST_CHARACTERS_SHOWN", 1000)
    table = TrialTable()
    table.add([record_of(number) for number in range(30)])
    files = table.write(tmp_path / "trials.parquet", tmp_path / "trials.json")
    assert [file.name for file in files[:3]] == ["trials.json", "trials_2.json", "trials_3.json"]
    assert all(file.stat().st_size < 1200 for file in files)
    rows = [row for file in files for row in json.loads(file.read_text())["data"]]
    assert [row[0] for row in rows] == list(range(30))


def peak_while_writing(directory: Path, n_rows: int) -> int:
    """Most bytes that Python and Arrow held while a table was written, beyond those before."""
    table = TrialTable()
    for start in range(0, n_rows, 500):
        # Neighbours come out of order, as from several processes.
        numbers = range(min(start + 500, n_rows) - 1, start - 1, -1)
        table.add([record_of(number, phase="x" * 1000) for number in numbers])
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        files = table.write(directory / "trials.parquet", directory / "trials.json")
        peak = tracemalloc.get_traced_memory()[1] + (pool.max_memory() or 0)
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)
        table.close()
    rows = [row for file in files for row in json.loads(file.read_text())["data"]]
    assert [row[0] for row in rows] == list(range(n_rows))
    assert pq.read_metadata(directory / "trials.parquet").num_rows == n_rows
    return peak


def test_writing_a_large_table_takes_no_more_memory_than_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "_ROWS_IN_MEMORY", 500)
    peak_while_writing(tmp_path, 1000)  # what is imported at the first time does not count
    small, large = (peak_while_writing(tmp_path, n_rows) for n_rows in (1000, 8000))
    assert large < 1.5 * small


@given(
    values=st.dictionaries(st.integers(0, 50), numbers, max_size=30),
    order=st.randoms(use_true_random=False),
    asked=st.integers(0, 51),
)
def test_the_best_so_far_is_the_minimum_over_smaller_numbers(
    values: dict[int, float], order: object, asked: int
) -> None:
    best = BestSoFar()
    shuffled = list(values)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    for number in shuffled:
        best.add(number, values[number])
        best.add(number, -1e300)  # a second value of a trial is no value of it
    before = [v for number, v in values.items() if number < asked and not math.isnan(v)]
    assert best.before(asked) == min(before, default=math.inf)
