"""Reading a checkpoint takes the same memory whatever the checkpoint's size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

MEGABYTE = 2**20

# Linux counts what the parent process had when it started this one towards ru_maxrss, but not
# towards the high-water mark in /proc.
PROGRAM = """
import json, sys
from wpo_optuna.network.weights import read_weights
def peak_memory():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
before = peak_memory()
read = read_weights(sys.argv[1])
told = [read.count, float(read.weights[0]), float(read.weights[-1]), float(read.weights.median())]
print(json.dumps([before, peak_memory(), *told]))
"""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc"
)


def write_safetensors(path: Path, tensors: dict[str, tuple[int, int]], rows: torch.Tensor) -> None:
    """A safetensors file whose tensors repeat some rows, written without ever being in memory."""
    header, offset = {}, 0
    for name, shape in tensors.items():
        end = offset + shape[0] * shape[1] * rows.itemsize
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    data = rows.numpy().tobytes()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(offset // len(data)):
            file.write(data)


def gaussian_rows() -> torch.Tensor:
    rows = 0.02 * torch.randn(1024, 4096, generator=torch.Generator().manual_seed(0))
    rows[3, 5], rows[1000, 17] = -0.5, 0.75
    return rows


def check_reading(path: Path, n_bytes: int, most: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)],
        capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    before, peak, count, lowest, highest, median = json.loads(done.stdout)
    assert 4 * count == n_bytes
    assert (lowest, highest) == (-0.5, 0.75)
    assert abs(median) < 1e-4
    assert peak - before < most
    assert peak < 1024 * MEGABYTE


def test_a_quarter_of_a_gigabyte_takes_much_less_memory(tmp_path: Path) -> None:
    rows = gaussian_rows()
    torch.save({f"layers.{i}.weight": rows.repeat(4, 1) for i in range(4)}, tmp_path / "net.pt")
    check_reading(tmp_path / "net.pt", 16 * rows.nbytes, 190 * MEGABYTE)


@pytest.mark.slow
def test_four_gigabytes_in_shards_take_less_than_one_gigabyte_in_all(tmp_path: Path) -> None:
    shard_of = {}
    for shard in range(4):
        file = f"model-{shard + 1:05}-of-00004.safetensors"
        # One tensor of half a gigabyte, as large models have, beside smaller ones.
        shapes = {
            f"layers.{shard}.large.weight": (32768, 4096),
            f"layers.{shard}.a.weight": (16384, 4096),
            f"layers.{shard}.b.weight": (16384, 4096),
        }
        write_safetensors(tmp_path / file, shapes, gaussian_rows())
        shard_of |= dict.fromkeys(shapes, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
    check_reading(tmp_path, 4 * 2**30, 300 * MEGABYTE)
