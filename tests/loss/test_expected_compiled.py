"""What is compiled anew and what is not, and where executables are kept."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from expected_problems import device_problem, heavy_tailed_weights
from jax import monitoring
from numpy.typing import NDArray

from wpo_optuna.loss.expected import ExpectedEngine, compiled


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The compilations by XLA that happen inside."""
    found: list[str] = []

    def listener(event: str, duration: float, **_: object) -> None:
        if "backend_compile" in event:
            found.append(event)

    monitoring.register_event_duration_secs_listener(listener)
    try:
        yield found
    finally:
        monitoring.unregister_event_duration_listener(listener)


def evaluate(engine: ExpectedEngine, n: int = 3) -> tuple[NDArray[np.float64], ...]:
    x = np.random.default_rng(0).random((n, engine.problem.hypercube.dimension))
    return engine.tnmse(x), *engine.value_and_grad(x)


@pytest.fixture(scope="module")
def engine() -> ExpectedEngine:
    return ExpectedEngine(device_problem(rows=64))


def test_other_weights_layers_devices_and_batches_need_no_other_code(
    engine: ExpectedEngine,
) -> None:
    evaluate(engine)
    problems = [
        device_problem(weights=heavy_tailed_weights(), rows=64),
        device_problem(rows=24, test_out_features=8),
        device_problem("Hermes, one device", compensation="per column"),
        device_problem(g_err=0.2, f_lst=[2.0, None], f_max=3.0, forward={"inp_noise": 0.01}),
    ]
    with compilations() as found:
        for problem in problems:
            other = ExpectedEngine(problem)
            evaluate(other, 1)
            evaluate(other, 40)
            other.tnmse_of(problem.g_converter_baseline)
    assert not found


def test_the_users_settings_of_jax_stay_as_they_are(engine: ExpectedEngine) -> None:
    evaluate(engine)
    assert jax.numpy.asarray(1.5).dtype == "float32"
    assert jax.config.jax_compilation_cache_dir is None


def test_values_are_the_same_to_the_last_bit_in_any_batch_order_and_number_of_threads(
    engine: ExpectedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(4).random((50, engine.problem.hypercube.dimension))
    values, gradient = engine.tnmse(x), engine.value_and_grad(x)[1]
    np.testing.assert_array_equal(engine.tnmse(x[::-1]), values[::-1])
    np.testing.assert_array_equal(engine.tnmse(x[7])[0], values[7])
    np.testing.assert_array_equal(engine.value_and_grad(x[7])[1][0], gradient[7])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(5))
    np.testing.assert_array_equal(engine.tnmse(x), values)
    np.testing.assert_array_equal(engine.value_and_grad(x)[1], gradient)


PROCESS = """
import numpy as np
from small_problems import small_problem, small_rpu_config
from test_expected_compiled import compilations
from wpo_optuna.loss import make_engine
# Without compensation there is least to compile.
problem = small_problem(rpu_config=small_rpu_config(compensation=None))
engine = make_engine("expected", problem)
x = np.random.default_rng(0).random((20, engine.problem.hypercube.dimension))
with compilations() as found:
    values = engine.tnmse(x)
print(len(found), values.tobytes().hex())
"""


def test_a_second_process_reads_the_code_from_disk_and_has_the_same_values(tmp_path: Path) -> None:
    def run() -> tuple[int, str]:
        environment = {
            "PYTHONPATH": ":".join(sys.path),
            "XDG_CACHE_HOME": str(tmp_path),
            "OMP_NUM_THREADS": "1",
        }
        printed = subprocess.check_output(
            [sys.executable, "-W", "ignore", "-c", PROCESS], env=environment, text=True
        )
        n, values = printed.split()
        return int(n), values

    (first, cold), (second, warm) = run(), run()
    assert first > 0
    assert len(list((tmp_path / "wpo_optuna").iterdir())) == 1
    assert second == 0
    assert warm == cold


def double(x: jax.Array) -> jax.Array:
    return 2 * x


def test_what_is_on_disk_is_used_unless_it_is_damaged_or_others_could_have_written_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def n_compilations() -> int:
        fresh = importlib.reload(compiled)
        with compilations() as found:
            run = fresh.compiled(double, (), (np.ones(3),), fresh.jax_device("cpu"))
        with fresh.on(fresh.jax_device("cpu")):
            assert np.asarray(run(np.ones(3))).tolist() == [2, 2, 2]
        return len(found)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert n_compilations() > 0
    assert n_compilations() == 0
    (path,) = (tmp_path / "wpo_optuna").iterdir()
    for content in (b"", b"damaged"):
        path.write_bytes(content)
        assert n_compilations() > 0
        assert n_compilations() == 0
    # Where a home cannot be written, or can be by others, they lie among temporary files.
    path.parent.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for home in (str(tmp_path), "/proc/nowhere"):
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        assert n_compilations() > 0
        assert n_compilations() == 0
        (folder,) = tmp_path.glob("wpo_optuna-*")
        folder.chmod(0o777)
        assert n_compilations() > 0
        assert n_compilations() > 0
        shutil.rmtree(folder)
