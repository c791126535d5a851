"""From a strategy to a chip's conductances, and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from aihwkit.inference import PCMLikeNoiseModel
from aihwkit.simulator.configs import InferenceRPUConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.network import export_targets
from wpo_optuna.network.apply import analog_tiles
from wpo_optuna.network.conductances import read_conductances, set_measured
from wpo_optuna.network.conversion import NetworkForms
from wpo_optuna.strategy import ProgrammingStrategy

# Two pairs, of which the second carries the larger weights' remainder.
STRATEGY = ProgrammingStrategy(
    (1.0, 2.0),
    ((2.0, 4.0, 9.0), (9.0, 4.0, 2.0), (1.0, 5.0, 20.0), (20.0, 5.0, 1.0)),
    g_min=0.0,
    g_max=25.0,
)


def _hardware() -> InferenceRPUConfig:
    config = InferenceRPUConfig(noise_model=PCMLikeNoiseModel())
    config.mapping.max_input_size, config.mapping.max_output_size = 7, 4
    config.forward.is_perfect = True
    return config


def _forms() -> NetworkForms:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(24, 5)).eval()
    return NetworkForms.of(network, _hardware())


INPUTS = torch.randn(9, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def test_exported_targets_read_back_give_the_digital_network(tmp_path: Path) -> None:
    forms = _forms()
    path = export_targets(forms.analog, STRATEGY, tmp_path / "targets.safetensors")
    fresh = _forms()
    set_measured(fresh.analog, read_conductances(path, fresh.analog))
    assert fresh.digital is not None
    with torch.no_grad():
        expected, outputs = fresh.digital(INPUTS), fresh.analog.eval()(INPUTS)
    torch.testing.assert_close(outputs, expected, rtol=0.0, atol=1e-5 * float(expected.abs().max()))


def test_a_file_says_where_each_tiles_devices_lie_and_what_they_stand_for(tmp_path: Path) -> None:
    forms = _forms()
    path = export_targets(forms.analog, STRATEGY, tmp_path / "targets.safetensors")
    with safe_open(path, framework="pt") as opened:
        tiles = json.loads(opened.metadata()["tiles"])
    tensors = load_file(path)
    assert forms.digital is not None
    layers = {name: torch.zeros_like(forms.digital.get_submodule(name).weight.flatten(1))
              for name in ("0", "2")}  # fmt: skip
    for name, place in tiles.items():
        devices, scales = tensors[f"{name}.conductances"], tensors[f"{name}.output_scales"]
        assert bool(((devices >= 0) & (devices <= 25)).all())
        pairs = zip(place["f_lst"], devices[::2], devices[1::2], strict=True)
        weights = sum(f * (plus - minus) for f, plus, minus in pairs) / place["k_w"]
        i, j = place["first_output"], place["first_input"]
        layers[place["layer"]][i : i + len(weights), j : j + weights.shape[1]] = (
            weights * scales[:, None]
        )
    for name, weights in layers.items():
        expected = forms.digital.get_submodule(name).weight.flatten(1)
        torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)


def test_measured_conductances_are_what_acts_and_are_compensated_for_drift(tmp_path: Path) -> None:
    forms = _forms()
    path = export_targets(forms.analog, STRATEGY, tmp_path / "targets.safetensors")
    tensors = load_file(path)
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    # All devices have lost the same share: compensation gives back what was lost.
    drifted = {n: 0.8 * t if n.endswith("conductances") else t for n, t in tensors.items()}
    save_file(drifted, tmp_path / "measured.safetensors", metadata)
    measured = read_conductances(tmp_path / "measured.safetensors", forms.analog)
    set_measured(forms.analog, measured)
    tile = next(analog_tiles(forms.analog))
    torch.testing.assert_close(
        tile.tile.tile.get_weights(), 0.8 * tile.target_weights(), rtol=1e-4, atol=1e-5
    )
    assert forms.digital is not None
    with torch.no_grad():
        expected, outputs = forms.digital(INPUTS), forms.analog.eval()(INPUTS)
    torch.testing.assert_close(outputs, expected, rtol=0.0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t.pop(next(iter(t))), "has no tile"),
        (lambda t, m: t.update({k: v[..., 1:].clone() for k, v in t.items() if v.dim() == 3}),
         "has shape"),
        (lambda t, m: next(iter(t.values())).fill_(float("nan")), "values from nan to nan"),
        (lambda t, m: next(iter(t.values())).fill_(-1.0), "not negative"),
        (lambda t, m: m.pop("format"), "has format None"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_in_a_sentence(
    tmp_path: Path, change: object, message: str
) -> None:
    forms = _forms()
    path = export_targets(forms.analog, STRATEGY, tmp_path / "targets.safetensors")
    tensors = dict(sorted(load_file(path).items()))
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    change(tensors, metadata)  # type: ignore[operator]
    save_file(tensors, path, metadata)
    before = list(forms.analog.state_dict())
    with pytest.raises(InvalidArgument, match=message):
        read_conductances(path, forms.analog)
    assert before == list(forms.analog.state_dict())
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(InvalidArgument, match="not a complete safetensors file"):
        read_conductances(tmp_path / "broken.safetensors", forms.analog)
