"""The account of a network: what of it lies on analogue tiles, what does not, and why."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path

ANALOGUE, DIGITAL = "analogue", "digital"

# Below this share of the weights in matrices, a network is hardly an analogue one.
_MOST = 0.5
_MOST_NAMED = 3


class NetworkWarning(UserWarning):
    """A network is not what one would take it for."""


@dataclass(frozen=True)
class AccountedTensor:
    """What becomes of a tensor.

    Attributes:
        name: its name in the network, such as ``encoder.0.fc1.weight``.
        kind: the kind of layer that it belongs to.
        shape: as it is stored.
        blocks: how many matrices of that shape it holds, each of a layer of its own.
        becomes: ``analogue`` or ``digital``.
        because: the reason, or a remark; may be empty if analogue.
        counts: whether it holds weights that count; of tied tensors the first one does.
        is_named: whether the name is that of a parameter, and not what somebody called an array.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    blocks: int
    becomes: str
    because: str
    counts: bool = True
    is_named: bool = True

    @property
    def count(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def tile_shape(self) -> tuple[int, int] | None:
        """Inputs and outputs on a tile, before tiles are limited in size; None if it is on none."""
        if self.becomes != ANALOGUE or not self.is_matrix:
            return None
        return self.count // self.shape[0], self.shape[0] // self.blocks

    @property
    def layer(self) -> str:
        """The layer that it belongs to."""
        return self.name.rpartition(".")[0]

    @property
    def is_matrix(self) -> bool:
        """Whether it is no vector of biases or factors."""
        return len(self.shape) >= 2

    def shown_shape(self) -> str:
        """Its shape as the tile sees it, inputs × outputs; as stored if it is on none."""
        if self.tile_shape is None:
            return "×".join(map(str, self.shape)) or "1"
        shape = "×".join(map(str, self.tile_shape))
        return f"{self.blocks} of {shape}" if self.blocks > 1 else shape


@dataclass(frozen=True)
class Account:
    """What becomes of a network's tensors.

    Attributes:
        source: the network.
        tensors: all of them, in its order.
    """

    source: str
    tensors: tuple[AccountedTensor, ...]

    @property
    def analogue(self) -> tuple[AccountedTensor, ...]:
        """The tensors that lie on tiles."""
        return tuple(tensor for tensor in self.tensors if tensor.becomes == ANALOGUE)

    def of(self, name: str) -> Account:
        """The account of one tensor alone."""
        return Account(self.source, tuple(t for t in self.tensors if t.name == name))

    def count(self, *, analogue: bool = False, in_matrices: bool = False) -> int:
        """Number of weights: of all, of those on tiles, or of those in matrices."""
        return sum(
            tensor.count
            for tensor in self.tensors
            if tensor.counts
            and (tensor.becomes == ANALOGUE or not analogue)
            and (tensor.is_matrix or not in_matrices)
        )

    def summary(self) -> str:
        """One line: how much of the network is analogue."""
        n_analogue, n_all = self.count(analogue=True), self.count()
        n_tensors = len([tensor for tensor in self.analogue if tensor.counts])
        return (
            f"{n_analogue:,} of {n_all:,} weights of {self.source} are analogue "
            f"({n_analogue / max(n_all, 1):.1%}), in {n_tensors} tensors"
        )

    def table(self) -> str:
        """A row for each tensor and the share that is analogue, for people to read.

        Vectors, such as biases, are named together.
        """
        shown = [t for t in self.tensors if t.is_matrix or t.becomes == ANALOGUE]
        rows = [("tensor", "kind", "shape", "weights", "becomes")]
        for tensor in shown:
            reason = f"{tensor.becomes} because {tensor.because}"
            if tensor.becomes == ANALOGUE:
                reason = ANALOGUE + (f" ({tensor.because})" if tensor.because else "")
            rows.append(
                (tensor.name, tensor.kind, tensor.shown_shape(), f"{tensor.count:,}", reason)
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {shape:>{widths[2]}}  "
            f"{count:>{widths[3]}}  {reason}"
            for name, kind, shape, count, reason in rows
        ]
        vectors = [t for t in self.tensors if not (t.is_matrix or t.becomes == ANALOGUE)]
        if vectors:
            n_weights = sum(tensor.count for tensor in vectors)
            lines.append(f"{len(vectors)} vectors and scalars ({n_weights:,} numbers)  digital")
        return "\n".join([*lines, f"{self.summary()}."])

    def save(self, path: Path) -> Path:
        """Writes all tensors as CSV and returns the path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(
                ("tensor", "layer", "kind", "inputs", "outputs", "blocks", "weights", "becomes",
                 "because")
            )  # fmt: skip
            for tensor in self.tensors:
                inputs, outputs = tensor.tile_shape or ("", "")
                writer.writerow(
                    (tensor.name, tensor.layer, tensor.kind, inputs, outputs, tensor.blocks,
                     tensor.count, tensor.becomes, tensor.because)
                )  # fmt: skip
        return path

    def warning(self) -> str | None:
        """What to tell where less than half of the weights in matrices become analogue."""
        n_all = self.count(in_matrices=True)
        n_analogue = self.count(analogue=True, in_matrices=True)
        if n_analogue >= _MOST * n_all:
            return None
        left: defaultdict[str, int] = defaultdict(int)
        for tensor in self.tensors:
            if tensor.is_matrix and tensor.counts and tensor.becomes != ANALOGUE:
                left[f"{tensor.becomes} because {tensor.because}"] += tensor.count
        reasons = sorted(left, key=lambda reason: -left[reason])[:_MOST_NAMED]
        told = "; ".join(f"{left[reason] / n_all:.0%} {reason}" for reason in reasons)
        return (
            f"only {n_analogue / n_all:.0%} of the weights in matrices of {self.source} become "
            f"analogue: {told}."
        )

    def disagreement(self, names: Iterable[str]) -> str | None:
        """What to tell where a study was about other tensors than those on tiles here.

        Args:
            names: tensors that the study was about; a prefix that all of them share may be
                missing here, or the other way round.
        """
        pairs = product(
            map(set, without_prefixes([tensor.name for tensor in self.analogue])),
            map(set, without_prefixes(list(names))),
        )
        here, there = max(pairs, key=lambda pair: len(pair[0] & pair[1]))
        if not there or here == there:
            return None
        told = []
        for some, what in (
            (there - here, "the study optimised, and that is not analogue here"),
            (here - there, "is analogue here, and that the study did not have"),
        ):
            if some:
                shown = ", ".join(sorted(some)[:_MOST_NAMED])
                more = ", ..." if len(some) > _MOST_NAMED else ""
                told.append(f"{len(some)} tensors hold what {what} ({shown}{more})")
        return f"{self.source}: {'; '.join(told)}."


def without_prefixes(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Names as they are, and without what all begin with, such as ``model.`` or ``module.``.

    What is left of each still names a layer and its parameter.
    """
    yield names
    while all(name.count(".") >= 2 for name in names):
        if len({name.partition(".")[0] for name in names}) != 1:
            return
        names = [name.partition(".")[2] for name in names]
        yield names
