"""What of a network becomes analogue: the same from every form, and what lies on tiles."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import InferenceRPUConfig
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_sequence

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.hardware import named_rpu_config
from wpo_optuna.network.account import Account
from wpo_optuna.network.analogue import Choice
from wpo_optuna.network.apply import analog_tiles
from wpo_optuna.network.conversion import NetworkForms
from wpo_optuna.network.restated import Recurrence, SeparateAttention
from wpo_optuna.network.weights import account_of, read_weights


class Conv1D(nn.Module):
    """A linear layer with its weight as (inputs, outputs), as GPT-2 has it."""

    def __init__(self, n_outputs: int, n_inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_inputs, n_outputs))
        self.bias = nn.Parameter(torch.randn(n_outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        rows = torch.addmm(self.bias, inputs.reshape(-1, inputs.shape[-1]), self.weight)
        return rows.reshape(*inputs.shape[:-1], -1)


class PlainSubclass(nn.Linear):
    pass


class Squaring(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) ** 2


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.conv2d(input, self.weight - self.weight.mean(), self.bias)


class LowRank(nn.Module):
    """A LoRA wrapper: a layer and a correction of low rank beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 6)
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(6, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.base(inputs) + inputs @ self.lora_A.T @ self.lora_B.T


class Attending(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, inputs: Tensor) -> Tensor:
        width = self.attention.kdim
        return self.attention(inputs, inputs[..., :width], inputs)[0]


class Remembering(nn.Module):
    def __init__(self, network: nn.RNNBase) -> None:
        super().__init__()
        self.memory, self.head = network, nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.memory(inputs)[0])


class TiedLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(50, 8)
        self.body = nn.Linear(8, 8)
        self.lm_head = nn.Linear(8, 50, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, numbers: Tensor) -> Tensor:
        return self.lm_head(self.body(self.embed_tokens(numbers)))


def _sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


# The network, the shape of its inputs, and the parameters that are to lie on tiles.
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "linear": (lambda: nn.Linear(8, 5), (3, 8), {"weight"}),
    "transposed": (
        lambda: _sequence(Conv1D(24, 8), nn.Linear(24, 4)), (3, 8), {"0.weight", "1.weight"},
    ),
    "subclass": (lambda: _sequence(PlainSubclass(8, 5)), (3, 8), {"0.weight"}),
    "other subclass": (
        lambda: _sequence(Squaring(8, 5), nn.Linear(5, 4)), (3, 8), {"1.weight"},
    ),
    "subclass of a convolution": (
        lambda: _sequence(nn.Conv2d(2, 3, 3), Standardised(3, 4, 3)), (2, 2, 7, 7), {"0.weight"},
    ),
    "lora": (LowRank, (3, 8), {"base.weight"}),
    "weight norm": (lambda: _sequence(weight_norm(nn.Linear(8, 5))), (3, 8), {"0.weight"}),
    "lstm": (
        lambda: Remembering(nn.LSTM(6, 4, 2, bidirectional=True, batch_first=True)), (3, 5, 6),
        {f"memory.weight_{kind}_l{layer}{end}"
         for kind in ("ih", "hh") for layer in (0, 1) for end in ("", "_reverse")}
        | {"head.weight"},
    ),
    "gru": (
        lambda: Remembering(nn.GRU(6, 8)), (5, 3, 6),
        {"memory.weight_ih_l0", "memory.weight_hh_l0", "head.weight"},
    ),
    "rnn": (
        lambda: Remembering(nn.RNN(6, 8, nonlinearity="relu")), (5, 3, 6),
        {"memory.weight_ih_l0", "memory.weight_hh_l0", "head.weight"},
    ),
    "lstm with projections": (
        lambda: Remembering(nn.LSTM(6, 10, proj_size=8)), (5, 3, 6), {"head.weight"},
    ),
    "attention": (
        Attending, (3, 5, 8), {"attention.in_proj_weight", "attention.out_proj.weight"},
    ),
    "attention of several widths": (
        lambda: Attending(kdim=6, bias=False), (3, 5, 8),
        {f"attention.{name}_proj_weight" for name in "qkv"} | {"attention.out_proj.weight"},
    ),
    "transformer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        (3, 5, 8),
        {f"layers.{i}.{name}" for i in (0, 1) for name in (
            "self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight",
            "linear2.weight",
        )},
    ),
    "bilinear": (lambda: nn.ModuleList([nn.Bilinear(4, 3, 2), nn.Linear(2, 2)]), (), {"1.weight"}),
    "grouped convolution": (
        lambda: _sequence(nn.Conv2d(8, 6, 3, groups=2, stride=2)), (2, 8, 7, 7), {"0.weight"},
    ),
    "depthwise convolution": (
        lambda: _sequence(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1)),
        (2, 1, 9, 9), {"0.weight", "2.weight"},
    ),
    "one dimension": (
        lambda: _sequence(nn.Conv1d(3, 6, 3, padding="same", dilation=2)), (2, 3, 9),
        {"0.weight"},
    ),
    "three dimensions": (
        lambda: _sequence(nn.Conv3d(2, 5, 2, padding=1, padding_mode="reflect")), (2, 2, 4, 4, 4),
        {"0.weight"},
    ),
    "tied": (TiedLanguageModel, (), {"body.weight"}),
}  # fmt: skip


