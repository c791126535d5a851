"""Reading a checkpoint takes the same memory whatever the checkpoint's size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

MEGABYTE = 2**20

# Linux counts what the parent process had when it started this one towards ru_maxrss, but not
# towards the high-water mark in /proc.
PEAK_MEMORY = """
def peak_memory():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
"""

READER = (
    PEAK_MEMORY
    + """
import json, sys
from wpo_optuna.network.weights import read_weights
before = peak_memory()
weights = read_weights(sys.argv[1])
peak = peak_memory()
median = float(weights.quantiles(3)[1])
print(json.dumps({
    "before": before, "peak": peak, "count": weights.count, "median": median,
    "extremes": [float(weights.weights[0]), float(weights.weights[-1])],
    "relative_error": weights.distribution.relative_error,
}))
"""
)


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc"
)


def run_in_another_process(program: str, *arguments: str) -> dict:
    output = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return json.loads(output.stdout)


def write_safetensors(path: Path, tensors: dict[str, tuple[int, int]], rows: torch.Tensor) -> None:
    """A safetensors file whose tensors repeat some rows, written without ever being in memory."""
    type_name = {torch.float32: "F32", torch.bfloat16: "BF16"}[rows.dtype]
    header, offset = {}, 0
    for name, shape in tensors.items():
        end = offset + shape[0] * shape[1] * rows.itemsize
        header[name] = {"dtype": type_name, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    data = rows.view(torch.uint8).numpy().tobytes()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(offset // len(data)):
            file.write(data)


def gaussian_rows(dtype: torch.dtype, columns: int = 4096) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = (0.02 * torch.randn(1024, columns, generator=generator)).to(dtype)
    rows[3, 5], rows[1000, 17] = -0.5, 0.75
    return rows


def check_distribution(seen: dict, rows: torch.Tensor) -> None:
    assert seen["extremes"] == [-0.5, 0.75]
    # The file repeats each number equally often, so that its median is that of the rows.
    values = np.sort(rows.float().numpy().ravel())
    low, high = values[len(values) // 2 - 1], values[len(values) // 2]
    moved = seen["relative_error"] * max(abs(low), abs(high))
    assert low - moved <= seen["median"] <= high + moved


def check_reading(path: Path, rows: torch.Tensor) -> None:
    seen = run_in_another_process(READER, str(path))
    assert seen["count"] * rows.itemsize > 0.99 * path.stat().st_size
    check_distribution(seen, rows)
    assert seen["peak"] - seen["before"] < 200 * MEGABYTE
    assert seen["peak"] < 1024 * MEGABYTE


def test_a_third_of_a_gigabyte_of_safetensors_takes_less_than_two_hundred_megabytes(
    tmp_path: Path,
) -> None:
    rows = gaussian_rows(torch.float32)
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {f"layers.{i}.weight": (5120, 4096) for i in range(4)}, rows)
    check_reading(path, rows)


def test_a_third_of_a_gigabyte_of_pytorch_checkpoint_takes_less_than_two_hundred_megabytes(
    tmp_path: Path,
) -> None:
    rows = gaussian_rows(torch.float32)
    path = tmp_path / "model.pt"
    torch.save({f"layers.{i}.weight": rows.repeat(5, 1) for i in range(4)}, path)
    check_reading(path, rows)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_gigabytes_in_shards_take_less_than_one_gigabyte_in_all(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    rows = gaussian_rows(dtype)
    shard_of = {}
    for shard in range(4):
        file = f"model-{shard + 1:05}-of-00004.safetensors"
        # One tensor of half a gigabyte, as large models have, beside smaller ones.
        n_rows = 2**30 // (4096 * rows.itemsize)
        shapes = {
            f"layers.{shard}.large.weight": (n_rows // 2, 4096),
            f"layers.{shard}.a.weight": (n_rows // 4, 4096),
            f"layers.{shard}.b.weight": (n_rows // 4, 4096),
        }
        write_safetensors(tmp_path / file, shapes, rows)
        shard_of |= dict.fromkeys(shapes, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))

    seen = run_in_another_process(READER, str(tmp_path))

    assert seen["count"] * rows.itemsize == 4 * 2**30
    check_distribution(seen, rows)
    assert seen["peak"] - seen["before"] < 300 * MEGABYTE
    assert seen["peak"] < 1024 * MEGABYTE


def test_the_measure_of_memory_sees_a_tensor_held_in_memory() -> None:
    program = (
        PEAK_MEMORY
        + """
import json
import numpy as np
before = peak_memory()
held = np.ones(2**29 // 8)
print(json.dumps({"held": peak_memory() - before}))
"""
    )
    assert run_in_another_process(program)["held"] > 0.9 * 2**29
