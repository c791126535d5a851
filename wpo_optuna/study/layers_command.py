"""``--per layer`` of the study's command: one strategy for each layer, and what that is worth."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wpo_optuna.evaluate.accuracy import (
    NetworkSetup,
    Programming,
    compare_over_time,
    set_up_network,
)
from wpo_optuna.evaluate.metric_over_time import MetricOverTime
from wpo_optuna.hardware import rpu_config
from wpo_optuna.study.attributes import FINISHED, METRICS
from wpo_optuna.study.layers import Layer, LayersResult, RunStudy, run_layers
from wpo_optuna.study.problem_setup import ProblemSetup, make_problem
from wpo_optuna.study.results_folder import directory_of_study
from wpo_optuna.study.run import destination_of
from wpo_optuna.track.follower import Follower
from wpo_optuna.track.study_run import PARENT_TAG

if TYPE_CHECKING:
    from wpo_optuna.network.weights import LayerWeights
    from wpo_optuna.study.settings import StudySettings

LAYERS_FILE = "layers.csv"
NETWORK_WIDE, PER_LAYER = "network-wide", "per layer"


def run(
    settings: StudySettings, setup: ProblemSetup, run_study: RunStudy, study_name: str, quiet: bool
) -> tuple[LayersResult, str]:
    """Runs or resumes all studies of a network, and compares what they found.

    Args:
        settings: what the user asked for.
        setup: the network-wide problem.
        run_study: runs one study.
        study_name: name of the network-wide study.
        quiet: whether to show no progress.

    Returns:
        the strategies, and the text to print.

    Raises:
        InvalidArgument: a setting cannot be used.
    """
    # Before a search of minutes, and before anything is written.
    network = _network(settings)
    searched = [weights for weights in setup.checkpoint.layers if not weights.is_zero]
    names = [weights.name for weights in searched]
    places = {} if network is None else network.network.layers_by_parameter(names)
    layers = [_layer(settings, weights) for weights in searched]
    numbers = {layer.name: number for number, layer in enumerate(layers, start=1)}

    def announce(layer: Layer) -> None:
        if not quiet:
            print(f"layer {numbers[layer.name]} of {len(layers)}: {layer.name}", file=sys.stderr)

    result = run_layers(
        run_study, setup.problem, layers, study_name,
        on_layer=announce, show_progress_bar=not quiet,
    )  # fmt: skip
    if result.interrupted:
        return result, ""
    output = directory_of_study(Path(settings.output), study_name)
    result.write(output / "layers" / LAYERS_FILE)
    told = [result.table(), ""]
    zero = [weights.name for weights in setup.checkpoint.layers if weights.is_zero]
    if zero:
        told += [f"all weights are zero, so that any strategy will do: {', '.join(zero)}", ""]
    if network is None:
        told += ["For the accuracy as well, run this again with --model and --data.", ""]
    else:
        started_s = time.time()
        measured = _measure(settings, setup, network, result, places, quiet)
        files = measured.save(output / "layers")
        _record_accuracy(settings, result, measured, files, network, started_s)
        told += [measured.table(), ""]
    _deliver_again(settings, result, quiet)
    told.append(f"tables           {output / 'layers'}")
    return result, "\n".join(told)


def _network(settings: StudySettings) -> NetworkSetup | None:
    if settings.model is None or settings.data is None:
        return None
    return set_up_network(
        model=settings.model,
        data=settings.data,
        metric=settings.metric,
        rpu_config=settings.rpu_config,
    )


def _layer(settings: StudySettings, weights: LayerWeights) -> Layer:
    return Layer(
        weights.name,
        weights.shape,
        lambda: make_problem(settings, weights.weights(), rpu_config(settings.rpu_config)),
    )


def _measure(
    settings: StudySettings,
    setup: ProblemSetup,
    network: NetworkSetup,
    result: LayersResult,
    places: Mapping[str, Sequence[str]],
    quiet: bool,
) -> MetricOverTime:
    problem = setup.problem
    assert result.network.strategy is not None
    programmings: dict[str, Programming] = {
        NETWORK_WIDE: result.network.strategy,
        PER_LAYER: {
            layer: strategy
            for name, strategy in result.strategies.items()
            for layer in places[name]
        },
    }
    return compare_over_time(
        network, programmings, problem.g_converter_baseline, problem.t_steps,
        repeats=settings.repeats, seed=settings.seed, show_progress_bar=not quiet,
    )  # fmt: skip


def _deliver_again(settings: StudySettings, result: LayersResult, quiet: bool) -> None:
    """Brings tables, figure and means to the network-wide study's run, above the layers' runs."""
    study = result.network.study
    means = {f"layers_tnmse_{name}": mean for name, mean in result.means().items()}
    study.set_user_attr(METRICS, study.user_attrs[METRICS] | means)
    destination = destination_of(settings)
    if destination is not None:
        with Follower(study, destination, show_progress_bar=not quiet) as follower:
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
    names = ("model", "data", "repeats", "seed")
    parameters = {name: getattr(settings, name) for name in names}
    parameters |= {"metric": network.metric_name, "rpu_config": network.hardware}
    measured.record(
        files,
        destination,
        run_name=f"{measured.metric} of {result.network.study.study_name} by layer"[:250],
        parameters=parameters,
        tags={PARENT_TAG: result.network.run_id},
        started_s=started_s,
    )
