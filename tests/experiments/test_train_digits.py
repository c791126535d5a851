from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from experiments.train_digits import (
    WEIGHTS_FILE,
    accuracy,
    digits_data,
    digits_network,
    main,
)


def shipped_network() -> nn.Sequential:
    network = digits_network()
    network.load_state_dict(load_file(WEIGHTS_FILE))
    return network


def test_the_shipped_weights_read_the_held_out_digits() -> None:
    data = digits_data()
    assert len(data.test_labels) == 450
    assert accuracy(shipped_network(), data.test_images, data.test_labels) >= 0.97
    assert accuracy(digits_network(), data.test_images, data.test_labels) < 0.5


def test_no_image_is_in_both_parts_of_the_data() -> None:
    data = digits_data()
    assert len(data.train_images) + len(data.test_images) == 1797
    train = {image.numpy().tobytes() for image in data.train_images}
    test = {image.numpy().tobytes() for image in data.test_images}
    assert train.isdisjoint(test)


def test_training_anew_gives_the_shipped_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "digits.safetensors"
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", ["train_digits", "--output", str(output)])
    try:
        main()
    finally:
        torch.set_num_threads(threads)
    assert "98.00%" in capsys.readouterr().out
    shipped = load_file(WEIGHTS_FILE)
    trained = load_file(output)
    assert trained.keys() == shipped.keys()
    # Another processor may round otherwise, and training amplifies it.
    for name, tensor in trained.items():
        torch.testing.assert_close(tensor, shipped[name], rtol=0.05, atol=0.05)
