"""The benchmark of the samplers measures what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.benchmark_samplers import main
from wpo_optuna.samplers import SAMPLER_NAMES


def test_benchmark_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "samplers.json"
    arguments = ["--histories", "40", "90", "--dimension", "3", "--trials", "12"]
    main([*arguments, "--slow-trials", "8", "--output", str(output)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(SAMPLER_NAMES)
    assert all(len(line.split()) == 6 for line in lines[2:])
    costs = json.loads(output.read_text())
    found = {(cost["sampler"], cost["optunas"], cost["history"]) for cost in costs}
    expected = {(name, False, n) for name in SAMPLER_NAMES for n in (40, 90)}
    assert found == expected | {
        (name, True, n) for name in ("cmaes", "tpe", "qmc") for n in (40, 90)
    }
    assert all(cost["ms_per_trial"] > 0 and cost["n_trials"] >= 8 for cost in costs)


@pytest.mark.slow
def test_optunas_own_samplers_cost_several_times_as_much(tmp_path: Path) -> None:
    output = tmp_path / "samplers.json"
    main(["--histories", "5000", "--trials", "60", "--slow-trials", "16", "--output", str(output)])
    cost = {(c["sampler"], c["optunas"]): c["ms_per_trial"] for c in json.loads(output.read_text())}
    assert cost["tpe", True] > 3 * cost["tpe", False]
    assert cost["cmaes", True] > 2 * cost["cmaes", False]
