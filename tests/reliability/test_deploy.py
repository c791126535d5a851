"""The files of docs/deploy: their form, and that their commands are such."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import mlflow.cli
import yaml

from wpo_optuna.study.__main__ import _parser

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"


def test_the_compose_file_is_one_and_starts_mlflow_with_options_that_it_has() -> None:
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    services = document["services"]
    assert {"database", "mlflow"} <= services.keys()
    for service in services.values():
        assert set(service.get("depends_on", {})) <= services.keys()
        named = {volume.partition(":")[0] for volume in service.get("volumes", [])}
        assert named <= document["volumes"].keys()
        for name, value in service["environment"].items():
            assert "PASSWORD" not in name or value.startswith("${PGPASSWORD:?"), "a password"
    command = services["mlflow"]["command"][-1].partition("exec mlflow server ")[2]
    options = {option for parameter in mlflow.cli.server.params for option in parameter.opts}
    flags = [word for word in shlex.split(command) if word.startswith("--")]
    assert flags
    assert set(flags) <= options


def test_the_slurm_script_is_one_and_its_command_is_the_studys() -> None:
    path = DEPLOY / "slurm.sh"
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text(encoding="utf-8")
    assert re.search(r"^#SBATCH --array=1-4$", text, flags=re.MULTILINE)
    # Slurm reads its options up to the first command.
    assert text.rindex("#SBATCH") < text.index("set -euo pipefail")
    command = text.partition("exec python -m wpo_optuna.study ")[2].replace("\\\n", "")
    _parser().parse_args(shlex.split(command.replace('"$@"', "--n-trials 5")))
