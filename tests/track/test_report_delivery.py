"""The report as an artifact of a study's run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import reported_studies
from mlflow import MlflowClient
from reported_studies import FINISHED, UNFINISHED

from wpo_optuna.report.__main__ import main


def test_the_report_command_keeps_page_and_figures_with_each_studys_run(
    store: str, working_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(reported_studies.directory() / "wpo.db", working_directory)
    output = working_directory / "page" / "report.html"
    arguments = ["--output", str(output), "--tracking-uri", store]
    assert main(["--study-name", UNFINISHED, *arguments]) == 0
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("wpo")
    assert experiment is not None

    def artifacts(name: str, directory: str | None = None) -> dict[str, bytes]:
        runs = client.search_runs([experiment.experiment_id])
        (run,) = (run for run in runs if run.info.run_name == name)
        assert run.info.run_id in told
        paths = [file.path for file in client.list_artifacts(run.info.run_id, directory)
                 if not file.is_dir]  # fmt: skip
        files = {path: client.download_artifacts(run.info.run_id, path) for path in paths}
        return {path: Path(file).read_bytes() for path, file in files.items()}

    told = capsys.readouterr().out
    assert artifacts(UNFINISHED)["report.html"] == output.read_bytes()
    figures = (output.parent / "figures").iterdir()
    written = {f"figures/{path.name}": path.read_bytes() for path in figures}
    assert artifacts(UNFINISHED, "figures") == written

    assert main(["--study-name", UNFINISHED, "--study-name", FINISHED, *arguments]) == 0
    told = capsys.readouterr().out
    for name in (UNFINISHED, FINISHED):
        assert artifacts(name, "comparison")["comparison/report.html"] == output.read_bytes()
