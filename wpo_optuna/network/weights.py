"""Reading the weights of a user's network, of any size, as the distribution the loss needs."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from aihwkit.simulator.parameters import MappingParameter
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.network.checkpoints import tensors_of_checkpoint
from wpo_optuna.network.networks import tensors_of_network
from wpo_optuna.network.quantile_sketch import EXACT_UP_TO, QuantileSketch, WeightDistribution
from wpo_optuna.network.references import call_function, is_reference, load_function
from wpo_optuna.network.stored_tensor import StoredTensor
from wpo_optuna.network.tensor_selection import SkippedTensor, select_weights
from wpo_optuna.network.tile_mapping import blocks_on_tiles

# A problem interpolates some 10 000 ranks; between so many representatives the difference to all
# weights is far below the error of any device.
_REPRESENTATIVES = 2**20 + 1

Network = str | os.PathLike[str] | Tensor | np.ndarray | Mapping[str, Tensor] | nn.Module


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One tensor that was taken; read again when asked for its own weights.

    Attributes:
        name: Its name in the network.
        shape: Its shape.
        type_name: The type it is stored in, such as ``bfloat16``.
        is_zero: Whether all its weights are zero.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    is_zero: bool
    _tensor: StoredTensor
    _mapping: MappingParameter | None

    @property
    def count(self) -> int:
        """Number of weights."""
        return self._tensor.count

    def distribution(self) -> WeightDistribution:
        """The distribution of this layer's weights alone.

        Raises:
            InvalidArgument: If a weight is NaN or infinite.
        """
        sketch = QuantileSketch()
        for block in _finite_blocks(self._tensor, self._mapping):
            sketch.update(block)
        return sketch.distribution()

    def weights(self) -> Tensor:
        """This layer's weights in ascending order, as a problem takes them.

        See ``CheckpointWeights.weights``.
        """
        return _representatives(self.distribution())


@dataclass(frozen=True, eq=False)
class CheckpointWeights:
    """The weights of a network: what was taken, what was not and why, and their distribution.

    Attributes:
        source: Where they come from.
        layers: The tensors taken, in the network's order.
        skipped: The tensors not taken, with reasons.
        distribution: How often each weight occurs.
    """

    source: str
    layers: tuple[LayerWeights, ...]
    skipped: tuple[SkippedTensor, ...]
    distribution: WeightDistribution

    @property
    def count(self) -> int:
        """Number of weights taken."""
        return sum(layer.count for layer in self.layers)

    @cached_property
    def weights(self) -> Tensor:
        """The weights in ascending order, float32 (n,), as ``WeightProgrammingProblem`` takes them.

        Up to five million these are all weights; of more, the weights at 1 048 577 evenly spaced
        ranks, with both extremes.
        """
        return _representatives(self.distribution)

    def quantiles(self, n: int) -> Tensor:
        """The sorted weights, interpolated linearly at n evenly spaced ranks, float32 (n,)."""
        return self.distribution.quantiles(n)

    def listing(self) -> str:
        """What was taken, with shapes and counts, and what was not, for people to read."""
        width = max(len(layer.name) for layer in self.layers)
        shapes = ["×".join(map(str, layer.shape)) for layer in self.layers]
        shape_width = max(len(shape) for shape in shapes)
        lines = [f"{self.count:,} weights in {len(self.layers)} tensors of {self.source}:"]
        lines += [
            f"  {layer.name:<{width}}  {shape:>{shape_width}}  {layer.count:>14,}"
            for layer, shape in zip(self.layers, shapes, strict=True)
        ]
        names_of_reason = defaultdict(list)
        for tensor in self.skipped:
            names_of_reason[tensor.reason].append(tensor.name)
        for reason, names in names_of_reason.items():
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            lines.append(f"  not taken, {reason}: {len(names)} ({shown})")
        return "\n".join(lines)


def read_weights(
    source: Network,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    mapping: MappingParameter | None = None,
    progress: bool = False,
) -> CheckpointWeights:
    """Read a network's weights, tensor by tensor, in little memory whatever its size.

    Args:
        source: A ``.safetensors``, ``.pt``, ``.pth``, ``.bin``, ``.ckpt``, ``.npy`` or ``.npz``
            file; a directory in Hugging Face format; ``package.module:function`` or
            ``path/file.py:function`` for a function without arguments that returns a tensor, a
            state dict or a module; or one of these three.
        include: Glob patterns over parameter names; without any, every matrix and convolution
            kernel is taken, and no biases, normalisations or embeddings.
        exclude: Glob patterns of parameters not to take.
        mapping: If given (an RPU configuration's ``mapping``), weights are scaled as on its tiles;
            otherwise they are taken as they are stored.
        progress: Whether to show a progress bar.

    Raises:
        InvalidArgument: If the source cannot be found or read, is damaged or of an unknown kind;
            if a pattern matches nothing or no tensor is left; if a weight is NaN or infinite; if
            the function cannot be found, raises, or returns something else.
    """
    try:
        return _read_weights(source, include, exclude, mapping, progress)
    except InvalidArgument as error:
        if str(error).startswith(("weights", "include", "exclude")):
            raise
        raise InvalidArgument(f"weights {_name_of(source)!r}: {error}") from error


def _read_weights(
    source: Network,
    include: Sequence[str],
    exclude: Sequence[str],
    mapping: MappingParameter | None,
    progress: bool,
) -> CheckpointWeights:
    tensors, name = _tensors_of(source)
    taken, skipped = select_weights(tensors, _patterns(include), _patterns(exclude), name)
    sketch = QuantileSketch(EXACT_UP_TO)
    total = sum(tensor.count for tensor in taken)
    layers = []
    with tqdm(total=total, unit="weight", unit_scale=True, disable=not progress) as bar:
        for tensor in taken:
            is_zero = True
            for block in _finite_blocks(tensor, mapping):
                sketch.update(block)
                is_zero = is_zero and not bool(block.any())
                bar.update(block.numel())
            layers.append(
                LayerWeights(tensor.name, tensor.shape, tensor.type_name, is_zero, tensor, mapping)
            )
    return CheckpointWeights(name, tuple(layers), tuple(skipped), sketch.distribution())


def load_example_weights() -> Tensor:
    """All weights of the example network, a perceptron for handwritten digits, as one vector (n,).

    Source: ``experiments/train_digits.py``, which made the file that ships with the package.
    """
    with as_file(files("wpo_optuna") / "network" / "data" / "digits_mlp.safetensors") as path:
        tensors = load_file(path)
    return torch.cat(
        [tensors[name].flatten() for name in sorted(tensors) if tensors[name].ndim > 1]
    )


def _tensors_of(source: Network) -> tuple[Sequence[StoredTensor], str]:
    """The tensors of a source, and what to call it."""
    name = _name_of(source)
    if not isinstance(source, str | os.PathLike):
        return tensors_of_network(source, name), name
    if not name:
        raise InvalidArgument("weights '': a checkpoint is needed, or a function that returns one.")
    if is_reference(name) and not Path(name).exists():
        network = call_function(load_function(name, "weights"), name, "weights")
        return tensors_of_network(network, f"what {name!r} returned"), name
    return tensors_of_checkpoint(Path(name)), name


def _name_of(source: Network) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return f"the given {type(source).__name__}"


def _patterns(patterns: Sequence[str]) -> Sequence[str]:
    return (patterns,) if isinstance(patterns, str) else patterns


def _finite_blocks(tensor: StoredTensor, mapping: MappingParameter | None) -> Iterator[Tensor]:
    blocks = tensor.blocks() if mapping is None else blocks_on_tiles(tensor, mapping)
    for block in blocks:
        # NaN and infinities survive both the extremes and their sum.
        lowest, highest = torch.aminmax(block)
        if not torch.isfinite(lowest + highest):
            raise InvalidArgument(
                f"{tensor.place}: tensor {tensor.name!r} contains a weight that is NaN, infinite "
                "or beyond float32; all weights must be finite."
            )
        yield block


def _representatives(distribution: WeightDistribution) -> Tensor:
    if distribution.count <= EXACT_UP_TO:
        return torch.from_numpy(distribution.values.copy())
    return distribution.quantiles(_REPRESENTATIVES)
