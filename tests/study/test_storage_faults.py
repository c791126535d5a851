"""A disk that is full in the middle of a study."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from small_disk import SmallDisk
from test_sampling import content, mirror_of, objective_of, run

from wpo_optuna.errors import WeightProgrammingError
from wpo_optuna.problem import WeightProgrammingProblem
from wpo_optuna.storage import open_storage


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    try:
        disk = SmallDisk(tmp_path / "disk", 3)
    except OSError as error:
        pytest.skip(str(error))
    yield disk
    disk.unmount()


def test_a_full_disk_is_one_sentence_loses_nothing_and_the_study_goes_on_with_space(
    small_disk: SmallDisk, problem: WeightProgrammingProblem
) -> None:
    url, objective = f"sqlite:///{small_disk.directory}/wpo.db", objective_of(problem)
    mirror = mirror_of(open_storage(url), objective)
    with pytest.raises(WeightProgrammingError, match="full") as caught:
        run(mirror, 5000, batch=28)
    assert "\n" not in str(caught.value)
    with pytest.raises(WeightProgrammingError, match="is full; nothing was written"):
        mirror.study.set_user_attr("long", "x" * 2**20)
    n_stored = mirror.n_complete
    assert n_stored > 0
    small_disk.resize(64)
    study = run(mirror_of(open_storage(url), objective), n_stored + 28, batch=28).study
    whole = run(mirror_of(optuna.storages.InMemoryStorage(), objective), n_stored + 28, batch=28)
    assert content(study) == content(whole.study)
