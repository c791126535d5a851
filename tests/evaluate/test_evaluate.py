"""The command that shows how much accuracy a strategy keeps."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from mlflow import MlflowClient

from wpo_optuna.evaluate.__main__ import main
from wpo_optuna.strategy import ProgrammingStrategy

# A strategy of one pair that uses most of the range: nearly as good as the baseline's first pair.
CURVES = ((0.0, 12.5, 25.0), (25.0, 12.5, 0.0))
STRATEGY = ProgrammingStrategy((1.0,), CURVES, 0.0, 25.0, provenance={"study_name": "blobs-de"})

USERS_MODULE = """
import torch
from torch import nn
from aihwkit.nn.conversion import convert_to_analog
from wpo_optuna.hardware import rpu_config

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))

def analog_network():
    return convert_to_analog(network(), rpu_config("standard-hwa"))

def batches():
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        classes = network()(inputs).argmax(dim=1)
    return list(zip(inputs.split(16), classes.split(16)))

def generated():
    yield from batches()

def mean_output(network, data):
    return sum(network(inputs).abs().mean() for inputs, _ in data)

def failing():
    raise OSError("no such\\ndisk")

def failing_metric(network, data):
    raise KeyError("f1")

def images():
    return [(torch.zeros(2, 28, 28), torch.zeros(2, dtype=torch.int64))]

def three(): return 3

def half(): return network().to(torch.bfloat16)

def half_batches():
    return [(inputs.to(torch.bfloat16), classes) for inputs, classes in batches()]

class Peeking(nn.Module):
    "Reaches for a layer's weight instead of calling the layer."
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"first": network()})
        self.last = nn.Linear(3, 3)
    def forward(self, inputs):
        return nn.functional.linear(self.inner["first"](inputs), self.last.weight, self.last.bias)

def peeking(): return nn.Sequential(Peeking())

def attending():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (1, 6)), encoder, nn.Flatten(), network())

def mostly_looked_up():
    return nn.ModuleDict({"embed": nn.Embedding(1000, 6), "net": network()})

def uncompensated():
    config = rpu_config("pcm")
    config.drift_compensation = None
    return config

