"""Compiled code on disk is not used after any of its sources has changed."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import pytest

import wpo_optuna.loss.compiled
from wpo_optuna.loss import (
    expected_error,
    expected_error_gradient,
    expected_gradient,
    expected_kernel,
    expected_readout,
)
from wpo_optuna.loss.compiled import hash_of_sources

MODULES = (
    expected_kernel,
    expected_gradient,
    expected_error,
    expected_error_gradient,
    expected_readout,
)
SOURCES = Path(wpo_optuna.loss.__file__).parent


def modules_compiled_in() -> set[str]:
    """Files of the modules of this package that the compiled modules use."""
    used = set()
    for module in MODULES:
        for value in vars(module).values():
            of = inspect.getmodule(value)
            if of is not None and of.__name__.startswith("wpo_optuna.loss."):
                used.add(Path(str(of.__file__)).name)
    return used


@pytest.mark.parametrize("changed", [*sorted(modules_compiled_in()), "gamma_excess.py"])
def test_a_change_in_any_source_changes_the_stamp(changed: str, tmp_path: Path) -> None:
    for path in SOURCES.glob("*.py"):
        shutil.copy(path, tmp_path)
    before = hash_of_sources(tmp_path)
    assert before == hash_of_sources(SOURCES)
    with (tmp_path / changed).open("a") as file:
        file.write("\n# changed\n")
    assert hash_of_sources(tmp_path) != before


def test_without_a_folder_to_keep_it_in_code_is_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def njit_on_a_read_only_system(cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(**options)

    monkeypatch.setattr(wpo_optuna.loss.compiled, "njit", njit_on_a_read_only_system)
    doubled = wpo_optuna.loss.compiled.compiled(lambda x: 2 * x)
    assert doubled(3.0) == 6.0
    assert hasattr(doubled, "py_func")


def test_every_compiled_function_has_the_stamp_and_goes_into_its_callers() -> None:
    compiled = [
        value for module in MODULES for value in vars(module).values() if hasattr(value, "py_func")
    ]
    assert len(compiled) > 30
    for function in compiled:
        assert function._cache._cache_file._source_stamp == hash_of_sources(SOURCES)
        assert function.targetoptions["forceinline"]


GRADIENTS = """
import numpy as np
from small_problems import small_problem
from wpo_optuna.loss import make_engine
engine = make_engine("expected", small_problem())
x = np.random.default_rng(0).random((100, engine.problem.hypercube.dimension))
print(engine.tnmse(x).tobytes().hex(), engine.value_and_grad(x)[1].tobytes().hex())
"""


@pytest.mark.slow
def test_code_read_from_disk_gives_the_values_of_the_process_that_compiled_it(
    tmp_path: Path,
) -> None:
    def values_of_a_process() -> str:
        return subprocess.check_output(
            [sys.executable, "-W", "ignore", "-c", GRADIENTS],
            env={"PYTHONPATH": ":".join(sys.path), "NUMBA_CACHE_DIR": str(tmp_path)},
            text=True,
        )

    compiling = values_of_a_process()
    assert any(tmp_path.rglob("*.nbc"))
    assert values_of_a_process() == compiling
