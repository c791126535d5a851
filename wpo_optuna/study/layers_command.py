"""``--per layer`` of the study's command: one strategy for each layer, and what that is worth."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.evaluate import accuracy_figure
from wpo_optuna.evaluate.accuracy import (
    MetricOverTime,
    Programming,
    compare_over_time,
    number_of_measurements,
)
from wpo_optuna.evaluate.accuracy_tracking import record_or_warn
from wpo_optuna.evaluate.evaluation_setup import NetworkSetup, set_up_network
from wpo_optuna.hardware import rpu_config
from wpo_optuna.network.apply import layers_by_parameter
from wpo_optuna.study.environment import versions
from wpo_optuna.study.layers import Layer, LayersResult, RunStudy, run_layers
from wpo_optuna.study.problem_setup import ProblemSetup, make_problem
from wpo_optuna.study.progress import Progress
from wpo_optuna.study.results_folder import directory_of_study
from wpo_optuna.track.delivery.trial_runs import PARENT_TAG
from wpo_optuna.track.tracker import MlflowTracker

if TYPE_CHECKING:
    from wpo_optuna.network.weights import LayerWeights
    from wpo_optuna.study.settings import Settings

LAYERS_FILE = "layers.csv"
NETWORK_WIDE, PER_LAYER = "network-wide", "per layer"


def run(
    settings: Settings, setup: ProblemSetup, run_study: RunStudy, study_name: str, quiet: bool
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
    places = {} if network is None else layers_by_parameter(names, network.network.analog)
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
    files = [result.write(output / LAYERS_FILE)]
    told = [result.table(), ""]
    zero = [weights.name for weights in setup.checkpoint.layers if weights.is_zero]
    if zero:
        told += [f"all weights are zero, so that any strategy will do: {', '.join(zero)}", ""]
    if network is None:
        told += ["For the accuracy as well, run this again with --model and --data.", ""]
    else:
        started_s = time.time()
        measured = _measure(settings, setup, network, result, places, Progress(not quiet))
        of_accuracy = _write(measured, output)
        _record_accuracy(settings, result, measured, of_accuracy, network, started_s)
        files += of_accuracy
        told += [measured.table(), ""]
    _hand_to_mlflow(settings, result, files)
    told.append(f"tables           {output}")
    return result, "\n".join(told)


def _network(settings: Settings) -> NetworkSetup | None:
    if settings.model is None:
        for name in ("data", "metric"):
            if getattr(settings, name) is not None:
                raise InvalidArgument(
                    f"{name} = {getattr(settings, name)!r}: this measures a network, give one "
                    "with model."
                )
        return None
    if settings.data is None:
        raise InvalidArgument(
            f"model = {settings.model!r}: data are needed to measure it, give a function that "
            "returns batches."
        )
    network = set_up_network(
        model=settings.model,
        data=settings.data,
        metric=settings.metric,
        rpu_config=settings.rpu_config,
    )
    if settings.repeats < 1:
        raise InvalidArgument(
            f"repeats = {settings.repeats}: a whole number of at least 1 is needed."
        )
    return network


def _layer(settings: Settings, weights: LayerWeights) -> Layer:
    return Layer(
        weights.name,
        weights.shape,
        lambda: make_problem(settings, weights.weights(), rpu_config(settings.rpu_config)),
    )


def _measure(
    settings: Settings,
    setup: ProblemSetup,
    network: NetworkSetup,
    result: LayersResult,
    places: Mapping[str, str],
    progress: Progress,
) -> MetricOverTime:
    problem = setup.problem
    assert result.network.strategy is not None
    programmings: dict[str, Programming] = {
        NETWORK_WIDE: result.network.strategy,
        PER_LAYER: {places[name]: strategy for name, strategy in result.strategies.items()},
    }
    total = number_of_measurements(
        network.network, len(programmings), len(problem.t_steps), settings.repeats
    )
    with progress.bar("evaluating", total, "measurement") as bar:
        return compare_over_time(
            network.network, programmings, problem.g_converter_baseline, network.data,
            problem.t_steps, network.metric, metric_name=network.metric_name,
            repeats=settings.repeats, seed=settings.seed, on_measured=bar.update,
        )  # fmt: skip


def _write(measured: MetricOverTime, output: Path) -> list[Path]:
    directory = output / "accuracy"
    return [
        measured.write_measurements(directory / "measurements.csv"),
        measured.write_summary(directory / "summary.csv"),
        *accuracy_figure.save(measured, directory, "over_time"),
    ]


def _hand_to_mlflow(settings: Settings, result: LayersResult, files: list[Path]) -> None:
    """Gives tables, figure and means to the network-wide study's run, above the layers' runs."""
    if settings.tracking_uri == "none":
        return
    with MlflowTracker(settings.tracking_uri, settings.experiment, settings.trial_runs) as tracker:
        tracker.attach(result.network.study)
        for path in files:
            tracker.log_artifact(path, "layers")
        tracker.log_metrics({f"layers_tnmse_{name}": mean for name, mean in result.means().items()})


def _record_accuracy(
    settings: Settings,
    result: LayersResult,
    measured: MetricOverTime,
    files: list[Path],
    network: NetworkSetup,
    started_s: float,
) -> None:
    """Records the metric over time as a run of its own under the network-wide study's."""
    if settings.tracking_uri == "none" or result.network.run_id is None:
        return
    names = ("model", "data", "repeats", "seed")
    parameters = {name: getattr(settings, name) for name in names}
    parameters |= {"metric": network.metric_name, "rpu_config": network.hardware}
    tags = {f"version.{name}": version for name, version in versions().items()}
    tags[PARENT_TAG] = result.network.run_id
    record_or_warn(
        measured,
        files,
        tracking_uri=settings.tracking_uri,
        experiment_name=settings.experiment,
        run_name=f"{measured.metric} of {result.network.study.study_name} by layer"[:250],
        parameters=parameters,
        tags=tags,
        started_s=started_s,
    )
