"""A strategy for each layer, beside the one for the whole network.

Layers differ in the shape of their weights' distribution, so that what is best for all of them
together need not be best for each. A network-wide study comes first; then each layer has a study of
its own, whose MLflow run is put under that of the network-wide one. On each layer, its own strategy
and the network-wide one are scored on fresh noise.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from pydantic import TypeAdapter
from tqdm import tqdm

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss.engine_choice import drawing_engine
from wpo_optuna.study.estimate import Estimate, score

if TYPE_CHECKING:
    from optuna import Study

    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem
    from wpo_optuna.strategy import ProgrammingStrategy
    from wpo_optuna.study.result import StudyResult

# User attribute of a layer's study: the network-wide strategy's score on this layer.
_NETWORK_WIDE = "network_wide_strategy"
# Tells these draws from those of the layer's finalists.
_SEED_PURPOSE = 7_919


class RunStudy(Protocol):
    """Runs or resumes one study: :func:`wpo_optuna.run_study` with everything else settled."""

    def __call__(
        self, problem: WeightProgrammingProblem, *, study_name: str, parent_study: str | None = None
    ) -> StudyResult:
        """The study's result."""


@dataclass(frozen=True)
class Layer:
    """A layer of a network and the problem that its weights alone pose.

    Attributes:
        name: name of its weights in the network, such as ``encoder.0.weight``.
        shape: shape of its weights.
        problem: makes the problem; called when it is the layer's turn, as many layers' weights
            may not fit into memory at once.
    """

    name: str
    shape: tuple[int, ...]
    problem: Callable[[], WeightProgrammingProblem]


