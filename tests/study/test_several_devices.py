"""Studies of strategies for several devices at once."""

from __future__ import annotations

import csv
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from small_problems import small_problem

from wpo_optuna import run_study
from wpo_optuna.hardware.device_spread import DeviceFactors, with_factors
from wpo_optuna.study import __main__ as study_command
from wpo_optuna.study.problem_setup import set_up_problem
from wpo_optuna.study.scoring import Scores
from wpo_optuna.study.settings import StudySettings

pytestmark = pytest.mark.usefixtures("few_draws")

SHORT = ["--tracking-uri", "none", "--no-self-check", "--finalists", "1", "--quiet"]

TWO_DEVICES = """
from wpo_optuna.hardware import rpu_config
from wpo_optuna.hardware.device_spread import DeviceFactors, with_factors

def small():
    config = rpu_config("pcm")
    config.mapping.max_input_size = 24
    return config

def devices():
    for factor in (1.0, 1.5):
        yield with_factors(small(), DeviceFactors(programming=factor))

def none():
    return []

def fails():
    yield rpu_config("pcm")
    raise RuntimeError("no more")
"""


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "devices.csv").open(encoding="utf-8")))


def test_each_device_has_its_scores_beside_a_strategy_of_its_own(tmp_path: Path) -> None:
    problem = small_problem()
    # One device errs in programming, the other drifts: no strategy is the best for both.
    factors = DeviceFactors(programming=4.0), DeviceFactors(nu_mean=4.0, nu_std=6.0)
    hardware = [with_factors(problem.rpu_config, f) for f in factors]
    problem = small_problem(rpu_config=hardware[0], other_rpu_configs=hardware[1:], over="worst")
    arguments = {"tracking_uri": False, "output": tmp_path, "report": False, "n_trials": 200}
    result = run_study(problem, study_name="two", storage="memory", **arguments)
    devices = result.scores.devices
    assert len(devices) == 2
    for device in devices:
        # The same noise for both: what is lost is not luck, but for the draws' bias.
        assert device.own.mean <= 1.01 * device.common.mean
    assert max(device.lost for device in devices) > 0.005
    least = min(device.improvement for device in devices)
    assert result.scores.improvement == pytest.approx(least, abs=0.02)
    assert Scores.from_json(result.scores.to_json()) == result.scores
    assert [float(row["common_tnmse"]) for row in rows(tmp_path / "two")] == [
        device.common.mean for device in devices
    ]
    metrics = result.scores.metrics()
    assert metrics["improvement_percent_worst_device"] == pytest.approx(100 * least)


def test_names_and_functions_that_yield_several_are_taken_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lab.py").write_text(TWO_DEVICES)
    setup = set_up_problem(StudySettings(rpu_config="hermes,lab.py:devices,reram-wan"))
    models = [type(p.noise_model).__name__ for p in setup.problem.on_each_device]
    pcm = "ScaledNoiseModel"
    assert models == ["HermesNoiseModel", pcm, pcm, "ReRamWan2022NoiseModel"]
    assert setup.study_name == "digits-hermes-devices-reram-wan-de"
    assert setup.problem.g_max == pytest.approx(20.7)  # what all of them know
    assert setup.problem.t_steps == (1.0, 86400.0, 2 * 86400.0)


def test_settings_beside_the_results_go_on_with_several_devices_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lab.py").write_text(TWO_DEVICES)
    command = ["--rpu-config", "lab.py:devices", "--n-trials", "30", *SHORT, "--no-report"]
    assert study_command.main(command) == 0
    assert "devices          2, of which the above is the mean" in capsys.readouterr().out
    folder = tmp_path / "wpo_results" / "digits-devices-de"
    settings = yaml.safe_load((folder / "settings.yaml").read_text())
    assert settings["rpu_config"] == f"{tmp_path / 'lab.py'}:devices"
    monkeypatch.chdir("/")
    again = ["--config", str(folder / "settings.yaml"), "--quiet"]
    again += [
        "--storage",
        f"sqlite:///{tmp_path}/wpo.db",
        "--output",
        str(tmp_path / "wpo_results"),
    ]
    assert study_command.main(again) == 0
    assert "30, 0 of them new" in capsys.readouterr().out


def test_devices_around_the_given_one_are_the_same_each_time() -> None:
    settings = StudySettings(device_spread=0.3, over="worst")
    problem = set_up_problem(settings).problem
    assert set_up_problem(settings).problem.fingerprint == problem.fingerprint
    names = [str(alone.noise_model) for alone in problem.on_each_device]
    assert len(set(names)) == 9
    assert names[1].startswith("PCMLikeNoiseModel with programming x ")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--rpu-config", "pcm,hermis"], "'hermis' is not known (did you mean 'hermes'?)"),
        (["--rpu-config", "pcm,"], "'' is not known"),
        (["--rpu-config", "pcm,hermes", "--device-spread", "0.2"], "stands for 2"),
        (["--rpu-config", "lab.py:none"], "returned no configuration"),
        (["--rpu-config", "lab.py:fails"], "raised RuntimeError: no more"),
        (["--rpu-config", "pcm,reram-wan", "--t-steps", "1h"], "ReRamWan2022NoiseModel does not"),
        (["--rpu-config", "pcm,reram-cmo", "--g-max", "50"], "9 to 25 µS"),
        (["--device-spread", "0"], "--device-spread '0' cannot be used"),
        (["--over", "best"], "--over"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lab.py").write_text(TWO_DEVICES)
    with suppress(SystemExit):  # of wrong usage
        assert study_command.main([*given, *SHORT]) == 1
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error
    assert {path.name for path in tmp_path.iterdir()} <= {"lab.py", "__pycache__"}