def embed(network, data): return sum(network["net"](inputs).sum() for inputs, _ in data)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's directory: a module with a network and data, and a strategy."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blobs.py").write_text(USERS_MODULE)
    STRATEGY.save(tmp_path / "strategy.json")
    return tmp_path


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real MLflow database, made once: that takes MLflow seconds."""
    directory = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{directory}/mlflow.db"
    client = MlflowClient(uri)
    client.create_experiment("wpo", artifact_location=(directory / "artifacts").as_uri())
    return uri


def _arguments(**options: str | Sequence[str]) -> list[str]:
    chosen: dict[str, str | Sequence[str]] = {
        "model": "blobs.py:network",
        "data": "blobs.py:batches",
        "strategy": "strategy.json",
        "t_steps": "1s,1d",
        "repeats": "2",
        "tracking_uri": "none",
        "output": "out",
    }
    arguments = []
    for name, value in (chosen | options).items():
        values = [value] if isinstance(value, str) else value
        arguments += ["--" + name.replace("_", "-"), *values]
    return arguments


def _summary(directory: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (directory / "summary.csv").open() as file:
        return {(row["programming"], row["time"]): row for row in csv.DictReader(file)}


def test_the_command_writes_tables_figure_and_an_mlflow_run_over_time(
    here: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_arguments(tracking_uri=tracking_uri, repeats="3")) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "mean ± standard deviation of 3 programmings; of the digital network 1:" in out
    assert "\ntiles    torch\n" in out
    summary = _summary(here / "out")
    assert set(summary) == {(p, t) for p in ("baseline", "optimised") for t in ("1s", "1d")}
    for name in ("over_time.png", "over_time.svg", "measurements.csv", "strategy.json"):
        assert (here / "out" / name).stat().st_size > 0

    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("wpo")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id in out
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "accuracy of blobs-de"
    expected = {"baseline": "dual:1,1", "repeats": "3", "rpu_config": "pcm", "engine": "torch"}
    assert expected.items() <= run.data.params.items()
    assert "version.aihwkit" in run.data.tags
    verdict = run.data.tags["mlflow.note.content"]
    assert verdict.startswith("After 1d, optimised is ")
    assert f"\n{verdict}\n" in out
    page = f"/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}?"
    told = f"mlflow ui --backend-store-uri {tracking_uri}\nand open:\n  http://127.0.0.1:5000{page}"
    assert told in out

    def series(name: str) -> list[tuple[int, float]]:
        return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]

    assert series("t_s") == [(0, 1.0), (1, 86400.0)]
    assert series("ideal_accuracy") == [(0, 1.0), (1, 1.0)]
    rows = [summary["optimised", time] for time in ("1s", "1d")]
    for end, column in (("", "mean"), ("_std", "standard_deviation")):
        told = [(step, float(row[column])) for step, row in enumerate(rows)]
        assert series(f"optimised_accuracy{end}") == told
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert artifacts == {
        "measurements.csv", "summary.csv", "over_time.png", "over_time.svg", "strategy.json",
        "weights.csv",
    }  # fmt: skip


def test_a_metric_of_the_users_an_analog_model_and_one_shot_data(here: Path) -> None:
    assert main(_arguments(
        model="blobs.py:analog_network", data="blobs.py:generated", metric="blobs.py:mean_output",
        baseline="single",
    )) == 0  # fmt: skip
    with (here / "out" / "measurements.csv").open() as file:
        rows = list(csv.DictReader(file))
    # A generator that was read once only would leave 0 for all measurements but the first.
    assert len(rows) == 1 + 2 * 2 * 2
    assert all(float(row["mean_output"]) > 0.1 for row in rows)


def _study_folder(name: str, strategy: ProgrammingStrategy, age_s: float) -> None:
    path = strategy.save(Path("wpo_results", name, "strategy.json"))
    path.with_name("settings.yaml").write_text("n_trials: 1000\n")
    os.utime(path, (path.stat().st_mtime - age_s,) * 2)


def test_alone_the_command_measures_the_built_in_network_with_the_newest_studys_strategy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ["--t-steps", "1s,1y", "--repeats", "2", "--tracking-uri", "none"]
    assert main(quick) == 1
    assert capsys.readouterr().err.startswith("error: --strategy is needed: wpo_results in this")
    other = ProgrammingStrategy((2.0,), CURVES, 0.0, 25.0)
    _study_folder("earlier", other, age_s=50)
    _study_folder("latest", STRATEGY, age_s=20)
    _study_folder("latest/fc1.weight", other, age_s=0)  # of one layer alone
    for _ in range(2):  # the second time there is a copy of the strategy in wpo_results/accuracy
        assert main(quick) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert out.startswith("strategy  wpo_results/latest/strategy.json, the newest of the stud")
        assert "accuracy after programming" in out
        assert "of the digital network 0.98:" in out
        assert "\nAfter 1y, optimised is " in out
        copy = Path("wpo_results", "accuracy", "strategy.json")
        assert ProgrammingStrategy.load(copy) == STRATEGY


def test_alone_the_command_takes_the_hardware_of_the_newest_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _study_folder("mine", ProgrammingStrategy((2.0,), CURVES, 0.0, 25.0), age_s=0)
    Path("wpo_results/mine/settings.yaml").write_text("rpu_config: reram-wan\n")
    # Phase-change memory would have been read a year after programming.
    assert main(["--t-steps", "1s,1y", "--repeats", "1", "--tracking-uri", "none"]) == 1
    assert "ReRamWan2022NoiseModel" in capsys.readouterr().err


def test_strategies_by_layer_are_written_beside_the_results(here: Path) -> None:
    other = ProgrammingStrategy((2.0,), CURVES, 0.0, 25.0)
    other.save(here / "other.json")
    assert main(_arguments(strategy=["0=strategy.json", "[2-9]*=other.json"])) == 0
    assert ProgrammingStrategy.load(here / "out" / "strategy-0.json") == STRATEGY
    assert ProgrammingStrategy.load(here / "out" / "strategy-_2-9__.json") == other


def test_quiet_shows_no_progress_and_a_terminal_otherwise_does(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(_arguments()) == 0
    assert "evaluating: 100%" in capsys.readouterr().err
    assert main([*_arguments(), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_hardware_that_torch_does_not_know_is_measured_and_said_to_be(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_arguments(rpu_config="standard-hwa")) == 0
    told = "aihwkit's compiled tile (rpu_config.forward has ir_drop = 1.0)"
    assert f"\ntiles    {told}\n" in capsys.readouterr().out


def test_mlflow_being_away_costs_a_warning_and_no_results(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    # Port 9 (discard) of the loopback interface: connections are refused at once.
    assert main(_arguments(tracking_uri="http://127.0.0.1:9")) == 0
    out, err = capsys.readouterr()
    assert "not recorded" in out
    assert err.startswith("warning: MLflow did not take the results, which are in out (")
    assert "Traceback" not in err
    assert len(_summary(here / "out")) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "blobs.py:netwrk"}, "has no function 'netwrk' (did you mean 'network'?)"),
        ({"model": "blobs.py:failing"}, "raised OSError: no such disk"),
        ({"model": "blobs.py:three"}, "model is a int: a torch module is needed"),
        ({"data": "blobs.py:three"}, "data 'blobs.py:three' returned int"),
        ({"metric": "blobs.py:failing_metric"}, "'failing_metric' raised KeyError: 'f1'"),
        ({"strategy": ["strategy.json", "strategy.json"]}, "two strategies for all layers"),
        ({"strategy": "fc1=strategy.json"}, "no analog layer matches 'fc1'; there are 0, 2."),
        ({"rpu_config": "hermes"}, "describes devices of 0 to 20.7 µS"),
        ({"rpu_config": "pcm", "model": "blobs.py:analog_network"}, "settled already"),
        ({"t_steps": "1d,1s"}, "times must ascend"),
        ({"repeats": "0"}, "--repeats '0' cannot be used"),
        ({"import": "strategy.json", "read_at": "1s,1d"}, "one time is needed"),
        ({"import": "strategy.json"}, "is not a complete safetensors file"),
        ({"engine": "torch", "rpu_config": "standard-hwa"}, "has ir_drop = 1.0"),
        ({"device": "gpu"}, "'gpu' cannot be used"),
        ({"output": "blobs.py"}, "--output 'blobs.py': this is not a directory"),
        ({"tracking_uri": "sqlit:///a.db"}, "--tracking-uri 'sqlit:///a.db'"),
    ],
)
def test_bad_input_costs_one_sentence_exit_status_1_and_no_file(
    here: Path, capsys: pytest.CaptureFixture[str], options: dict[str, str], message: str
) -> None:
    before = {path for path in here.rglob("*") if "__pycache__" not in path.parts}
    assert main(_arguments(**options)) == 1
    out, err = capsys.readouterr()
    assert "after programming" not in out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert {path for path in here.rglob("*") if "__pycache__" not in path.parts} == before


def _error_of(capsys: pytest.CaptureFixture[str], **options: str) -> str:
    assert main(_arguments(**options)) == 1
    return capsys.readouterr().err


def test_a_layer_that_fails_on_tiles_is_named_and_the_data_are_not_blamed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = _error_of(capsys, model="blobs.py:peeking")
    assert "the network on analogue tiles fails in layer '0'" in told
    assert "the digital one runs on the same data" in told
    assert main(_arguments(model="blobs.py:peeking", exclude="*last*")) == 0
    analog = _error_of(capsys, model="blobs.py:analog_network", data="blobs.py:images")
    assert "the digital network fails on the data, in layer '0'" in analog


@pytest.mark.parametrize(
    ("model", "data"),
    [("half", "batches"), ("half", "half_batches"), ("attending", "batches")],
)
def test_networks_of_half_precision_and_with_fused_layers_are_measured(
    here: Path, capsys: pytest.CaptureFixture[str], model: str, data: str
) -> None:
    assert main(_arguments(model=f"blobs.py:{model}", data=f"blobs.py:{data}")) == 0
    out, err = capsys.readouterr()
    assert ("computed in float32" in err) == (model == "half")
    assert "after programming" in out


def test_every_evaluation_says_what_of_the_network_is_analogue(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_arguments(model="blobs.py:mostly_looked_up", metric="blobs.py:embed")) == 0
    out, err = capsys.readouterr()
    assert "45 of 6,053 weights of the ModuleDict are analogue (0.7%)" in out
    assert "only 1% of the weights in matrices" in err
    with (here / "out" / "weights.csv").open() as file:
        rows = {row["tensor"]: row for row in csv.DictReader(file)}
    assert rows["net.0.weight"]["becomes"] == "analogue"
    assert rows["embed.weight"]["because"] == "it is an embedding"


def test_a_study_of_other_tensors_and_a_strategy_with_a_warning_are_told(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    provenance = {"analogue": ["0.weight", "5.weight"], "warning": "It is no better."}
    ProgrammingStrategy((1.0,), CURVES, 0.0, 25.0, provenance).save(here / "other.json")
    assert main(_arguments(strategy="other.json")) == 0
    err = capsys.readouterr().err
    assert "5.weight" in err
    assert "2.weight" in err
    assert "warning: It is no better." in err


def test_targets_go_to_a_chip_and_what_was_measured_comes_back(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Drift compensation would read out through the periphery's noise, which has no seed.
    hardware = {"rpu_config": "blobs.py:uncompensated"}
    exported = _arguments(export="targets.safetensors", **hardware)
    exported.remove("blobs.py:batches")
    exported.remove("--data")
    assert main(exported) == 0
    assert "targets.safetensors" in capsys.readouterr().out
    assert main(_arguments(**hardware, **{"import": "targets.safetensors", "repeats": "20"})) == 0
    out = capsys.readouterr().out
    assert "with the measured conductances" in out
    with (here / "out" / "measured.csv").open() as file:
        rows = {row["layer"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"0", "2"}
    for row in rows.values():
        assert float(row["measured"]) < 1e-9 < 1e-4 < float(row["predicted_low"])
        assert float(row["predicted_low"]) < float(row["predicted"]) < float(row["predicted_high"])
    assert "data" in _error_of(capsys, data="")