@dataclass(frozen=True)
class LayerResult:
    """What was found for a layer, all scored on fresh noise.

    Attributes:
        name: name of its weights in the network.
        shape: shape of its weights.
        study_name: its study.
        strategy: the strategy of its own.
        baseline: TNMSE of the baseline on this layer.
        network_wide: that of the network-wide strategy.
        own: that of its own strategy.
    """

    name: str
    shape: tuple[int, ...]
    study_name: str
    strategy: ProgrammingStrategy
    baseline: Estimate
    network_wide: Estimate
    own: Estimate

    @property
    def count(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class LayersResult:
    """Strategies by layer, and the network-wide one.

    Attributes:
        network: the network-wide study.
        layers: the layers, in the network's order; fewer than it has if the user interrupted.
        interrupted: whether the user did.
    """

    network: StudyResult
    layers: tuple[LayerResult, ...]
    interrupted: bool

    @property
    def strategies(self) -> dict[str, ProgrammingStrategy]:
        """The strategies by layer, as :func:`wpo_optuna.apply_strategy` takes them."""
        return {layer.name: layer.strategy for layer in self.layers}

    def means(self) -> dict[str, float]:
        """Mean TNMSE over all weights: ``baseline``, ``network_wide`` and ``per_layer``."""
        counts = [layer.count for layer in self.layers]
        return {
            name: float(np.average([of(layer).mean for layer in self.layers], weights=counts))
            for name, of in _SCORES.items()
        }

    def table(self) -> str:
        """The TNMSE of each layer under each programming, for people to read."""
        head = ["layer", "shape", "weights", "baseline", "network-wide", "per layer", "better by"]
        rows = [
            [
                layer.name,
                "×".join(map(str, layer.shape)),
                f"{layer.count:,}",
                *map(_with_error, (layer.baseline, layer.network_wide, layer.own)),
                f"{100 * (1 - layer.own.mean / layer.network_wide.mean):.1f} %",
            ]
            for layer in self.layers
        ]
        means = list(self.means().values())
        rows.append(
            [
                "all weights", "", f"{sum(layer.count for layer in self.layers):,}",
                *(f"{mean:.5f}" for mean in means), f"{100 * (1 - means[2] / means[1]):.1f} %",
            ]
        )  # fmt: skip
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        align = [str.ljust, *[str.rjust] * (len(head) - 1)]
        return "\n".join(
            "  ".join(
                place(cell, width) for place, cell, width in zip(align, row, widths, strict=True)
            ).rstrip()
            for row in [head, *rows]
        )

    def write(self, path: Path) -> Path:
        """Writes the table at full precision as CSV, and returns its path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        ends = ("tnmse", "low", "high", "draws")
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["layer", "shape", "weights", "study"]
                + [f"{name}_{end}" for name in _SCORES for end in ends]
            )
            for layer in self.layers:
                row: list[object] = [layer.name, "x".join(map(str, layer.shape)), layer.count]
                row.append(layer.study_name)
                for of in _SCORES.values():
                    row += [of(layer).mean, of(layer).low, of(layer).high, of(layer).draws]
                writer.writerow(row)
        return path


_SCORES: dict[str, Callable[[LayerResult], Estimate]] = {
    "baseline": lambda layer: layer.baseline,
    "network_wide": lambda layer: layer.network_wide,
    "per_layer": lambda layer: layer.own,
}


def run_layers(
    run: RunStudy,
    network: WeightProgrammingProblem,
    layers: Iterable[Layer],
    study_name: str,
    *,
    on_layer: Callable[[Layer], object] = lambda layer: None,
    show_progress_bar: bool = False,
) -> LayersResult:
    """Finds one strategy for a network, then one for each of its layers.

    What is stored already is resumed.

    Args:
        run: runs one study.
        network: the problem of all weights together.
        layers: the layers.
        study_name: name of the network-wide study; a layer's is ``study_name/layer``.
        on_layer: told each layer before its study.
        show_progress_bar: whether to show progress on a terminal.

    Raises:
        InvalidArgument: as :func:`wpo_optuna.run_study`.
    """
    of_network = run(network, study_name=study_name)
    results: list[LayerResult] = []
    if of_network.strategy is None:
        return LayersResult(of_network, (), interrupted=True)
    for layer in layers:
        on_layer(layer)
        problem = _problem_of(layer)
        result = run(problem, study_name=f"{study_name}/{layer.name}", parent_study=study_name)
        if result.strategy is None:
            return LayersResult(of_network, tuple(results), interrupted=True)
        results.append(
            LayerResult(
                layer.name,
                layer.shape,
                result.study.study_name,
                result.strategy,
                result.baseline,
                _score_network_wide(result.study, problem, of_network.strategy, show_progress_bar),
                result.tnmse,
            )
        )
    return LayersResult(of_network, tuple(results), interrupted=False)


def _problem_of(layer: Layer) -> WeightProgrammingProblem:
    try:
        return layer.problem()
    except InvalidArgument as error:
        raise InvalidArgument(f"layer {layer.name!r}: {error}") from error


def _score_network_wide(
    study: Study,
    problem: WeightProgrammingProblem,
    strategy: ProgrammingStrategy,
    show_progress_bar: bool,
) -> Estimate:
    """The network-wide strategy's score on a layer; the one kept with the study, if there is."""
    programming = {"f_lst": list(strategy.f_lst), "g_lst": [list(g) for g in strategy.g_lst]}
    kept = study.user_attrs.get(_NETWORK_WIDE)
    if kept is not None and kept["strategy"] == programming:
        return TypeAdapter(Estimate).validate_python(kept["tnmse"])
    seed = np.random.SeedSequence([problem.seed, _SEED_PURPOSE]).generate_state(1)[0]
    with tqdm(
        desc="scoring the network-wide strategy", unit="draw",
        disable=None if show_progress_bar else True,
    ) as bar:  # fmt: skip
        estimate = score(drawing_engine(problem), strategy.to_converter(), int(seed), bar.update)
    study.set_user_attr(_NETWORK_WIDE, {"strategy": programming, "tnmse": vars(estimate)})
    return estimate


def _with_error(estimate: Estimate) -> str:
    return f"{estimate.mean:.5f} ± {(estimate.high - estimate.low) / 2:.5f}"
