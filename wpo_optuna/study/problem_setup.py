"""From the settings a user wrote to the problem they stand for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.hardware import (
    NAMED_RPU_CONFIGS,
    SECOND_TO_YEAR,
    conductance_range,
    format_duration,
    parse_converter,
    parse_durations,
    rpu_config,
)
from wpo_optuna.network.weights import CheckpointWeights, read_weights
from wpo_optuna.problem import WeightProgrammingProblem
from wpo_optuna.study.settings import ProblemOptions

if TYPE_CHECKING:
    from aihwkit.simulator.configs import InferenceRPUConfig
    from torch import Tensor

    from wpo_optuna.study.objective import HypercubeObjective
    from wpo_optuna.study.settings import StudySettings

EXAMPLE = "digits"


@dataclass(frozen=True)
class ProblemSetup:
    """A problem and where its weights come from.

    Attributes:
        problem: the problem.
        label: short name of the network, for the study's name.
        checkpoint: what was read.
    """

    problem: WeightProgrammingProblem
    label: str
    checkpoint: CheckpointWeights


def set_up_problem(settings: StudySettings, show_progress_bar: bool = False) -> ProblemSetup:
    """Reads the weights and the hardware, and puts the problem together.

    Raises:
        InvalidArgument: a setting cannot be used.
    """
    # What is told at once before a checkpoint that takes minutes.
    parse_factors(settings.f_lst)
    if settings.t_steps is not None:
        parse_durations(settings.t_steps, "t_steps")
    hardware = rpu_config(settings.rpu_config)
    conductances_of(settings, hardware)
    checkpoint = _read(settings, hardware, show_progress_bar)
    label = EXAMPLE if settings.weights is None else _label(settings.weights)
    return ProblemSetup(make_problem(settings, checkpoint.weights, hardware), label, checkpoint)


def make_problem(
    settings: StudySettings, weights: Tensor, hardware: InferenceRPUConfig
) -> WeightProgrammingProblem:
    """The problem of the given weights on the given hardware, under these settings.

    Raises:
        InvalidArgument: a setting cannot be used.
    """
    g_min, g_max = conductances_of(settings, hardware)
    return WeightProgrammingProblem(
        weights=weights,
        f_lst=parse_factors(settings.f_lst),
        rpu_config=hardware,
        t_steps=times_of(settings),
        g_converter_baseline=parse_converter(settings.baseline, g_min, g_max, "baseline"),
        symmetric=settings.symmetric,
        **{name: getattr(settings, name) for name in ProblemOptions.model_fields},
        seed=settings.seed,
    )


def conductances_of(settings: StudySettings, hardware: InferenceRPUConfig) -> tuple[float, float]:
    """Lowest and highest conductance in µS: as set, or as the hardware's noise model says.

    Raises:
        InvalidArgument: they are no range, the noise model describes no such devices, or neither
            settings nor noise model say how far conductances go.
    """
    named = NAMED_RPU_CONFIGS.get(settings.rpu_config)
    model = type(hardware.noise_model).__name__
    lowest, highest = conductance_range(hardware.noise_model)
    g_min, g_max = settings.g_min, settings.g_max
    if g_min is None:
        g_min = named.g_min if named else lowest
    if g_max is None:
        g_max = named.g_max if named else highest
    if math.isinf(g_max):
        raise InvalidArgument(
            f"g_max: the {model} does not say which conductances it describes; give the highest "
            "in µS."
        )
    if not 0 <= g_min < g_max:
        raise InvalidArgument(
            f"g_min = {g_min:g}, g_max = {g_max:g}: 0 <= g_min < g_max is needed (µS)."
        )
    slack = 1e-6 * g_max
    if g_min < lowest - slack or g_max > highest + slack:
        raise InvalidArgument(
            f"g_min = {g_min:g}, g_max = {g_max:g}: the {model} describes devices of {lowest:g} "
            f"to {highest:g} µS."
        )
    return g_min, g_max


def times_of(settings: StudySettings) -> tuple[float, ...]:
    """Times after programming in s: as set, or those that fit the hardware.

    Raises:
        InvalidArgument: they cannot be read.
    """
    if settings.t_steps is not None:
        return parse_durations(settings.t_steps, "t_steps")
    named = NAMED_RPU_CONFIGS.get(settings.rpu_config)
    return named.t_steps if named else SECOND_TO_YEAR


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


def _read(
    settings: StudySettings, hardware: InferenceRPUConfig, show_progress_bar: bool
) -> CheckpointWeights:
    mapping = hardware.mapping if settings.tile_scaling else None
    if settings.weights is not None:
        return read_weights(
            settings.weights, settings.include, settings.exclude, mapping, show_progress_bar
        )
    for name in ("include", "exclude"):
        if getattr(settings, name):
            raise InvalidArgument(
                f"{name} = {list(getattr(settings, name))}: patterns choose among the parameters "
                "of a checkpoint, give one with weights."
            )
    with as_file(files("wpo_optuna") / "network" / "data" / "digits_mlp.safetensors") as path:
        return read_weights(path, mapping=mapping)


def _label(source: str) -> str:
    """A short name of a checkpoint: its file's without the ending, or its function's."""
    if ":" in source:
        return source.rsplit(":", 1)[1]
    name = source.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[0] or name


def effective_settings(
    settings: StudySettings, setup: ProblemSetup, objective: HypercubeObjective
) -> StudySettings:
    """What a study was run with: a configuration that repeats it, from any directory.

    Args:
        settings: as the user wrote them.
        setup: the problem they stand for.
        objective: has the engine that was chosen.
    """
    references = ("weights", "rpu_config", "baseline", "model", "data", "metric")
    return settings.model_copy(
        update={name: _absolute(getattr(settings, name)) for name in references}
        | {
            "t_steps": ",".join(map(format_duration, times_of(settings))),
            "g_min": setup.problem.g_min,
            "g_max": setup.problem.g_max,
            "engine": objective.engine.name,
            "study_name": study_name_of(settings, setup),
        }
    )


def study_name_of(settings: StudySettings, setup: ProblemSetup) -> str:
    """The study's name: as set, or made of the network's and the sampler's."""
    return settings.study_name or f"{setup.label}-{settings.sampler}"


def _absolute(text: str | None) -> str | None:
    """A file, or the file of a function, by its absolute path; anything else as it is."""
    if text is None:
        return text
    path, colon, function = text.rpartition(":")
    if colon and path.endswith(".py") and Path(path).is_file():
        return f"{Path(path).resolve()}:{function}"
    return str(Path(text).resolve()) if text and Path(text).exists() else text
