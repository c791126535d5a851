"""Whatever is wrong with a user's network is said in one sentence that names it."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.hardware import rpu_config
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
    assert "there is no such file as" in message
    assert f"did you mean '{tmp_path / 'model.safetensors'}'" in message


@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_weight_that_is_no_number_is_named_by_file_and_tensor(
    tmp_path: Path, bad: float, mapped: bool
) -> None:
    broken = torch.randn(50, 20)
    broken[49, 19] = bad
    save_file(STATE | {"fc2.weight": broken}, tmp_path / "net.safetensors")
    mapping = rpu_config("pcm").mapping if mapped else None
    message = complaint(tmp_path / "net.safetensors", mapping=mapping)
    assert f"tensor 'fc2.weight' of {tmp_path / 'net.safetensors'}" in message
    assert "NaN, infinite or beyond float32" in message
    # What is not a weight may hold anything.
    assert read_weights(tmp_path / "net.safetensors", exclude=["fc2*"]).count == 1200


WRITERS: dict[str, Callable[[Path], object]] = {
    "net.safetensors": lambda path: save_file(STATE, path),
    "net.pt": lambda path: torch.save(STATE, path),
    "old.pt": lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
    "net.npy": lambda path: np.save(path, STATE["fc1.weight"].numpy()),
    "net.npz": lambda path: np.savez(path, w=STATE["fc1.weight"].numpy()),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    content = path.read_bytes()
    for damaged in (b"", content[:99], content[: len(content) // 2], content[:-40], b"no " * 500):
        path.write_bytes(damaged)
        message = complaint(path)
        assert str(path) in message
        assert "not a complete" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([torch.ones(2, 2)], "list"),
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


def _with_torch(path: Path, **options: bool) -> None:
    torch.save({"a.weight": torch.ones(2, 2), "optimizer": Unpickled()}, path, **options)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("net.pt", lambda path: path.write_bytes(pickle.dumps({"a.weight": Unpickled()}))),
        ("net.pt", _with_torch),
        ("net.pt", lambda path: _with_torch(path, _use_new_zipfile_serialization=False)),
        ("net.npy", lambda path: np.save(path, np.array([Unpickled(), None], dtype=object))),
        ("net.npz", lambda path: np.savez(path, np.array([Unpickled(), None], dtype=object))),
    ],
)
def test_objects_are_never_unpickled(
    tmp_path: Path, name: str, save: Callable[[Path], object]
) -> None:
    Unpickled.trace = tmp_path / "unpickled"
    save(tmp_path / name)
    message = complaint(tmp_path / name)
    assert str(tmp_path / name) in message
    assert "pickle" in message or "Python objects" in message
    assert not Unpickled.trace.exists()


def test_a_pickled_or_scripted_module_is_answered_with_how_to_give_it(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 3), tmp_path / "net.pt")
    message = complaint(tmp_path / "net.pt")
    assert "torch.nn.modules.linear.Linear" in message
    assert "model.state_dict()" in message
    torch.jit.script(nn.Linear(3, 3)).save(str(tmp_path / "net.pt"))
    assert "TorchScript" in complaint(tmp_path / "net.pt")


def test_a_directory_without_weights_or_shards_is_said_to_have_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "none of model.safetensors" in complaint(tmp_path)
    for name in ("a", "b"):
        save_file(STATE, tmp_path / f"{name}.safetensors")
    assert "a.safetensors, b.safetensors" in complaint(tmp_path)
    index = {"weight_map": {"fc1.weight": "a.safetensors", "fc2.weight": "m-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"no such file as {tmp_path / 'm-2.safetensors'}" in complaint(tmp_path)


def test_a_network_without_weights_is_answered_with_what_it_has() -> None:
    state = {f"norm{i}.weight": torch.ones(4) for i in range(8)}
    message = complaint(state)
    assert "norm0.weight (it is 1-d)" in message
    assert "3 more" in message
    assert "'*'" in message
    assert "fc1.weight (it is excluded)" in complaint(STATE, exclude=["*"])


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize(
    ("pattern", "meant"), [("fc1", "'*fc1*'"), ("fc1.wieght", "'fc1.weight'"), ("zzz*", "it has")]
)
def test_a_pattern_that_matches_nothing_is_answered_with_one_that_does(
    argument: str, pattern: str, meant: str
) -> None:
    message = complaint(STATE, **{argument: [pattern]})
    assert f"{argument} {pattern!r} matches none" in message
    assert meant in message


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return None", "NoneType"),
        ("return {'a': 1}", "'a'"),
        ("return torch.nn.ReLU()", "it has no tensors"),
        ("return numpy.array(['x', 'y'])", "holds no numbers"),
        ("return torch.tensor([1.0, float('nan')])", "NaN"),
        ("return torch.tensor([1, 2])", "int64"),
        ("return torch.empty(0)", "empty"),
        ("return torch.tensor(3.0)", "0-d"),
        ("raise RuntimeError('no such\\n  layer.')", "RuntimeError: no such layer."),
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
