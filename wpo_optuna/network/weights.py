"""Reading the weights of a user's network, of any size, as the distribution the loss needs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from math import isqrt
from pathlib import Path

import numpy as np
import torch
from aihwkit.simulator.parameters import MappingParameter
from torch import Tensor, nn
from tqdm import tqdm

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.network.account import Account
from wpo_optuna.network.analogue import Choice, account_for
from wpo_optuna.network.checkpoints import model_type, tensors_of_checkpoint
from wpo_optuna.network.references import call_function, is_reference, load_function
from wpo_optuna.network.tensors import StoredTensor, tensors_of_network
from wpo_optuna.network.tile_mapping import blocks_on_tiles

# A problem interpolates some 10 000 ranks; a sample of millions moves them by a fraction of one
# thousandth, far below the error of any device.
MOST_KEPT = 5_000_000

Network = str | os.PathLike[str] | Tensor | np.ndarray | Mapping[str, Tensor] | nn.Module


class LayerWeights:
    """One tensor that was taken; read again when asked for its own weights.

    Attributes:
        name: its name in the network.
        shape: its shape.
        count: number of weights.
    """

    def __init__(self, tensor: StoredTensor, mapping: MappingParameter | None) -> None:
        self.name, self.shape, self.count = tensor.name, tensor.shape, tensor.count
        self._tensor, self._mapping = tensor, mapping

    @cached_property
    def is_zero(self) -> bool:
        """Whether all its weights are zero."""
        return not bool(self.weights().any())

    def weights(self) -> Tensor:
        """This layer's weights in ascending order, see :class:`CheckpointWeights`.

        Raises:
            InvalidArgument: a weight is NaN or infinite.
        """
        return _sample([self._tensor], self._mapping)


@dataclass(frozen=True, eq=False)
class CheckpointWeights:
    """The weights of a network: what becomes of its tensors, and the distribution of those taken.

    Attributes:
        account: what becomes of each tensor.
        layers: the tensors taken, in the network's order.
        weights: the weights in ascending order, float32 (n,), as ``WeightProgrammingProblem``
            takes them: all of them up to five million; of more, an evenly spaced sample of at
            least two million and both extremes.
    """

    account: Account
    layers: tuple[LayerWeights, ...]
    weights: Tensor

    @property
    def count(self) -> int:
        """Number of weights taken."""
        return sum(layer.count for layer in self.layers)


def read_weights(
    source: Network,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    mapping: MappingParameter | None = None,
    show_progress_bar: bool = False,
    transposed: Sequence[str] | None = None,
) -> CheckpointWeights:
    """Reads a network's weights, tensor by tensor, in little memory whatever its size.

    Args:
        source: a ``.safetensors``, ``.pt``, ``.pth``, ``.bin``, ``.ckpt``, ``.npy`` or ``.npz``
            file; a directory in Hugging Face format; ``package.module:function`` or
            ``path/file.py:function`` for a function without arguments that returns a tensor, a
            state dict or a module; or one of these three.
        include: glob patterns over parameter names; without any, every matrix and convolution
            kernel is taken, and no biases, normalisations or embeddings.
        exclude: glob patterns of parameters not to take.
        mapping: if given (an RPU configuration's ``mapping``), weights are scaled as on its tiles;
            otherwise they are taken as they are stored.
        show_progress_bar: whether to show progress on a terminal.
        transposed: glob patterns of matrices that are stored as (inputs, outputs), as those of
            GPT-2's ``Conv1D`` layers are; None finds that out.

    Raises:
        InvalidArgument: the source cannot be found or read, is damaged or of an unknown kind; a
            pattern matches nothing or no tensor is left; a weight is NaN or infinite; the function
            cannot be found, raises, or returns something else.
    """
    account, taken = _account_for(source, include, exclude, transposed)
    with _naming(source):
        weights = _sample(taken, mapping, show_progress_bar)
    return CheckpointWeights(account, tuple(LayerWeights(t, mapping) for t in taken), weights)


def account_of(
    source: Network,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    transposed: Sequence[str] | None = None,
) -> Account:
    """What becomes of a network's tensors, of which none is read; see :func:`read_weights`."""
    return _account_for(source, include, exclude, transposed)[0]


def _account_for(
    source: Network,
    include: Sequence[str],
    exclude: Sequence[str],
    transposed: Sequence[str] | None,
) -> tuple[Account, list[StoredTensor]]:
    with _naming(source) as name:
        is_path = isinstance(source, str | os.PathLike)
        tensors = _tensors_at(name) if is_path else tensors_of_network(source, name)
        architecture = model_type(Path(name)) if is_path else ""
        chosen = None if transposed is None else tuple(transposed)
        choice = Choice(tuple(include), tuple(exclude), chosen, architecture)
        return account_for(tensors, choice, name)


@contextmanager
def _naming(source: Network) -> Iterator[str]:
    """Gives the name of a network, which errors begin with."""
    is_path = isinstance(source, str | os.PathLike)
    name = str(source) if is_path else f"the given {type(source).__name__}"
    try:
        yield name
    except InvalidArgument as error:
        if str(error).startswith(("weights", "include", "exclude", "transposed")):
            raise
        raise InvalidArgument(f"weights {name!r}: {error}") from error


def _tensors_at(place: str) -> Sequence[StoredTensor]:
    if not place:
        raise InvalidArgument("a checkpoint is needed, or a function that returns one.")
    if is_reference(place) and not Path(place).exists():
        network = call_function(load_function(place, "weights"), place, "weights")
        return tensors_of_network(network, f"what {place!r} returned")
    return tensors_of_checkpoint(Path(place))


def _sample(
    tensors: Sequence[StoredTensor],
    mapping: MappingParameter | None,
    show_progress_bar: bool = False,
) -> Tensor:
    """All of some weights, or as many as are kept of more, at even distances in each tensor.

    What is kept of a tensor does not depend on the others: a network gives the same sample in one
    file or in many.

    Returns:
        the weights in ascending order, with the lowest and the highest of all.
    """
    total = sum(tensor.count for tensor in tensors)
    # A prime step meets all columns of a matrix, whatever its width.
    step = 1 if total <= MOST_KEPT else _prime_from(-(-total // MOST_KEPT))
    kept, extremes = [], [torch.inf, -torch.inf]
    with tqdm(
        total=total, unit="weight", unit_scale=True, disable=None if show_progress_bar else True
    ) as bar:
        for tensor in tensors:
            start = 0
            for block in tensor.blocks() if mapping is None else blocks_on_tiles(tensor, mapping):
                lowest, highest = _extremes(block, tensor)
                extremes = [min(extremes[0], lowest), max(extremes[1], highest)]
                kept.append(block.flatten()[start::step].clone())
                start = (start - block.numel()) % step
                bar.update(block.numel())
    if step > 1:
        kept.append(torch.tensor(extremes))
    return torch.from_numpy(np.sort(torch.cat(kept).numpy()))


def _extremes(block: Tensor, tensor: StoredTensor) -> tuple[float, float]:
    lowest, highest = (float(extreme) for extreme in torch.aminmax(block))
    # NaN and infinities survive both the extremes and their sum.
    if not np.isfinite(lowest + highest):
        raise InvalidArgument(
            f"tensor {tensor.name!r} of {tensor.place} contains a weight that is NaN, infinite or "
            "beyond float32; all weights must be finite."
        )
    return lowest, highest


def _prime_from(lowest: int) -> int:
    return next(n for n in count(lowest) if all(n % d for d in range(2, isqrt(n) + 1)))
