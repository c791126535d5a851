"""The benchmark of the engines measures what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.benchmark_engines import BATCHES, main
from wpo_optuna.loss import ENGINE_NAMES


@pytest.mark.slow
def test_benchmark_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "engines.json"
    main(["--output", str(output), "--rounds", "1", "--draws", "8"])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + len(ENGINE_NAMES)
    results = {result["engine"]: result for result in json.loads(output.read_text())}
    assert set(results) == set(ENGINE_NAMES)
    for name, line in zip(ENGINE_NAMES, printed[1:], strict=True):
        assert line.startswith(name)
        assert set(results[name]["ratio"]) == {str(batch) for batch in BATCHES}
    # aihwkit's tile through this project costs what the reference's own loss does.
    assert results["aihwkit"]["ratio"]["1"] == pytest.approx(1, rel=0.5)
    assert results["expected"]["ratio"]["1024"] > 500
    assert results["expected"]["scatter"] == 0
    assert results["aihwkit"]["scatter"] > 0.005
    # Eight draws of 1.5 % each.
    assert abs(results["expected"]["bias"]) < 0.03
    assert 0 < results["expected"]["preparation"] < 3
