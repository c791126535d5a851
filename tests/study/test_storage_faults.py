"""A disk that is full in the middle of a study."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from test_sampling import content, mirror_of, objective_of, run

from wpo_optuna.errors import WeightProgrammingError
from wpo_optuna.problem import WeightProgrammingProblem
from wpo_optuna.storage import open_storage


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield disk
    # Lazily: connections that await the garbage collector would keep it busy.
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_one_sentence_loses_nothing_and_the_study_goes_on_with_space(
    small_disk: Path, problem: WeightProgrammingProblem
) -> None:
    url, objective = f"sqlite:///{small_disk}/wpo.db", objective_of(problem)
    mirror = mirror_of(open_storage(url), objective)
    with pytest.raises(WeightProgrammingError, match="full") as caught:
        run(mirror, 5000, batch=28)
    assert "\n" not in str(caught.value)
    n_stored = mirror.n_complete
    assert n_stored > 0
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    study = run(mirror_of(open_storage(url), objective), n_stored + 28, batch=28).study
    whole = run(mirror_of(optuna.storages.InMemoryStorage(), objective), n_stored + 28, batch=28)
    assert content(study) == content(whole.study)
