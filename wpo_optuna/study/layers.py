"""``--per layer`` of the study's command: a strategy for each layer, and what that is worth.

Layers differ in the shape of their weights' distribution, so that what is best for all of them
together need not be best for each. A network-wide study comes first; then each layer has a study of
its own, whose MLflow run is put under that of the network-wide one. On each layer, its own strategy
and the network-wide one are scored on fresh noise.
"""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.evaluate.accuracy import (
    NetworkSetup,
    Programming,
    compare_over_time,
)
from wpo_optuna.evaluate.metric_over_time import MetricOverTime
from wpo_optuna.loss.engine_choice import drawing_engine
from wpo_optuna.study.attributes import FINISHED, METRICS
from wpo_optuna.study.environment import directory_of_study
from wpo_optuna.study.estimate import Estimate, score
from wpo_optuna.study.progress import progress_bar
from wpo_optuna.study.users_network import network_of
from wpo_optuna.track.destination import destination_of
from wpo_optuna.track.follower import Follower
from wpo_optuna.track.study_run import PARENT_TAG

if TYPE_CHECKING:
    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem
    from wpo_optuna.strategy import ProgrammingStrategy
    from wpo_optuna.study.problem_setup import ProblemSetup
    from wpo_optuna.study.scoring import StudyResult
    from wpo_optuna.study.settings import StudySettings

LAYERS_FILE = "layers.csv"
NETWORK_WIDE, PER_LAYER = "network-wide", "per layer"
# The scores of each layer, by the names of their attributes.
_SCORES = ("baseline", "network_wide", "per_layer")
# Tells the draws of network-wide strategies from those of a layer's finalists.
_SEED_PURPOSE = 7_919


@dataclass(frozen=True)
class LayerResult:
    """What was found for a layer, all scored on fresh noise.

    Attributes:
        name: name of its weights in the network, such as ``encoder.0.weight``.
        shape: shape of its weights.
        strategy: the strategy of its own.
        baseline: TNMSE of the baseline on this layer.
        network_wide: that of the network-wide strategy.
        per_layer: that of its own strategy.
    """

    name: str
    shape: tuple[int, ...]
    strategy: ProgrammingStrategy
    baseline: Estimate
    network_wide: Estimate
    per_layer: Estimate

    @property
    def count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class LayersResult:
    """Strategies by layer, and the network-wide one.

    Attributes:
        network: the network-wide study.
        layers: the layers, in the network's order.
    """

    network: StudyResult
    layers: tuple[LayerResult, ...]

    @property
    def strategies(self) -> dict[str, ProgrammingStrategy]:
        """The strategies by layer, as :func:`wpo_optuna.apply_strategy` takes them."""
        return {layer.name: layer.strategy for layer in self.layers}

    def means(self) -> dict[str, float]:
        """Mean TNMSE over all weights: ``baseline``, ``network_wide`` and ``per_layer``."""
        counts = [layer.count for layer in self.layers]
        return {
            name: float(np.average([getattr(lr, name).mean for lr in self.layers], weights=counts))
            for name in _SCORES
        }

    def table(self) -> str:
        """The TNMSE of each layer under each programming, for people to read."""
        rows = [["layer", "shape", "weights", "baseline", NETWORK_WIDE, PER_LAYER, "better by"]]
        for layer in self.layers:
            scores: list[Estimate] = [getattr(layer, name) for name in _SCORES]
            rows.append(
                [
                    layer.name,
                    "×".join(map(str, layer.shape)),
                    f"{layer.count:,}",
                    *(f"{score.mean:.5f} ± {(score.high - score.low) / 2:.5f}" for score in scores),
                    f"{100 * (1 - layer.per_layer.mean / layer.network_wide.mean):.1f} %",
                ]
            )
        means = self.means()
        gain = 100 * (1 - means["per_layer"] / means["network_wide"])
        count = sum(layer.count for layer in self.layers)
        numbers = (f"{mean:.5f}" for mean in means.values())
        rows.append(["all weights", "", f"{count:,}", *numbers, f"{gain:.1f} %"])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        )

    def write(self, path: Path) -> None:
        """Writes the table at full precision as CSV."""
        ends = ("tnmse", "low", "high", "draws")
        scores = [f"{name}_{end}" for name in _SCORES for end in ends]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["layer", "shape", "weights", "study", *scores])
            for layer in self.layers:
                study = f"{self.network.study.study_name}/{layer.name}"
                row = [layer.name, "x".join(map(str, layer.shape)), layer.count, study]
                for name in _SCORES:
                    row += vars(getattr(layer, name)).values()
                writer.writerow(row)


