"""The report as an artifact of a study's run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import reported_studies
from mlflow import MlflowClient
from reported_studies import UNFINISHED
from tracked_studies import all_runs

from wpo_optuna.report.__main__ import main


def test_the_report_command_keeps_page_and_figures_with_the_studys_run(
    store: str, working_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(reported_studies.database(), working_directory / "wpo.db")
    output = working_directory / "page" / "report.html"
    arguments = ["--study-name", UNFINISHED, "--output", str(output), "--tracking-uri", store]
    assert main(arguments) == 0
    client = MlflowClient(store)
    (run,) = all_runs(client)
    assert run.info.run_name == UNFINISHED
    assert run.info.run_id in capsys.readouterr().out
    page = Path(client.download_artifacts(run.info.run_id, "report.html"))
    assert page.read_bytes() == output.read_bytes()
    kept = {file.path for file in client.list_artifacts(run.info.run_id, "figures")}
    written = {f"figures/{path.name}" for path in (output.parent / "figures").iterdir()}
    assert kept == written
    assert any(name.endswith(".png") for name in kept)
    assert any(name.endswith(".svg") for name in kept)
