import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.parameters import MappingParameter
from safetensors.torch import save_file
from torch import nn

from wpo_optuna.hardware import named_rpu_config
from wpo_optuna.network.weights import CheckpointWeights, read_weights


class SmallTransformer(nn.Module):
    """One of each kind of layer, named as in language models."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(50, 16)
        self.patch_embed = nn.Conv2d(3, 16, 4)
        self.attention = nn.MultiheadAttention(16, 2)
        self.layer_norm = nn.LayerNorm([4, 16])
        self.bn1 = nn.BatchNorm1d(16)
        self.lstm = nn.LSTM(16, 8, bidirectional=True)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        self.lm_head = nn.Linear(16, 50, bias=False)


TAKEN = {
    "patch_embed.weight": (16, 3, 4, 4),
    "attention.in_proj_weight": (48, 16),
    "attention.out_proj.weight": (16, 16),
    "lstm.weight_ih_l0": (32, 16),
    "lstm.weight_hh_l0": (32, 8),
    "lstm.weight_ih_l0_reverse": (32, 16),
    "lstm.weight_hh_l0_reverse": (32, 8),
    "mlp.0.weight": (32, 16),
    "mlp.2.weight": (16, 32),
    "lm_head.weight": (50, 16),
}


def _reasons(read: CheckpointWeights) -> dict[str, str]:
    """Why tensors are not taken."""
    taken = read.account.analogue
    return {tensor.name: tensor.because for tensor in read.account.tensors if tensor not in taken}


def small_transformer() -> nn.Module:
    return SmallTransformer()


def small_state_dict() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in SmallTransformer().state_dict().items()}


def expected_weights() -> torch.Tensor:
    state = small_state_dict()
    return torch.cat([state[name].flatten() for name in TAKEN]).sort().values


def save_as_training_checkpoint(path: Path) -> None:
    net = SmallTransformer()
    optimizer = torch.optim.Adam(net.parameters())
    net.mlp(torch.randn(3, 16)).sum().backward()
    optimizer.step()
    # The weights as they were before the step; the optimizer's moments are tensors as well.
    torch.save({"epoch": 3, "optimizer": optimizer.state_dict(), "model": small_state_dict()}, path)


def save_shards(folder: Path, stem: str, suffix: str, save: Callable) -> Path:
    state, shard_of = small_state_dict(), {}
    for i in range(3):
        names = sorted(state)[i::3]
        shard_of |= dict.fromkeys(names, f"{stem}-{i + 1:05}-of-00003.{suffix}")
        save({name: state[name] for name in names}, folder / shard_of[names[0]])
    index = {"metadata": {"total_size": 1}, "weight_map": shard_of}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("net.safetensors", lambda path: save_file(small_state_dict(), path)),
        ("net.pt", lambda path: torch.save(small_state_dict(), path)),
        # The format before PyTorch 1.6, which is no archive.
        (
            "net.pth",
            lambda path: torch.save(small_state_dict(), path, _use_new_zipfile_serialization=False),
        ),
        ("net.ckpt", save_as_training_checkpoint),
        ("", lambda path: save_file(small_state_dict(), path / "model.safetensors")),
        ("", lambda path: save_file(small_state_dict(), path / "diffusion_model.safetensors")),
        ("", lambda path: save_shards(path, "model", "safetensors", save_file)),
        ("", lambda path: save_shards(path, "pytorch_model", "bin", torch.save)),
    ],
)
def test_every_checkpoint_format_gives_the_same_weights(
    tmp_path: Path, name: str, save: Callable[[Path], object]
) -> None:
    save(tmp_path / name)
    read = read_weights(tmp_path / name)
    assert {layer.name: layer.shape for layer in read.layers} == TAKEN
    assert read.count == sum(layer.count for layer in read.layers)
    assert torch.equal(read.weights, expected_weights())
    state = small_state_dict()
    for layer in reversed(read.layers):
        assert torch.equal(layer.weights(), state[layer.name].flatten().sort().values)


@pytest.mark.parametrize("function", ["small_transformer", "small_state_dict"])
def test_a_users_function_gives_the_weights_of_its_module_or_state_dict(function: str) -> None:
    read = read_weights(f"{__file__}:{function}")
    assert {layer.name: layer.shape for layer in read.layers} == TAKEN
    assert torch.equal(read.weights, expected_weights())


def test_arrays_of_an_archive_count_by_their_dimensions_not_by_their_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"W1": rng.normal(size=(5, 4)), "b1": rng.normal(size=5), "W2": np.ones((2, 5), "i4")}
    arrays |= {"fortran": np.asfortranarray(rng.normal(size=(3, 2)))}
    arrays |= {"big_endian": rng.normal(size=(2, 2)).astype(">f4")}
    np.savez(tmp_path / "net.npz", **arrays)
    read = read_weights(tmp_path / "net.npz")
    assert [layer.name for layer in read.layers] == ["W1", "fortran", "big_endian"]
    assert _reasons(read) == {"b1": "it is 1-d", "W2": "its type is int32"}
    expected = np.concatenate([arrays[layer.name].ravel() for layer in read.layers])
    np.testing.assert_array_equal(read.weights, np.sort(expected.astype(np.float32)))


@pytest.mark.parametrize("network", [SmallTransformer(), small_state_dict()])
def test_without_patterns_biases_norms_and_embeddings_are_left_out_and_told(network: Any) -> None:
    reasons = _reasons(read_weights(network))
    assert reasons["embed_tokens.weight"] == "it is an embedding"
    assert reasons["layer_norm.weight"] == "it is a normalisation"
    assert reasons["mlp.0.bias"] == "it is 1-d"


@pytest.mark.parametrize(
    ("name", "is_embedding"),
    [
        ("model.embed_tokens.weight", True),
        ("transformer.wte.weight", True),
        ("transformer.wpe.weight", True),
        ("bert.embeddings.word_embeddings.weight", True),
        ("gpt_neox.embed_in.weight", True),
        ("shared.weight", True),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", True),
        ("embed_out.weight", False),
        ("lm_head.weight", False),
        ("embedding.projection.weight", False),
        ("module.layer4.0.downsample.0.weight", False),
    ],
)
def test_embeddings_of_a_state_dict_are_known_by_their_layers_name(
    name: str, is_embedding: bool
) -> None:
    state = {name: torch.randn(8, 4), "other.weight": torch.randn(3, 3)}
    assert (name in _reasons(read_weights(state))) == is_embedding


def test_include_patterns_replace_the_rule_and_exclude_patterns_restrict_it() -> None:
    state = small_state_dict()

    def names(**patterns: list[str]) -> list[str]:
        return [layer.name for layer in read_weights(state, **patterns).layers]

    included = ["embed_tokens.weight", "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"]
    assert names(include=["mlp.*", "embed*"]) == included
    assert names(exclude=["lstm*"]) == [name for name in TAKEN if not name.startswith("lstm")]
    assert names(include=["mlp.*"], exclude=["*.bias"]) == ["mlp.0.weight", "mlp.2.weight"]


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_all_floating_point_types_are_read_as_the_numbers_they_hold(
    tmp_path: Path, dtype: torch.dtype, suffix: str
) -> None:
    weight = torch.randn(30, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    path = tmp_path / f"net.{suffix}"
    save = save_file if suffix == "safetensors" else torch.save
    save({"fc.weight": weight}, path)
    expected = weight.float().flatten().sort().values
    torch.testing.assert_close(read_weights(path).weights, expected)


def test_tensors_that_hold_no_numbers_are_left_out_with_the_reason(tmp_path: Path) -> None:
    weight = torch.randn(4, 4)
    state = {"a.weight": weight, "d.weight": weight.to_sparse(), "e.weight": weight.to("meta")}
    torch.save(state, tmp_path / "net.pt")
    for source in (state, tmp_path / "net.pt"):
        reasons = _reasons(read_weights(source))
        assert reasons.keys() == {"d.weight", "e.weight"}
        assert "sparse" in reasons["d.weight"]
        assert "meta" in reasons["e.weight"]


def test_the_weights_of_an_analog_model_are_its_layers_logical_weights() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 700), nn.Embedding(9, 4))
    read = read_weights(convert_to_analog(model, named_rpu_config("pcm").build()))
    expected = torch.cat([model[0].weight.flatten(), model[2].weight.flatten()]).sort().values
    assert [layer.name for layer in read.layers] == ["0.weight", "2.weight"]
    torch.testing.assert_close(read.weights, expected.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("columnwise", [True, False])
@pytest.mark.parametrize(
    ("max_input_size", "max_output_size", "omega"), [(512, 0, 0.8), (40, 30, 0.8), (0, 0, 0.0)]
)
def test_weights_with_a_mapping_are_those_on_aihwkits_tiles(
    columnwise: bool, max_input_size: int, max_output_size: int, omega: float
) -> None:
    mapping = MappingParameter(
        weight_scaling_omega=omega, weight_scaling_columnwise=columnwise,
        out_scaling_columnwise=columnwise, max_input_size=max_input_size,
        max_output_size=max_output_size,
    )  # fmt: skip
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(5, 70, 3), nn.Flatten(), nn.Linear(70, 90))
    model[2].weight.data[7] = 0.0
    analog = convert_to_analog(model, InferenceRPUConfig(mapping=mapping))
    on_tiles = torch.cat([tile.tile.get_weights().flatten() for tile in analog.analog_tiles()])
    read = read_weights(model, mapping=mapping)
    torch.testing.assert_close(read.weights, on_tiles.sort().values, rtol=1e-6, atol=1e-7)
    assert read.layers[0].weights().numel() == 70 * 45


# Columns differ in scale, so that a sample that met some of them only would show.
@pytest.mark.parametrize("columns", [1024, 700, 510])
def test_a_sample_of_many_weights_follows_the_quantiles_of_all(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(7)
    scales = torch.linspace(0.01, 0.3, columns)
    state = {f"{i}.weight": torch.randn(400, columns, generator=generator) * scales for i in "abc"}
    every = torch.cat([weight.flatten() for weight in state.values()]).sort().values
    monkeypatch.setattr("wpo_optuna.network.weights.MOST_KEPT", 100_000)
    sample = read_weights(state).weights
    assert 40_000 < len(sample) <= 100_010
    assert (sample[0], sample[-1]) == (every[0], every[-1])
    assert torch.equal(sample, sample.sort().values)
    # The largest distance of the two distributions (Kolmogorov and Smirnov) of samples of 40 000
    # exceeds 0.01 with a probability of 2 exp(-2 n 0.01²) = 0.0007; the seed is fixed.
    ranks = torch.searchsorted(every, sample) / len(every)
    assert (ranks - torch.linspace(0, 1, len(sample))).abs().max() < 0.01


def test_a_sample_does_not_depend_on_how_a_network_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wpo_optuna.network.weights.MOST_KEPT", 500)
    (tmp_path / "one").mkdir()
    one = tmp_path / "one" / "net.safetensors"
    save_file(small_state_dict(), one)
    sample = read_weights(one).weights
    assert len(sample) < 600 < read_weights(one).count
    shards = save_shards(tmp_path, "model", "safetensors", save_file)
    assert torch.equal(read_weights(shards).weights, sample)