def run(
    settings: StudySettings,
    setup: ProblemSetup,
    run_study: Callable[..., StudyResult],
    show_progress_bar: bool,
) -> tuple[StudyResult, str]:
    """Runs or resumes all studies of a network, and compares what they found.

    Args:
        settings: what the user asked for.
        setup: the network-wide problem.
        run_study: :func:`wpo_optuna.run_study` with everything else settled.
        show_progress_bar: whether to show progress on a terminal.

    Returns:
        the network-wide study's result, and the text to print.

    Raises:
        InvalidArgument: a setting cannot be used.
    """
    # Before a search of minutes, and before anything is written.
    network, places = None, {}
    if settings.model is not None and settings.data is not None:
        network = network_of(settings, setup)
        names = [layer.name for layer in setup.checkpoint.layers if not layer.is_zero]
        places = network.network.layers_by_parameter(names)
    result = run_layers(run_study, setup, show_progress_bar)
    directory = directory_of_study(Path(settings.output), setup.study_name) / "layers"
    result.write(directory / LAYERS_FILE)
    lines = [result.table(), ""]
    zero = [layer.name for layer in setup.checkpoint.layers if layer.is_zero]
    if zero:
        lines += [f"all weights are zero, so that any strategy will do: {', '.join(zero)}", ""]
    if network is None:
        lines += ["For the accuracy as well, run this again with --model and --data.", ""]
    else:
        started_s = time.time()
        programmings: dict[str, Programming] = {
            NETWORK_WIDE: result.network.strategy,
            PER_LAYER: {
                layer: strategy
                for name, strategy in result.strategies.items()
                for layer in places[name]
            },
        }
        measured = compare_over_time(
            network, programmings, setup.problem.g_converter_baseline, setup.problem.t_steps,
            repeats=settings.repeats, seed=settings.seed, show_progress_bar=show_progress_bar,
        )  # fmt: skip
        _record_accuracy(settings, result, measured, measured.save(directory), network, started_s)
        lines += [measured.table(), ""]
    _deliver_again(settings, result, show_progress_bar)
    return result.network, "\n".join([*lines, f"tables           {directory}"])


def run_layers(
    run_study: Callable[..., StudyResult], setup: ProblemSetup, show_progress_bar: bool = False
) -> LayersResult:
    """Finds one strategy for a network, then one for each of its layers.

    What is stored already is resumed. A layer's study is called ``study_name/layer``; layers whose
    weights are all zero have none. For the arguments see :func:`run`.

    Raises:
        InvalidArgument: as :func:`wpo_optuna.run_study`.
    """
    study_name = setup.study_name
    network = run_study(setup.problem, study_name=study_name)
    layers = [layer for layer in setup.checkpoint.layers if not layer.is_zero]
    results: list[LayerResult] = []
    for number, layer in enumerate(layers, start=1):
        if show_progress_bar:
            print(f"layer {number} of {len(layers)}: {layer.name}", file=sys.stderr)
        try:
            problem = setup.make_problem(layer.weights())
        except InvalidArgument as error:
            raise InvalidArgument(f"layer {layer.name!r}: {error}") from error
        own = run_study(
            problem, study_name=f"{study_name}/{layer.name}", parent_study=study_name,
            account=setup.checkpoint.account.of(layer.name),
        )  # fmt: skip
        network_wide = _score_network_wide(problem, network.strategy, show_progress_bar)
        results.append(
            LayerResult(
                layer.name, layer.shape, own.strategy, own.baseline, network_wide, own.tnmse
            )
        )
    return LayersResult(network, tuple(results))


def _score_network_wide(
    problem: WeightProgrammingProblem, strategy: ProgrammingStrategy, show_progress_bar: bool
) -> Estimate:
    seed = np.random.SeedSequence([problem.seed, _SEED_PURPOSE]).generate_state(1)[0]
    with progress_bar(
        show_progress_bar, desc="scoring the network-wide strategy", unit="draw"
    ) as bar:
        return score(drawing_engine(problem), strategy.to_converter(), int(seed), bar.update)


def _deliver_again(settings: StudySettings, result: LayersResult, show_progress_bar: bool) -> None:
    """Brings tables, figure and means to the network-wide study's run, above the layers' runs."""
    study = result.network.study
    means = {f"layers_tnmse_{name}": mean for name, mean in result.means().items()}
    study.set_user_attr(METRICS, study.user_attrs[METRICS] | means)
    destination = destination_of(settings)
    if destination is not None:
        with Follower(study, destination, show_progress_bar=show_progress_bar) as follower:
            follower.finish(FINISHED)


def _record_accuracy(
    settings: StudySettings,
    result: LayersResult,
    measured: MetricOverTime,
    files: list[Path],
    network: NetworkSetup,
    started_s: float,
) -> None:
    """Records the metric over time as a run of its own under the network-wide study's."""
    destination = destination_of(settings)
    if destination is None or result.network.run_id is None:
        return
    parameters = settings.model_dump(include={"model", "data", "repeats", "seed"})
    parameters |= {"metric": network.metric_name, "rpu_config": network.hardware}
    measured.record(
        files,
        destination,
        run_name=f"{measured.metric} of {result.network.study.study_name} by layer"[:250],
        parameters=parameters,
        tags={PARENT_TAG: result.network.run_id},
        started_s=started_s,
    )
