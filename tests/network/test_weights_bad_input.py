"""Whatever is wrong with a user's network is said in one sentence that names it."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.network.weights import read_weights

STATE = {"fc1.weight": torch.randn(40, 30), "fc1.bias": torch.randn(40)}


class Unpickled:
    """Leaves a trace if it is ever unpickled."""

    trace: Path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.trace,))


def complaint(source: object, **options: object) -> str:
    with pytest.raises(InvalidArgument) as raised:
        read_weights(source, **options)  # type: ignore[arg-type]
    message = str(raised.value)
    assert "\n" not in message
    assert message.endswith(".")

    return message


def test_a_file_that_is_not_there_is_named_with_one_like_it(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    message = complaint(tmp_path / "modle.safetensors")
    assert "modle.safetensors" in message
    assert "no such file" in message
    assert f"did you mean '{tmp_path / 'model.safetensors'}'" in message


def test_an_unknown_kind_of_file_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"\x89HDF")
    message = complaint(tmp_path / "model.h5")
    assert "'.h5'" in message
    assert ".safetensors, .pt, .pth" in message


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_weight_that_is_no_number_is_named_by_file_and_tensor(
    tmp_path: Path, bad: float, mapped: bool
) -> None:
    from wpo_optuna.hardware import rpu_config

    broken = torch.randn(50, 20)
    broken[49, 19] = bad
    save_file(STATE | {"fc2.weight": broken}, tmp_path / "net.safetensors")
    mapping = rpu_config("pcm").mapping if mapped else None
    message = complaint(tmp_path / "net.safetensors", mapping=mapping)
    assert str(tmp_path / "net.safetensors") in message
    assert "'fc2.weight'" in message
    assert "NaN, infinite" in message
    # What is not a weight may hold anything.
    assert read_weights(tmp_path / "net.safetensors", exclude=["fc2*"]).count == 1200


def test_a_weight_beyond_float32_is_refused() -> None:
    assert "beyond float32" in complaint(
        {"a.weight": torch.full((2, 2), 1e39, dtype=torch.float64)}
    )


def save_safetensors(path: Path) -> None:
    save_file(STATE, path)


def save_torch(path: Path) -> None:
    torch.save(STATE, path)


def save_old_torch(path: Path) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)


def save_npy(path: Path) -> None:
    np.save(path, STATE["fc1.weight"].numpy())


def save_npz(path: Path) -> None:
    np.savez(path, w=STATE["fc1.weight"].numpy())


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("net.safetensors", save_safetensors),
        ("net.pt", save_torch),
        ("old.pt", save_old_torch),
        ("net.npy", save_npy),
        ("net.npz", save_npz),
    ],
)
def test_a_truncated_file_is_named_as_incomplete(
    tmp_path: Path, name: str, save: Callable[[Path], None], part: float
) -> None:
    path = tmp_path / name
    save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    message = complaint(path)
    assert str(path) in message
    assert re.search("complete|damaged", message)


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "net.npy", "net.npz"])
def test_a_file_of_something_else_is_not_taken_for_weights(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"These are no weights at all. " * 50)
    message = complaint(tmp_path / name)
    assert str(tmp_path / name) in message


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "net.npy", "net.npz"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    unreadable = Path("/proc/self/mem")
    if not unreadable.exists():
        pytest.skip("needs Linux's /proc for a file that cannot be read, even by root")
    (tmp_path / name).symlink_to(unreadable)
    assert str(tmp_path / name) in complaint(tmp_path / name)


def test_a_corrupt_array_in_an_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.npz"
    save_npz(path)
    content = bytearray(path.read_bytes())
    content[2000] ^= 0xFF
    path.write_bytes(content)
    assert "'w'" in complaint(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([torch.ones(2, 2)], "list"),
        ("hello", "str"),
        ({"epoch": 3, "best": 0.5}, "'epoch', 'best'"),
        ({}, "nothing"),
        ({"state_dict": {"epoch": 1}}, "'state_dict'"),
    ],
)
def test_a_checkpoint_that_is_no_state_dict_is_said_to_hold_what_it_holds(
    tmp_path: Path, content: object, expected: str
) -> None:
    torch.save(content, tmp_path / "net.pt")
    message = complaint(tmp_path / "net.pt")
    assert str(tmp_path / "net.pt") in message
    assert expected in message
    assert "state dict" in message


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_plain_pickle_is_never_unpickled(tmp_path: Path, protocol: int) -> None:
    Unpickled.trace = tmp_path / "unpickled"
    path = tmp_path / "net.pt"
    path.write_bytes(pickle.dumps({"a.weight": Unpickled()}, protocol=protocol))
    assert str(path) in complaint(path)
    assert not Unpickled.trace.exists()


@pytest.mark.parametrize("archive", [True, False])
def test_objects_in_a_pytorch_checkpoint_are_named_and_never_unpickled(
    tmp_path: Path, archive: bool
) -> None:
    Unpickled.trace = tmp_path / "unpickled"
    path = tmp_path / "net.pt"
    content = {"a.weight": torch.ones(2, 2), "optimizer": Unpickled()}
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    message = complaint(path)
    assert "never unpickled" in message
    assert "touch" in message or "getattr" in message
    assert not Unpickled.trace.exists()


def test_a_pickled_module_is_answered_with_how_to_give_it(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 3), tmp_path / "net.pt")
    message = complaint(tmp_path / "net.pt")
    assert "torch.nn.modules.linear.Linear" in message
    assert "model.state_dict()" in message


def test_a_torchscript_archive_is_refused_as_such(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(3, 3)).save(str(tmp_path / "net.pt"))
    assert "TorchScript" in complaint(tmp_path / "net.pt")


@pytest.mark.parametrize("name", ["net.npy", "net.npz"])
def test_arrays_of_objects_are_never_unpickled(tmp_path: Path, name: str) -> None:
    Unpickled.trace = tmp_path / "unpickled"
    array = np.array([Unpickled(), None], dtype=object)
    save = np.save if name.endswith("npy") else np.savez
    save(tmp_path / name, array)
    message = complaint(tmp_path / name)
    assert str(tmp_path / name) in message
    assert "object" in message.lower()
    assert not Unpickled.trace.exists()


def test_a_directory_without_weights_is_said_to_have_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    message = complaint(tmp_path)
    assert str(tmp_path) in message
    assert "model.safetensors" in message


def test_a_directory_of_several_unknown_files_is_not_guessed_at(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file(STATE, tmp_path / f"{name}.safetensors")
    assert "a.safetensors, b.safetensors" in complaint(tmp_path)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    save_file({"fc1.weight": STATE["fc1.weight"]}, tmp_path / "m-1.safetensors")
    index = {"weight_map": {"fc1.weight": "m-1.safetensors", "fc2.weight": "m-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "m-2.safetensors" in complaint(tmp_path)


def test_a_tensor_missing_from_its_shard_is_named(tmp_path: Path) -> None:
    save_file({"fc1.weight": STATE["fc1.weight"]}, tmp_path / "m-1.safetensors")
    index = {"weight_map": {"fc1.weight": "m-1.safetensors", "fc2.weight": "m-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "'fc2.weight'" in complaint(tmp_path)


@pytest.mark.parametrize(
    "index", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}']
)
def test_an_unreadable_index_is_named(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in complaint(tmp_path)


def test_a_network_without_weights_is_answered_with_what_it_has() -> None:
    state = {f"norm{i}.weight": torch.ones(4) for i in range(8)}
    message = complaint(state)
    assert "norm0.weight (1-d)" in message
    assert "3 more" in message
    assert "'*'" in message


def test_quantised_weights_alone_are_refused_with_the_reason() -> None:
    message = complaint({"fc.weight": torch.ones(4, 4, dtype=torch.int8)}, include=["fc*"])
    assert "fc.weight (of type int8)" in message


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize(
    ("pattern", "meant"), [("fc1", "'*fc1*'"), ("fc1.wieght", "'fc1.weight'"), ("zzz*", "it has")]
)
def test_a_pattern_that_matches_nothing_is_answered_with_one_that_does(
    argument: str, pattern: str, meant: str
) -> None:
    message = complaint(STATE, **{argument: [pattern]})
    assert argument in message
    assert repr(pattern) in message
    assert meant in message
    assert "fc1.weight" in message


def test_excluding_everything_leaves_nothing_to_read() -> None:
    assert "fc1.weight (excluded)" in complaint(STATE, exclude=["*"])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return 3", "int"),
        ("return None", "NoneType"),
        ("return [1.0, 2.0]", "list"),
        ("return {'a': 1}", "'a'"),
        ("return torch.nn.ReLU()", "ReLU without parameters"),
        ("return numpy.array(['x', 'y'])", "<U1"),
        ("return torch.tensor([1.0, float('nan')])", "NaN"),
        ("return torch.tensor([1, 2])", "int64"),
        ("return torch.empty(0)", "empty"),
        ("raise RuntimeError('no such\\n  layer.')", "RuntimeError: no such layer."),
        ("return network(1)", "TypeError"),
    ],
)
def test_a_function_that_fails_or_returns_something_else_is_named(
    tmp_path: Path, body: str, expected: str
) -> None:
    path = tmp_path / "net.py"
    path.write_text(f"import numpy, torch\ndef network():\n    {body}\n")
    message = complaint(f"{path}:network")
    assert f"{path}:network" in message
    assert expected in message
