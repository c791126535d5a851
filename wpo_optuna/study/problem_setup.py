"""From the settings a user wrote to the problem they stand for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from wpo_optuna.errors import InvalidArgument, did_you_mean
from wpo_optuna.hardware import (
    NAMED_RPU_CONFIGS,
    SECOND_TO_YEAR,
    conductance_range,
    format_duration,
    named_rpu_config,
    parse_converter,
    parse_durations,
    rpu_configs,
    split_sources,
)
from wpo_optuna.network.references import is_reference
from wpo_optuna.study.environment import check_directory, directory_of_study
from wpo_optuna.study.settings import ProblemOptions

if TYPE_CHECKING:
    from aihwkit.simulator.configs import InferenceRPUConfig
    from torch import Tensor

    from wpo_optuna.network.weights import CheckpointWeights
    from wpo_optuna.problem import WeightProgrammingProblem
    from wpo_optuna.study.settings import StudySettings

# Devices around the given one; Sobol's points fill the space evenly by powers of two.
_N_AROUND = 8

EXAMPLE = "digits"
EXAMPLE_FILE = Path(__file__).parents[1] / "network" / "data" / "digits_mlp.safetensors"


@dataclass(frozen=True)
class ProblemSetup:
    """A problem and where its weights come from.

    Attributes:
        study_name: name of its study: as set, or made of the network's, the hardware's and the
            sampler's.
        make_problem: the problem of other weights on the same hardware, under the same settings.
        checkpoint: what was read.
        problem: the problem of all its weights.
    """

    study_name: str
    make_problem: Callable[[Tensor], WeightProgrammingProblem]
    checkpoint: CheckpointWeights
    problem: WeightProgrammingProblem


def refuse_at_once(settings: StudySettings) -> None:
    """Refuses what can be refused without torch, whose import takes seconds.

    Raises:
        InvalidArgument: a setting cannot be used.
    """
    parse_factors(settings.f_lst)
    if settings.t_steps is not None:
        parse_durations(settings.t_steps, "t_steps")
    for source in split_sources(settings.rpu_config):
        if not is_reference(source):
            named_rpu_config(source)
    weights = settings.weights
    if weights is not None and not is_reference(weights) and not Path(weights).exists():
        hint = did_you_mean(weights, map(str, Path(weights).parent.glob("*")))
        raise InvalidArgument(f"weights {weights!r}: there is no such file or directory{hint}.")
    if settings.output is not None:
        check_directory(Path(settings.output), "output")
        directory_of_study(Path(settings.output), settings.study_name or EXAMPLE)
    from wpo_optuna.storage import check_kind  # Optuna's import takes half a second
    from wpo_optuna.track.destination import destination_of

    check_kind(settings.storage)
    destination_of(settings)


def set_up_problem(settings: StudySettings, show_progress_bar: bool = False) -> ProblemSetup:
    """Reads the weights and the hardware, and puts the problem together.

    Raises:
        InvalidArgument: a setting cannot be used.
    """
    from wpo_optuna.network.weights import read_weights
    from wpo_optuna.problem import WeightProgrammingProblem

    devices = _devices(settings)
    g_min, g_max = _conductances(settings, devices)
    t_steps = _sensible_times(settings.rpu_config)
    if settings.t_steps is not None:
        t_steps = parse_durations(settings.t_steps, "t_steps")
    # All this is told at once, before a checkpoint is read that takes minutes.
    make_problem: Callable[[Tensor], WeightProgrammingProblem] = partial(
        WeightProgrammingProblem,
        f_lst=parse_factors(settings.f_lst),
        rpu_config=devices[0],
        other_rpu_configs=devices[1:],
        over=settings.over,
        t_steps=t_steps,
        g_converter_baseline=parse_converter(settings.baseline, g_min, g_max, "baseline"),
        symmetric=settings.symmetric,
        **{name: getattr(settings, name) for name in ProblemOptions.model_fields},
        seed=settings.seed,
    )
    mapping = devices[0].mapping if settings.tile_scaling else None
    checkpoint = read_weights(
        settings.weights or EXAMPLE_FILE, settings.include, settings.exclude, mapping,
        show_progress_bar, settings.transposed,
    )  # fmt: skip
    if settings.weights is None:
        account = replace(checkpoint.account, source="the built-in digits network")
        checkpoint = replace(checkpoint, account=account)
    network = EXAMPLE if settings.weights is None else _label(settings.weights)
    study_name = settings.study_name or "-".join(
        (network, *map(_label, split_sources(settings.rpu_config)), settings.sampler)
    )
    return ProblemSetup(study_name, make_problem, checkpoint, make_problem(checkpoint.weights))


def _devices(settings: StudySettings) -> list[InferenceRPUConfig]:
    """The hardware that was given, or the given one and those around it."""
    from wpo_optuna.hardware.device_spread import devices_around, with_factors  # imports torch

    given = rpu_configs(settings.rpu_config)
    spread = settings.device_spread
    if spread is None:
        return given
    if len(given) > 1:
        raise InvalidArgument(
            f"device_spread = {spread}: devices around one rpu_config; "
            f"{settings.rpu_config!r} stands for {len(given)}."
        )
    around = devices_around(spread, _N_AROUND, settings.seed)
    return [*given, *(with_factors(given[0], factors) for factors in around)]


def _sensible_times(sources: str) -> tuple[float, ...]:
    """The times in s that fit named hardware, or those that the choosiest of several knows."""
    named = [NAMED_RPU_CONFIGS[s] for s in split_sources(sources) if s in NAMED_RPU_CONFIGS]
    of_choosy = [config.t_steps for config in named if config.only_these_times]
    return [*of_choosy, *(config.t_steps for config in named), SECOND_TO_YEAR][0]


def _conductances(
    settings: StudySettings, devices: Sequence[InferenceRPUConfig]
) -> tuple[float, float]:
    """Lowest and highest conductance in µS: as set, or what all noise models describe."""
    models = " and the ".join(
        dict.fromkeys(type(config.noise_model).__name__ for config in devices)
    )
    known = [conductance_range(config.noise_model) for config in devices]
    lowest, highest = max(low for low, _ in known), min(high for _, high in known)
    named = [NAMED_RPU_CONFIGS.get(source) for source in split_sources(settings.rpu_config)]
    g_min = max(lowest, *(config.g_min for config in named if config), 0.0)
    g_max = min(highest, *(config.g_max for config in named if config), math.inf)
    g_min = g_min if settings.g_min is None else settings.g_min
    g_max = g_max if settings.g_max is None else settings.g_max
    if math.isinf(g_max):
        raise InvalidArgument(
            f"g_max: which conductances are described, the {models} does not say; give the highest "
            "in µS."
        )
    slack = 1e-6 * g_max
    if not lowest - slack <= g_min < g_max <= highest + slack:
        raise InvalidArgument(
            f"g_min = {g_min:g}, g_max = {g_max:g}: a range is needed, g_min < g_max, within the "
            f"{lowest:g} to {highest:g} µS that are known to the {models}."
        )
    return g_min, g_max


def parse_factors(text: str) -> list[float | None]:
    """Significance factors such as ``1,none``.

    Raises:
        InvalidArgument: an entry is neither a number nor ``none``.
    """
    factors: list[float | None] = []
    for entry in text.split(","):
        word = entry.strip().lower()
        try:
            factors.append(None if word == "none" else float(word))
        except ValueError:
            raise InvalidArgument(
                f"f_lst = {text!r} contains {entry.strip()!r}: significance factors are "
                "positive numbers, or none where the factor is to be found, e.g. 1,none."
            ) from None
    return factors


def _label(source: str) -> str:
    """A short name of a checkpoint or hardware: its own, its file's, or its function's."""
    module, _, function = source.rpartition(":")
    if function == "rpu_config":  # says nothing
        return re.split(r"[./\\]", module.removesuffix(".py"))[-1]
    return function if module else Path(source).absolute().stem


def effective_settings(
    settings: StudySettings, setup: ProblemSetup, engine_name: str
) -> StudySettings:
    """What a study was run with: a configuration that repeats it, from any directory.

    Args:
        settings: as the user wrote them.
        setup: the problem they stand for.
        engine_name: the engine that was chosen.
    """
    references = ("weights", "baseline", "model", "data", "metric")
    return settings.model_copy(
        update={name: _absolute(getattr(settings, name)) for name in references}
        | {
            "rpu_config": ",".join(map(str, map(_absolute, split_sources(settings.rpu_config)))),
            "t_steps": ",".join(map(format_duration, setup.problem.t_steps)),
            "g_min": setup.problem.g_min,
            "g_max": setup.problem.g_max,
            "engine": engine_name,
            "study_name": setup.study_name,
        }
    )


def _absolute(text: str | None) -> str | None:
    """A file, or the file of a function, by its absolute path; anything else as it is."""
    if not text:
        return text
    path, _, function = text.rpartition(":")
    if path.endswith(".py") and Path(path).is_file():
        return f"{Path(path).resolve()}:{function}"
    return str(Path(text).resolve()) if Path(text).exists() else text
