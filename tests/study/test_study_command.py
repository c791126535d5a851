"""``python -m wpo_optuna.study``, as a user runs it: real processes, files and stores."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import optuna
import pytest
import torch
import yaml
from optuna.trial import TrialState
from safetensors.torch import save_file

from wpo_optuna import ProgrammingStrategy
from wpo_optuna.study.problem_setup import set_up_problem
from wpo_optuna.study.settings import StudySettings

ROOT = Path(__file__).parents[2]

# A tile so small that scoring through aihwkit takes little time.
HARDWARE = """
from aihwkit.inference import GlobalDriftCompensation, PCMLikeNoiseModel
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.parameters import MappingParameter


def small():
    return InferenceRPUConfig(
        noise_model=PCMLikeNoiseModel(),
        drift_compensation=GlobalDriftCompensation(),
        mapping=MappingParameter(max_input_size=48),
    )
"""
SMALL = ("--rpu-config", "hardware.py:small", "--test-out-features", "8", "--t-steps", "1s,1h")
QUICK = (*SMALL, "--no-self-check", "--finalists", "2", "--seed", "3", "--no-report")
# Of two equal finalists the other one wins once in 400 times, because the tile's noise has no seed.
REPEATABLE = (*QUICK, "--finalists", "1")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "hardware.py").write_text(HARDWARE)
    return tmp_path


def study(directory: Path, *words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), cwd=directory, env=environment(), capture_output=True, text=True,
        timeout=timeout,
    )  # fmt: skip


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "wpo_optuna.study", *words]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def written(directory: Path) -> list[str]:
    return sorted(
        p.name for p in directory.iterdir() if p.name not in ("hardware.py", "__pycache__")
    )


@dataclass(frozen=True)
class FinishedStudy:
    """A study of 120 trials, all of it: tracked, with a report.

    Attributes:
        directory: where it ran.
        results: a copy of its results, for the study may be continued.
        printed: what it printed.
    """

    directory: Path
    results: Path
    printed: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    directory, results = tmp_path_factory.mktemp("study"), tmp_path_factory.mktemp("results")
    (directory / "hardware.py").write_text(HARDWARE)
    first = study(directory, *REPEATABLE, "--n-trials", "120", "--report")
    assert first.returncode == 0, first.stderr
    assert "\r" not in first.stderr, "a progress bar where stderr is no terminal"
    shutil.copytree(directory / "wpo_results" / "digits-small-de", results, dirs_exist_ok=True)
    return FinishedStudy(directory, results, first.stdout)


def test_a_study_runs_is_recorded_everywhere_and_resumes_with_the_same_command(
    finished: FinishedStudy,
) -> None:
    directory = finished.directory
    for word in (
        "baseline TNMSE", "best TNMSE", "95 % interval", "improvement", "f_lst", "digits-small-de",
        "sqlite:///wpo.db", "mlflow ui", "strategy.json", "--n-trials 240", "s from the command",
    ):  # fmt: skip
        assert word in finished.printed

    stored = optuna.load_study(
        study_name="digits-small-de", storage=f"sqlite:///{directory}/wpo.db"
    )
    complete = stored.get_trials(states=(TrialState.COMPLETE,))
    assert len(complete) == 120
    assert {"tnmse", "baseline", "f_lst", "g_lst", "k_w"} <= complete[0].user_attrs.keys()

    client = mlflow.MlflowClient(f"sqlite:///{directory}/mlflow.db")
    experiment = client.get_experiment_by_name("wpo")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(children) == 120
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.run_name == "digits-small-de"
    assert parent.info.status == "FINISHED"
    artifacts = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"strategy.json", "settings.yaml", "report.html", "figures"} <= artifacts
    figures = {a.path for a in client.list_artifacts(parent.info.run_id, "figures")}
    assert {figure.rpartition(".")[2] for figure in figures} == {"png", "svg"}

    again = study(directory, *REPEATABLE, "--n-trials", "120")
    assert again.returncode == 0, again.stderr
    assert "0 of them new" in again.stdout
    more = study(directory, *REPEATABLE, "--n-trials", "150")
    assert more.returncode == 0, more.stderr
    assert "30 of them new" in more.stdout
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert len(runs) == 151


def test_the_saved_settings_repeat_the_study_and_the_strategy_is_the_one_scored(
    finished: FinishedStudy, directory: Path
) -> None:
    config = finished.results / "settings.yaml"
    saved = yaml.safe_load(config.read_text())
    assert saved["test_out_features"] == 8
    names = ("engine", "n_trials", "study_name")
    assert [saved[name] for name in names] == ["expected", 120, "digits-small-de"]
    assert (saved["g_min"], saved["g_max"]) == (0.0, 25.0)

    words = ("--config", str(config), "--tracking-uri", "none", "--no-report")
    second = study(directory, *words)
    assert second.returncode == 0, second.stderr
    repeated = directory / "wpo_results" / "digits-small-de" / "strategy.json"
    strategy = ProgrammingStrategy.load(finished.results / "strategy.json")
    assert ProgrammingStrategy.load(repeated) == strategy

    url = f"sqlite:///{finished.directory}/wpo.db"
    stored = optuna.load_study(study_name="digits-small-de", storage=url)
    winner = stored.trials[strategy.provenance["trial_number"]]
    f_lst, g_lst = (winner.user_attrs[name] for name in ("f_lst", "g_lst"))
    assert strategy == ProgrammingStrategy(f_lst, g_lst, 0.0, 25.0).normalised([1.0, None])
    told = re.search(r"best TNMSE\s+([\d.]+)", finished.printed)
    assert told is not None
    assert float(told[1]) == pytest.approx(strategy.provenance["tnmse"]["mean"], abs=1e-5)


def test_a_users_checkpoint_is_optimised_against_a_strategy_file(directory: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    tensors = {
        f"{name}.weight": torch.randn(size, generator=generator)
        for name, size in (("fc1", (40, 30)), ("fc2", (10, 40)), ("embed", (50, 8)))
    }
    save_file(tensors | {"fc1.bias": torch.zeros(40)}, directory / "net.safetensors")
    pairs = ((0.0, 12.0, 25.0), (25.0, 12.0, 0.0))
    ProgrammingStrategy((1.0,), pairs, 0.0, 25.0).save(directory / "pair.json")
    words = ("--weights", "net.safetensors", "--include", "fc*.weight", "--baseline", "pair.json")
    result = study(directory, *QUICK, *words, "--n-trials", "40", "--tracking-uri", "none")
    assert result.returncode == 0, result.stderr
    assert re.search(r"1,600 of 2,040 weights of .*net.safetensors.* in 2 tensors", result.stdout)
    assert "study            net-small-de" in result.stdout
    strategy = ProgrammingStrategy.load(
        directory / "wpo_results" / "net-small-de" / "strategy.json"
    )
    assert strategy.provenance["tnmse"]["mean"] < strategy.provenance["baseline"]["mean"]
    assert strategy.provenance["noise_model"] == "PCMLikeNoiseModel"


def test_strategies_by_layer_are_compared_in_error_and_accuracy(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from wpo_optuna.study.__main__ import main

    network = """
        import torch
        from torch import nn

        def network():
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))
            nn.init.zeros_(net[2].weight)
            return net

        def trained():
            return {"module." + name: value for name, value in network().state_dict().items()}

        def batches():
            return [(torch.randn(20, 12), torch.zeros(20, dtype=torch.int64))]
        """
    (directory / "net.py").write_text(textwrap.dedent(network))
    words = ("--weights", "net.py:trained", "--per", "layer", "--model", "net.py:network")
    result = study(directory, *QUICK, *words, "--data", "net.py:batches", "--n-trials", "20",
                   "--repeats", "2", "--trial-runs", "none")  # fmt: skip
    assert result.returncode == 0, result.stderr
    for told in (
        "module.0.weight", "network-wide", "per layer", "all weights are zero", "module.2.weight",
        "accuracy after programming",
    ):  # fmt: skip
        assert told in result.stdout
    results = directory / "wpo_results" / "trained-small-de"
    for name in ("strategy.json", "layers/layers.csv", "layers/over_time.svg"):
        assert (results / name).is_file()
    assert ProgrammingStrategy.load(results / "module.0.weight" / "strategy.json").f_lst

    client = mlflow.MlflowClient(f"sqlite:///{directory}/mlflow.db")
    experiment = client.get_experiment_by_name("wpo")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    (top,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    below = [run.info.run_name for run in runs if run is not top]
    assert top.info.run_name == "trained-small-de"
    assert sorted(below) == [
        "accuracy of trained-small-de by layer",
        "trained-small-de/module.0.weight",
    ]
    assert top.data.metrics.keys() >= {"layers_tnmse_network_wide", "layers_tnmse_per_layer"}

    (directory / "other.py").write_text("from torch import nn\ndef f(): return nn.Linear(3, 3)\n")
    before = written(directory)
    monkeypatch.chdir(directory)
    words = (*QUICK, *words[:-1], "other.py:f", "--data", "net.py:batches")
    assert main([*words, "--storage", "sqlite:///new.db"]) == 1
    assert "no analog layer of the network holds 'module.0.weight'" in capfd.readouterr().err
    assert written(directory) == before


def test_what_a_study_writes_is_what_mlruns_gitignore_lists(
    finished: FinishedStudy, tmp_path: Path
) -> None:
    ignored = ROOT / "mlruns.gitignore"
    git = ["git", "-c", f"core.excludesFile={ignored}"]
    git += [f"--git-dir={tmp_path / 'repository'}", f"--work-tree={finished.directory}"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "repository" / "info").mkdir(exist_ok=True)
    (tmp_path / "repository" / "info" / "exclude").write_text("hardware.py\n__pycache__/\n")
    assert {"wpo.db", "mlflow.db", "wpo_results"} <= set(written(finished.directory))
    status = subprocess.run(
        [*git, "status", "--porcelain"],
        cwd=finished.directory, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert status.stdout == ""
    (finished.directory / "notes.txt").touch()
    try:
        seen = subprocess.check_output([*git, "status", "--porcelain"], cwd=finished.directory)
    finally:
        (finished.directory / "notes.txt").unlink()
    assert seen == b"?? notes.txt\n"

    own = (ROOT / ".gitignore").read_text().splitlines()
    patterns = [line for line in ignored.read_text().splitlines() if line and line[0] != "#"]
    assert set(patterns) <= set(own)


def interrupt(directory: Path, n_trials: int, *words: str) -> str:
    """What a study prints that is interrupted once it has so many trials, with exit status 130."""
    process = subprocess.Popen(
        command(*words), cwd=directory, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while len(_states(f"sqlite:///{directory}/wpo.db")) < n_trials:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "To go on" in output
    assert "Traceback" not in errors
    return output


def _states(url: str) -> list[TrialState]:
    try:
        return [
            t.state for t in optuna.load_study(study_name="digits-small-de", storage=url).trials
        ]
    except Exception:  # the file or the study does not exist yet
        return []


def test_ctrl_c_saves_what_is_finished_and_the_study_goes_on_from_there(directory: Path) -> None:
    words = (*QUICK, "--tracking-uri", "none", "--engine", "aihwkit", "--n-trials")
    assert "--n-trials 5000" in interrupt(directory, 20, *words, "5000")
    states = _states(f"sqlite:///{directory}/wpo.db")
    assert set(states) == {TrialState.COMPLETE}
    resumed = study(directory, *words, str(len(states) + 10))
    assert resumed.returncode == 0, resumed.stderr
    assert "10 of them new" in resumed.stdout


def test_ctrl_c_while_the_result_is_scored_says_how_to_go_on_as_well(directory: Path) -> None:
    words = (*SMALL, "--tracking-uri", "none", "--engine", "montecarlo", "--n-trials", "10")
    assert "--n-trials 10" in interrupt(directory, 10, *words)


def test_a_study_of_another_problem_is_refused_and_the_difference_is_told(
    finished: FinishedStudy,
) -> None:
    before = content(finished.directory / "wpo.db")
    refused = study(finished.directory, *QUICK, "--n-trials", "200", "--nbins", "5")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "nbins was 6" in refused.stderr
    assert "now 5" in refused.stderr
    assert "another name, such as --study-name 'digits-small-de-2'" in refused.stderr
    assert content(finished.directory / "wpo.db") == before


def content(database: Path) -> list[str]:
    """All of a database in SQL; its file may change when SQLite takes its log into it."""
    with closing(sqlite3.connect(database)) as connection:
        return list(connection.iterdump())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--f-lst", "1,0"], ["--f-lst", "0.0", "positive"]),
        (["--f-lst", "1,two"], ["--f-lst", "'two'", "none"]),
        (["--t-steps", "1h,1s"], ["--t-steps", "ascend"]),
        (["--rpu-config", "reram-wan", "--t-steps", "1s,1h"], ["--t-steps", "3600", "ReRamWan"]),
        (["--g-min", "30"], ["--g-min 30, --g-max 25"]),
        (["--nbins", "1"], ["--nbins 1", "at least 2"]),
        (["--weights", "absent.safetensors"], ["--weights 'absent.safetensors'"]),
        (["--weights", "nan.npy"], ["nan.npy", "NaN"]),
        (["--baseline", "triple:1"], ["--baseline 'triple:1'", "npair"]),
        (["--storage", "sqlite:////proc/none/wpo.db"], ["sqlite:////proc/none/wpo.db"]),
        (["--storage", "sqlite:///text.db"], ["text.db"]),
        (["--config", "absent.yaml"], ["absent.yaml"]),
        (["--sampler", "tpe", "--popsize", "3"], ["--popsize 3", "differential"]),
        (["--n-trials", "many"], ["--n-trials 'many'", "integer"]),
        (["--n-trials", "0"], ["--n-trials", "0", "greater than or equal to 1"]),
        (["--maxiter", "-1"], ["--maxiter '-1'", "greater than or equal to 0"]),
        (["--mutation", "5,5"], ["--mutation", "5"]),
        (["--recombination", "3"], ["--recombination 3"]),
        (["--strategy", "foo"], ["--strategy 'foo'", "best1bin"]),
        (["--popsize", "0"], ["--popsize '0'"]),
        (["--device", "abacus"], ["--device 'abacus'", "cuda"]),
        (["--tracking-uri", "foo://x"], ["--tracking-uri 'foo://x'", "http"]),
        (["--experiment", ""], ["--experiment ''", "1 character"]),
        (["--output", "text.db/results"], ["--output", "text.db", "directory"]),
        (["--study-name", "../elsewhere"], ["--study-name '../elsewhere'", ".."]),
        (["--g-max", "40"], ["--g-max 40", "0 to 25 µS"]),
        (["--model", "net.py:f"], ["--model 'net.py:f'", "per layer"]),
        (["--per", "layer", "--data", "net.py:f"], ["--data 'net.py:f'", "model"]),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    directory: Path, words: list[str], told: list[str], capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from wpo_optuna.study.__main__ import main

    (directory / "text.db").write_text("no database\n" * 100)
    np.save(directory / "nan.npy", np.array([[1.0, np.nan]]))
    before = written(directory)
    monkeypatch.chdir(directory)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(words) == 1
    captured = capfd.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    for piece in told:
        assert piece in captured.err
    assert written(directory) == before


def test_wrong_usage_exits_with_2_and_writes_nothing(directory: Path) -> None:
    for words in (["--no-such-option"], ["--sampler", "annealing"], ["--engine", "exact"]):
        result = study(directory, *words)
        assert result.returncode == 2
        assert words[0] in result.stderr
        assert "Traceback" not in result.stderr
    assert written(directory) == []


def test_what_needs_no_torch_to_be_refused_is_refused_without_it(directory: Path) -> None:
    words = ("--f-lst 1,two", "--t-steps 1x", "--rpu-config pmc", "--weights absent.npy",
             "--study-name ../x", "--n-trials 0")  # fmt: skip
    code = (
        "import sys, wpo_optuna.study.__main__ as s\n"
        f"for words in {words!r}: assert s.main(words.split()) == 1\n"
        "print(sorted({'torch', 'aihwkit', 'mlflow', 'optuna'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=directory, env=environment(), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert result.stdout == "[]\n"
    assert len(result.stderr.splitlines()) == len(words)


def test_a_study_is_named_after_network_hardware_and_sampler() -> None:
    named = set_up_problem(StudySettings(rpu_config="hermes", sampler="tpe"))
    assert named.study_name == "digits-hermes-tpe"


def test_help_and_the_list_of_hardware_need_no_study(directory: Path) -> None:
    assert "--sampler" in study(directory, "--help").stdout
    listed = study(directory, "--list-rpu-configs").stdout
    for name in ("pcm", "standard-hwa", "reram-wan", "reram-cmo", "hermes"):
        assert name in listed
    assert written(directory) == []


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, wpo_optuna.study.__main__ as s\n"
        "try: s.main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'aihwkit', 'mlflow', 'optuna', 'scipy', 'numpy'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert json.loads(result.stderr.replace("'", '"')) == []


def test_debug_shows_where_an_error_came_from(directory: Path) -> None:
    result = study(directory, "--nbins", "1", "--debug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
