"""Train the example network: a perceptron that reads scikit-learn's handwritten digits.

``python -m experiments.train_digits`` writes ``wpo_optuna/network/data/digits_mlp.safetensors``,
the weights that ship with the package. The digits (1797 images of 8 x 8 pixels) come with
scikit-learn, so nothing is downloaded, and the seed is fixed, so that everyone gets the same
network.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

WEIGHTS_FILE = (
    Path(__file__).parents[1] / "wpo_optuna" / "network" / "data" / "digits_mlp.safetensors"
)

# Narrow towards the end: with few neurons, errors of the weights do not average out, and the
# example shows what the programming of the weights is worth.
FEATURES = (64, 64, 32, 16, 10)


@dataclass(frozen=True)
class DigitsData:
    """Images with pixels in [0, 1], and the digits they show.

    Attributes:
        train_images: (1347, 64) float32.
        train_labels: (1347,) int64.
        test_images: (450, 64) float32.
        test_labels: (450,) int64.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits_data() -> DigitsData:
    """The digits in a fixed split, a quarter of each digit's images held out for the test."""
    digits = load_digits()
    train_images, test_images, train_labels, test_labels = train_test_split(
        torch.tensor(digits.data / 16.0, dtype=torch.float32),
        torch.tensor(digits.target, dtype=torch.int64),
        test_size=0.25,
        random_state=0,
        stratify=digits.target,
    )
    return DigitsData(train_images, train_labels, test_images, test_labels)


def digits_network() -> nn.Sequential:
    """The network before training: linear layers ``fc1`` to ``fc4`` with ReLUs between them."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (inputs, outputs) in enumerate(pairwise(FEATURES), start=1):
        layers[f"fc{number}"] = nn.Linear(inputs, outputs)
        layers[f"relu{number}"] = nn.ReLU()
    del layers[f"relu{len(FEATURES) - 1}"]
    return nn.Sequential(layers)


def train(
    network: nn.Sequential,
    data: DigitsData,
    epochs: int = 100,
    pixel_noise: float = 0.15,
    weight_noise: float = 0.0,
    seed: int = 0,
) -> None:
    """Train a network in place with AdamW, a decaying learning rate and noisy images.

    Args:
        network: A network of ``digits_network``.
        data: The digits.
        epochs: Passes over the training images.
        pixel_noise: Standard deviation of the noise on each pixel; in place of more images.
        weight_noise: Standard deviation of the noise on the weights of each forward pass, relative
            to the layer's largest weight. Above 0 the training is hardware-aware: the network
            learns to do with inexact weights.
        seed: Fixes the order of the images and all noise.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        order = torch.randperm(len(data.train_images), generator=generator)
        for batch in order.split(64):
            images = data.train_images[batch]
            images = images + pixel_noise * torch.randn(images.shape, generator=generator)
            scores = _forward_with_noisy_weights(network, images, weight_noise, generator)
            optimizer.zero_grad()
            cross_entropy(scores, data.train_labels[batch]).backward()
            optimizer.step()
        schedule.step()


def _forward_with_noisy_weights(
    network: nn.Sequential, x: Tensor, weight_noise: float, generator: torch.Generator
) -> Tensor:
    for layer in network:
        if isinstance(layer, nn.Linear):
            scale = weight_noise * layer.weight.detach().abs().max()
            noise = scale * torch.randn(layer.weight.shape, generator=generator)
            x = linear(x, layer.weight + noise, layer.bias)
        else:
            x = layer(x)
    return x


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images (n, 64) whose digit the network recognises."""
    return (network(images).argmax(dim=1) == labels).float().mean().item()


def trained_network(weight_noise: float = 0.0, seed: int = 0) -> nn.Sequential:
    """A newly trained network, the same each time for the same arguments."""
    torch.manual_seed(seed)
    network = digits_network()
    train(network, digits_data(), weight_noise=weight_noise, seed=seed)
    return network


def main() -> None:
    """Train, print the accuracy on the held-out images, and write the weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=WEIGHTS_FILE, help="where the weights go")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation, order and noise")
    parser.add_argument(
        "--weight-noise", type=float, default=0.0, help="above 0 trains for inexact weights"
    )
    arguments = parser.parse_args()

    torch.set_num_threads(1)  # the order of additions then depends on the number of cores no more
    network = trained_network(arguments.weight_noise, arguments.seed)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), arguments.output)
    data = digits_data()
    print(
        f"test accuracy {accuracy(network, data.test_images, data.test_labels):.2%} on "
        f"{len(data.test_labels)} images; weights written to {arguments.output}"
    )


if __name__ == "__main__":
    main()