def _network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return KINDS[kind][0]().eval()


def _analogue(account: Account) -> set[str]:
    return {tensor.name for tensor in account.analogue}


def _hardware() -> InferenceRPUConfig:
    config = named_rpu_config("pcm").build()
    config.mapping.max_input_size, config.mapping.max_output_size = 5, 7
    return config


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_that_are_read_are_those_on_the_tiles(kind: str) -> None:
    network, config = _network(kind), _hardware()
    forms = NetworkForms.of(network, config)
    read = read_weights(network, mapping=config.mapping)
    assert _analogue(read.account) == _analogue(forms.account) == KINDS[kind][2]
    assert set(forms.places) == KINDS[kind][2]
    on_tiles = [tile.tile.tile.get_weights().flatten() for tile in analog_tiles(forms.analog)]
    torch.testing.assert_close(
        read.weights, torch.cat(on_tiles).sort().values, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_restated_for_tiles_has_its_digital_outputs(kind: str) -> None:
    forms, shape = NetworkForms.of(_network(kind), _hardware()), KINDS[kind][1]
    if not shape:
        pytest.skip("its inputs are no real numbers")
    assert forms.digital is not None
    assert forms.restated is not None
    inputs = torch.randn(shape)
    with torch.no_grad():
        expected, outputs = forms.digital(inputs), forms.restated(inputs)
        on_tiles = forms.analog.eval()(inputs)
    torch.testing.assert_close(outputs, expected, rtol=0.0, atol=1e-5 * float(expected.abs().max()))
    assert on_tiles.shape == expected.shape
    assert bool(torch.isfinite(on_tiles).all())


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("is_batched", [False, True])
def test_restated_attention_takes_masks_and_returns_the_shares_of_each_head(
    batch_first: bool, is_batched: bool
) -> None:
    torch.manual_seed(3)
    attention = nn.MultiheadAttention(8, 2, batch_first=batch_first).eval()
    inputs = torch.randn((4, 4, 8) if is_batched else (4, 8))
    padding = torch.zeros((4, 4) if is_batched else (4,), dtype=torch.bool)
    padding[..., 1] = True
    options = {
        "attn_mask": torch.ones(4, 4, dtype=torch.bool).triu(1), "key_padding_mask": padding,
        "is_causal": True, "average_attn_weights": False,
    }  # fmt: skip
    with torch.no_grad():
        expected = attention(inputs, inputs, inputs, **options)
        outputs = SeparateAttention(attention).eval()(inputs, inputs, inputs, **options)
    for found, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_transformer_layer_with_analogue_layers_inside_runs_in_evaluation() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    theirs = convert_to_analog(copy.deepcopy(layer), _hardware())
    for forms in (
        NetworkForms.of(layer, _hardware(), Choice(exclude=("self_attn*",))),
        NetworkForms.of(theirs, None),
    ):
        assert {tile.layer for tile in analog_tiles(forms.analog)} == {"linear1", "linear2"}
        assert _analogue(forms.account) == {"linear1.weight", "linear2.weight"}
        with torch.no_grad():
            assert forms.analog.eval()(torch.randn(2, 5, 8)).shape == (2, 5, 8)


# No file tells how a layer computes.
@pytest.mark.parametrize(
    "kind",
    [
        k
        for k in KINDS
        if k not in {"weight norm", "bilinear", "other subclass", "subclass of a convolution"}
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "bin", "dict"])
def test_a_file_tells_the_same_as_the_network(tmp_path: Path, kind: str, suffix: str) -> None:
    network, path = _network(kind), tmp_path / f"net.{suffix}"
    if suffix == "safetensors":
        save_model(network, str(path))
    elif suffix == "bin":
        torch.save(network.state_dict(), path)
    source = network.state_dict() if suffix == "dict" else path
    account = account_of(source)
    assert _analogue(account) == KINDS[kind][2]
    assert account.count(analogue=True) == account_of(network).count(analogue=True)
    mapping = _hardware().mapping
    # With a scale for each tile it matters which outputs share one, which no file tells of groups.
    mapping.weight_scaling_columnwise = kind == "grouped convolution"
    weights = read_weights(source, mapping=mapping).weights
    torch.testing.assert_close(weights, read_weights(network, mapping=mapping).weights)


def test_tensors_of_equal_shape_in_two_shards_are_not_taken_for_tied(tmp_path: Path) -> None:
    shard_of = {}
    for name in "abcd":
        shard_of[f"{name}.weight"] = f"pytorch_model-{name}.bin"
        torch.save({f"{name}.weight": torch.randn(30, 40)}, tmp_path / f"pytorch_model-{name}.bin")
    index = json.dumps({"weight_map": shard_of})
    (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    assert read_weights(tmp_path).count == 4 * 1200


def test_a_pattern_of_transposed_matrices_leaves_alone_what_a_layer_says_itself() -> None:
    network = nn.Sequential(Conv1D(24, 8), nn.Linear(24, 8))
    usual = read_weights(network, transposed=["1.weight"])
    assert [tensor.tile_shape for tensor in usual.account.analogue] == [(8, 24), (24, 8)]


def test_tied_weights_count_once_and_say_what_they_are_tied_to(tmp_path: Path) -> None:
    network = TiedLanguageModel()
    torch.save(network.state_dict(), tmp_path / "net.bin")
    for source in (network, tmp_path / "net.bin"):
        account = account_of(source)
        head = next(tensor for tensor in account.tensors if tensor.name == "lm_head.weight")
        assert "tied to the embedding embed_tokens.weight" in head.because
        assert account.count() == 50 * 8 + 8 * 8 + 8
        assert read_weights(source, include=["lm_head.weight"]).count == 400
    forms = NetworkForms.of(network, _hardware(), Choice(include=("lm_head.weight",)))
    assert {tile.layer for tile in analog_tiles(forms.analog)} == {"lm_head"}


def test_a_layer_that_occurs_twice_has_tiles_in_both_places() -> None:
    layer = nn.Linear(4, 4)
    forms = NetworkForms.of(nn.Sequential(layer, nn.ReLU(), layer), _hardware())
    assert {tile.layer for tile in analog_tiles(forms.analog)} == {"0", "2"}
    assert forms.account.count() == 20


@pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
def test_a_layer_is_the_same_problem_whichever_way_it_is_stored(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape) * torch.rand(shape[0], 1)
    mapping = named_rpu_config("pcm").build().mapping
    bias = torch.zeros(shape[0])
    usual = read_weights({"a.weight": weight, "a.bias": bias}, mapping=mapping)
    turned = read_weights({"a.weight": weight.T.contiguous(), "a.bias": bias}, mapping=mapping)
    assert torch.equal(usual.weights, turned.weights)
    assert turned.account.tensors[0].tile_shape == usual.account.tensors[0].tile_shape


def test_square_matrices_of_gpt2_follow_the_layers_beside_them_the_config_or_the_user(
    tmp_path: Path,
) -> None:
    square = {"h.0.attn.c_proj.weight": torch.randn(8, 8), "h.0.attn.c_proj.bias": torch.zeros(8)}
    beside = {"h.0.attn.c_attn.weight": torch.randn(8, 24), "h.0.attn.c_attn.bias": torch.zeros(24)}
    nano = {"h.0.attn.c_attn.weight": torch.randn(24, 8), "h.0.attn.c_attn.bias": torch.zeros(24)}

    def is_turned(state: dict[str, Tensor], **options: Any) -> bool:
        entry = next(
            tensor for tensor in account_of(state, **options).tensors
            if tensor.name == "h.0.attn.c_proj.weight"
        )  # fmt: skip
        return "inputs × outputs" in entry.because

    assert is_turned(square | beside)
    assert not is_turned(square | nano)
    assert not is_turned(square)
    assert "--transposed" in account_of(square).table()
    assert is_turned(square, transposed=["*c_proj.weight"])
    assert not is_turned(square | beside, transposed=[])
    save_file(square, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert "stored as inputs × outputs" in account_of(tmp_path).table()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("inputs", ["a batch", "the batch first", "one", "of several lengths"])
def test_a_restated_recurrence_has_torchs_outputs_and_last_states_from_any_states(
    kind: type[nn.RNNBase], both: bool, inputs: str
) -> None:
    torch.manual_seed(0)
    network = kind(6, 4, 2, bidirectional=both, batch_first=inputs == "the batch first")
    sequences: Any = torch.randn((5, 6) if inputs == "one" else (3, 3, 6))
    if inputs == "of several lengths":
        several = [torch.randn(length, 6) for length in (3, 5, 1)]
        sequences = pack_sequence(several, enforce_sorted=False)
    state = torch.randn((2 * (1 + both), 4) if inputs == "one" else (2 * (1 + both), 3, 4))
    given: Any = (state, 2 * state) if kind is nn.LSTM else state
    for states in (None, given):
        with torch.no_grad():
            expected, last = network(sequences, states)
            outputs, its_last = Recurrence(network)(sequences, states)
        if inputs == "of several lengths":
            outputs, expected = outputs.data, expected.data
        torch.testing.assert_close(outputs, expected)
        torch.testing.assert_close(its_last, last)


def _scaled(kind: str) -> tuple[dict[str, Tensor], Tensor]:
    """A quantised matrix as checkpoints keep it, and what it stands for."""
    weight = torch.randn(256, 384)
    if kind == "deepseek":  # blocks of 128 × 128
        scales = torch.rand(2, 3) + 0.5
        numbers = weight.to(torch.float8_e4m3fn)
        spread = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
        state = {"a.weight": numbers, "a.weight_scale_inv": scales}
        return state, numbers.float() * spread
    if kind == "channel":
        scales = weight.abs().amax(dim=1, keepdim=True) / 127
        numbers = (weight / scales).round().to(torch.int8)
        return {"a.weight": numbers, "a.weight_scale": scales}, numbers.float() * scales
    if kind == "bitsandbytes":
        largest = weight.abs().amax(dim=1)
        numbers = (weight / largest[:, None] * 127).round().to(torch.int8)
        return {"a.weight": numbers, "a.SCB": largest}, numbers.float() * largest[:, None] / 127
    scale = torch.tensor(0.25)
    numbers = weight.to(torch.float8_e5m2)
    return {"a.weight": numbers, "a.weight_scale": scale}, numbers.float() * scale


@pytest.mark.parametrize("kind", ["deepseek", "channel", "bitsandbytes", "matrix"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_eight_bit_weights_with_scales_are_the_numbers_they_stand_for(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    torch.manual_seed(0)
    state, expected = _scaled(kind)
    path = tmp_path / f"net.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(state, path)
    read = read_weights(path)
    torch.testing.assert_close(read.weights, expected.flatten().sort().values)
    assert _analogue(read.account) == {"a.weight"}


@pytest.mark.parametrize(
    "packed",
    [
        {"a.qweight": torch.ones(64, 64, dtype=torch.int32), "a.scales": torch.ones(4, 64)},
        {"a.weight": torch.ones(4096, 1, dtype=torch.uint8), "a.weight.absmax": torch.ones(9)},
        {"a.weight": torch.ones(64, 64).to(torch.int8)},
    ],
)
def test_packed_weights_are_refused_unless_they_are_excluded(packed: dict[str, Tensor]) -> None:
    state = packed | {"lm_head.weight": torch.randn(8, 8)}
    with pytest.raises(InvalidArgument, match=r"weights 'a\.q?weight' .* are packed as u?int"):
        read_weights(state)
    assert read_weights(state, exclude=["a.*"]).count == 64


def test_the_state_of_a_converted_network_is_answered_with_how_to_give_it(tmp_path: Path) -> None:
    analog = convert_to_analog(nn.Sequential(nn.Linear(8, 3)), _hardware())
    state = analog.state_dict()
    # aihwkit 1.2 has no values to save of what stands for the tile's weights.
    tensors = {name: t for name, t in state.items() if isinstance(t, Tensor)}
    tensors = {name: t.contiguous() for name, t in tensors.items() if "analog_ctx" not in name}
    save_file(tensors, tmp_path / "net.safetensors")
    torch.save(state, tmp_path / "net.pt")  # which holds objects of aihwkit's as well
    for source in (state, tmp_path / "net.safetensors", tmp_path / "net.pt"):
        with pytest.raises(InvalidArgument, match=r"path/file\.py:function"):
            read_weights(source)


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pt", "npy", "npz"])
def test_a_git_lfs_pointer_is_told_with_the_remedy(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net.{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(InvalidArgument, match=r"Git LFS pointer.*git lfs pull"):
        read_weights(path)


def test_a_diffusion_pipeline_names_its_folders_and_each_is_read(tmp_path: Path) -> None:
    for folder in ("unet", "text_encoder"):
        (tmp_path / folder).mkdir()
        save_file({"a.weight": torch.randn(4, 4)}, tmp_path / folder / "model.safetensors")
    with pytest.raises(InvalidArgument, match=r"text_encoder.*unet"):
        read_weights(tmp_path)
    assert read_weights(tmp_path / "unet").count == 16
    (tmp_path / "vae").mkdir()
    torch.save({"a.weight": torch.randn(4, 5)}, tmp_path / "vae" / "diffusion_pytorch_model.bin")
    assert read_weights(tmp_path / "vae").count == 20


def test_a_network_that_is_hardly_analogue_is_told_with_the_reasons() -> None:
    network = nn.Sequential(nn.Embedding(1000, 8), nn.Linear(8, 4))
    warning = account_of(network).warning()
    assert warning is not None
    assert warning.startswith("only 0% of the weights in matrices")
    assert "100% digital because it is an embedding" in warning
    assert account_of(nn.Linear(8, 4)).warning() is None


def test_tensors_that_only_a_study_or_only_a_network_has_are_told() -> None:
    account = account_of({"fc1.weight": torch.randn(4, 4), "fc2.weight": torch.randn(4, 4)})
    assert account.disagreement(["fc1.weight", "fc2.weight"]) is None
    assert account.disagreement(["model.fc1.weight", "model.fc2.weight"]) is None
    told = account.disagreement(["model.fc1.weight", "model.lm_head.weight"])
    assert told is not None
    assert "lm_head.weight" in told
    assert "fc2.weight" in told
