"""Networks that are no stacks of linear layers, from the study's command to the accuracy."""

from __future__ import annotations

import csv
from pathlib import Path

import mlflow
import pytest
import torch
from safetensors.torch import save_file

from wpo_optuna.evaluate.__main__ import main as evaluate
from wpo_optuna.strategy import ProgrammingStrategy
from wpo_optuna.study.__main__ import main

USERS_MODULE = """
import torch
from torch import nn
from aihwkit.inference import PCMLikeNoiseModel
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.parameters import MappingParameter


def small():
    mapping = MappingParameter(max_input_size=48)
    return InferenceRPUConfig(noise_model=PCMLikeNoiseModel(), mapping=mapping)


class Reading(nn.Module):
    "Reads a sequence of numbers of words: an embedding, attention, an LSTM, a classifier."
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.memory = nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, words):
        vectors = self.embed(words)
        vectors = vectors + self.attention(vectors, vectors, vectors, need_weights=False)[0]
        return self.head(self.memory(vectors)[0][:, -1])


def network():
    torch.manual_seed(0)
    return Reading()


def batches():
    words = torch.randint(0, 12, (40, 5), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return [(words, network().eval()(words).argmax(dim=1))]
"""
QUICK = (
    "--rpu-config", "nets.py:small", "--test-out-features", "8", "--t-steps", "1s,1h",
    "--no-self-check", "--finalists", "1", "--no-report", "--n-trials", "12", "--no-polish",
)  # fmt: skip
ANALOGUE = {
    "attention.in_proj_weight", "attention.out_proj.weight", "memory.weight_ih_l0",
    "memory.weight_hh_l0", "head.weight",
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(USERS_MODULE)
    return tmp_path


def _becoming(path: Path) -> dict[str, str]:
    with path.open() as file:
        return {row["tensor"]: row["becomes"] for row in csv.DictReader(file)}


def test_a_study_and_an_evaluation_are_about_the_same_tensors(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUICK, "--weights", "nets.py:network", "--tracking-uri", "none"]) == 0
    out, err = capsys.readouterr()
    assert "memory.weight_ih_l0" in out
    assert err == ""
    (results,) = (here / "wpo_results").iterdir()
    studied = _becoming(results / "weights.csv")
    assert {name for name, becomes in studied.items() if becomes == "analogue"} == ANALOGUE
    strategy = ProgrammingStrategy.load(results / "strategy.json")
    assert set(strategy.provenance["analogue"]) == ANALOGUE

    measuring = [
        "--model", "nets.py:network", "--data", "nets.py:batches", "--rpu-config", "nets.py:small",
        "--strategy", str(results / "strategy.json"), "--t-steps", "1s", "--repeats", "2",
        "--tracking-uri", "none", "--quiet",
    ]  # fmt: skip
    assert evaluate(measuring) == 0
    out, err = capsys.readouterr()
    assert out.startswith("610 of 789 weights")
    assert "tensors hold what" not in err
    assert _becoming(here / "wpo_results" / "accuracy" / "weights.csv") == studied
    assert evaluate([*measuring, "--exclude", "memory*"]) == 0
    assert "2 tensors hold what the study optimised" in capsys.readouterr().err


def test_strategies_by_layer_reach_the_tiles_of_packed_and_unrolled_layers(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"module." + n: t for n, t in _state_dict().items()}, here / "net.pt")
    words = [
        *QUICK, "--weights", "net.pt", "--per", "layer", "--model", "nets.py:network",
        "--data", "nets.py:batches", "--repeats", "2", "--tracking-uri", "none", "--n-trials", "6",
    ]  # fmt: skip
    assert main(words) == 0
    out, err = capsys.readouterr()
    for name in ANALOGUE:
        assert f"module.{name}" in out
    assert "accuracy after programming" in out
    assert "tensors hold what" not in err


def _state_dict() -> dict[str, torch.Tensor]:
    namespace: dict[str, object] = {}
    exec(USERS_MODULE, namespace)  # the module is written to where the test runs
    return namespace["network"]().state_dict()  # type: ignore[operator]


def test_weights_are_listed_without_a_study(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"wte.weight": torch.randn(90, 4), "fc.weight": torch.randn(4, 4)}, "net.safetensors")
    assert main(["--list-weights", "--weights", "net.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "16 of 376 weights of net.safetensors are analogue (4.3%)" in out
    assert "96% digital because it is an embedding" in out
    assert main(["--list-weights", "--weights", "net.safetensors", "--include", "wte*"]) == 0
    assert "360 of 376 weights" in capsys.readouterr().out
    assert sorted(path.name for path in here.iterdir()) == ["net.safetensors", "nets.py"]


def test_a_matrix_is_transposed_on_request_and_the_problem_is_that_of_the_other_way(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = torch.randn(6, 6) * torch.tensor([1.0, 0.1, 1.0, 1.0, 0.1, 1.0])
    save_file({"fc.weight": weight}, "net.safetensors")
    save_file({"fc.weight": weight.T.contiguous()}, "turned.safetensors")
    baselines = []
    for words in (("net.safetensors",), ("turned.safetensors", "--transposed", "fc.weight")):
        options = ("--storage", "memory", "--tracking-uri", "none", "--output", "out")
        assert main([*QUICK, *options, "--weights", *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        baselines.append(next(line for line in lines if line.startswith("baseline TNMSE")))
    assert baselines[0] == baselines[1]


def test_a_study_that_beats_no_baseline_says_so_everywhere(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = [word for word in QUICK if word != "--no-report"]
    words = [*weak, "--sampler", "random", "--n-trials", "2", "--study-name", "weak"]
    assert main([*words, "--tracking-uri", "sqlite:///mlflow.db"]) == 0
    out, _ = capsys.readouterr()
    said = "The strategy found is no better than the baseline"
    assert f"WARNING: {said}" in out
    assert "More trials, or polishing" in out
    results = here / "wpo_results" / "weak"
    assert said in (results / "report.html").read_text()
    strategy = ProgrammingStrategy.load(results / "strategy.json")
    assert strategy.provenance["warning"].startswith(said)
    client = mlflow.MlflowClient("sqlite:///mlflow.db")
    experiment = client.get_experiment_by_name("wpo")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`wpo.kind` = 'study'")
    assert said in run.data.tags["mlflow.note.content"]
    assert "weights.csv" in {file.path for file in client.list_artifacts(run.info.run_id)}
