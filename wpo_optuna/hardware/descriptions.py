"""What users write about their hardware, and the objects of aihwkit that it stands for.

Named RPU configurations (``pcm``), converters (``dual:1,1``), times after programming (``1s,1h``).
aihwkit, whose import takes seconds, is imported where an object of it is made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpo_optuna.errors import InvalidArgument, did_you_mean
from wpo_optuna.network.references import call_function, is_reference, load_function
from wpo_optuna.strategy import ProgrammingStrategy

if TYPE_CHECKING:
    from aihwkit.inference import DualPairConductanceConverter
    from aihwkit.inference.converter.base import BaseConductanceConverter
    from aihwkit.inference.noise.base import BaseNoiseModel
    from aihwkit.simulator.configs import InferenceRPUConfig

# A year of 365 days: what a calendar makes of it is below the resolution of any drift model.
SECONDS_PER_UNIT = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "y": 365 * 86400.0}
DAY = SECONDS_PER_UNIT["d"]
SECOND_TO_YEAR = (1.0, 60.0, 3600.0, DAY, 30 * DAY, 360 * DAY)

_DURATION = re.compile(r"((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([a-zµ]*)", re.IGNORECASE)


# RPU configurations


@dataclass(frozen=True)
class NamedRPUConfig:
    """A hardware description with a name, and the problem settings that fit its devices.

    Attributes:
        name: what the user types.
        description: one line for the listing of all names.
        noise_model: module and class of the noise model in ``aihwkit.inference``; empty for
            aihwkit's ``StandardHWATrainingPreset`` as it is.
        g_min: lowest conductance the noise model was characterised for (µS).
        g_max: highest conductance the noise model was characterised for (µS).
        noise_options: the noise model's options.
        read_noise: short-term read noise in the forward pass and its kind, a name of
            ``WeightNoiseType``.
        t_steps: sensible times after programming to optimise over (s).
        only_these_times: whether the noise model knows no other times than ``t_steps``.
    """

    name: str
    description: str
    noise_model: str
    g_min: float
    g_max: float
    noise_options: Mapping[str, float] = field(default_factory=dict)
    read_noise: tuple[float, str] = (0.0175, "PCM_READ")
    t_steps: tuple[float, ...] = SECOND_TO_YEAR
    only_these_times: bool = False

    def build(self) -> InferenceRPUConfig:
        """A fresh configuration: that of aihwkit's example 33, with these devices."""
        from aihwkit.inference import GlobalDriftCompensation
        from aihwkit.simulator import parameters as p
        from aihwkit.simulator.configs import InferenceRPUConfig
        from aihwkit.simulator.parameters import enums
        from aihwkit.simulator.presets import PresetIOParameters, StandardHWATrainingPreset

        if not self.noise_model:
            return StandardHWATrainingPreset()
        module, _, noise_model = self.noise_model.rpartition(".")
        w_noise, w_noise_type = self.read_noise
        return InferenceRPUConfig(
            clip=p.WeightClipParameter(type=enums.WeightClipType.FIXED_VALUE, fixed_value=1.0),
            mapping=p.MappingParameter(
                digital_bias=True,
                learn_out_scaling=True,
                weight_scaling_omega=1.0,
                out_scaling_columnwise=True,
                weight_scaling_columnwise=True,
                max_input_size=512,
                max_output_size=0,
            ),
            forward=PresetIOParameters(
                inp_res=256,
                out_res=256,
                out_bound=10.0,
                out_noise=0.04,
                w_noise=w_noise,
                w_noise_type=enums.WeightNoiseType[w_noise_type],
                bound_management=enums.BoundManagementType.ITERATIVE,
                noise_management=enums.NoiseManagementType.ABS_MAX,
            ),
            noise_model=getattr(import_module(f"aihwkit.inference.noise.{module}"), noise_model)(
                **self.noise_options
            ),
            drift_compensation=GlobalDriftCompensation(),
        )

    def baseline(self) -> DualPairConductanceConverter:
        """The strategy to beat: two equal pairs, the second used once the first is full."""
        from aihwkit.inference import DualPairConductanceConverter

        return DualPairConductanceConverter([1.0, 1.0], g_min=self.g_min, g_max=self.g_max)


NAMED_RPU_CONFIGS: dict[str, NamedRPUConfig] = {
    config.name: config
    for config in (
        NamedRPUConfig(
            "pcm",
            "phase-change memory of aihwkit's example 33: 0-25 µS, 256-level converters",
            "pcm.PCMLikeNoiseModel", 0.0, 25.0,
        ),
        NamedRPUConfig(
            "standard-hwa",
            "phase-change memory of aihwkit's StandardHWATrainingPreset (Rasch et al. 2023): "
            "0-25 µS, 8-bit converters, IR drop",
            "", 0.0, 25.0,
        ),
        # The fitted polynomials of the first ReRAM are in µS of a 40 µS device. Short-term read
        # noise is in neither; aihwkit's documentation of both advises 1 % additive noise for it.
        NamedRPUConfig(
            "reram-wan",
            "ReRAM of Wan et al. (Nature 2022): 0-40 µS, measured only 1 s, 1 day and 2 days "
            "after programming",
            "reram.ReRamWan2022NoiseModel", 0.0, 40.0, {"g_max": 40.0},
            read_noise=(0.01, "ADDITIVE_CONSTANT"),
            t_steps=(1.0, DAY, 2 * DAY), only_these_times=True,
        ),
        NamedRPUConfig(
            "reram-cmo",
            "conductive-metal-oxide/HfOx ReRAM of IBM Research Zurich: 9-88.2 µS, "
            "0.2 % programming acceptance range",
            "reram.ReRamCMONoiseModel", 9.0, 88.2,
            {"g_min": 9.0, "g_max": 88.2, "acceptance_range": 0.2},
            read_noise=(0.01, "ADDITIVE_CONSTANT"),
        ),
        NamedRPUConfig(
            "hermes",
            "phase-change memory of the IBM HERMES chip (Le Gallo et al. 2023), two devices "
            "per conductance: 0-20.7 µS",
            "hermes.HermesNoiseModel", 0.0, 20.7, {"num_devices": 2},
        ),
    )
}  # fmt: skip


def rpu_config(source: str) -> InferenceRPUConfig:
    """A new RPU configuration, by name or from a function of the user's.

    Args:
        source: a name of ``NAMED_RPU_CONFIGS`` (``pcm``, ``standard-hwa``, ``reram-wan``,
            ``reram-cmo``, ``hermes``), or ``package.module:function`` or
            ``path/file.py:function`` for a function that takes no arguments and returns an
            ``InferenceRPUConfig``.

    Raises:
        InvalidArgument: the name or the function cannot be found, the function raises, or what it
            returns is not an ``InferenceRPUConfig`` with a noise model.
    """
    configs = rpu_configs(source)
    if len(configs) > 1:
        raise InvalidArgument(
            f"rpu_config {source!r} stands for {len(configs)} configurations; one is needed here."
        )
    return configs[0]


def rpu_configs(sources: str) -> list[InferenceRPUConfig]:
    """New RPU configurations, such as of ``pcm,hermes``.

    Args:
        sources: sources as :func:`rpu_config` takes them, separated by commas; a function may
            also return or yield several configurations.

    Raises:
        InvalidArgument: as for :func:`rpu_config`.
    """
    configs: list[InferenceRPUConfig] = []
    for source in split_sources(sources):
        if is_reference(source):
            configs += _configs_of_function(source)
        else:
            configs.append(named_rpu_config(source).build())
    return configs


def split_sources(sources: str) -> list[str]:
    """The parts of a list of sources such as ``pcm,hermes``."""
    return [source.strip() for source in sources.split(",")]


def _configs_of_function(source: str) -> list[InferenceRPUConfig]:
    from aihwkit.inference.noise.base import BaseNoiseModel
    from aihwkit.simulator.configs import InferenceRPUConfig

    function = load_function(source, argument="rpu_config")

    def made() -> list[Any]:
        returned = function()
        return list(returned) if isinstance(returned, Iterable) else [returned]

    configs = call_function(made, source, "rpu_config")
    if not configs:
        raise InvalidArgument(f"rpu_config {source!r} returned no configuration.")
    for config in configs:
        if not isinstance(config, InferenceRPUConfig):
            raise InvalidArgument(
                f"rpu_config {source!r} returned {type(config).__name__}; "
                "an aihwkit InferenceRPUConfig is needed."
            )
        if not isinstance(config.noise_model, BaseNoiseModel):
            raise InvalidArgument(
                f"rpu_config {source!r} returned a configuration whose noise_model is "
                f"{type(config.noise_model).__name__}; an aihwkit noise model is needed."
            )
    return configs


def named_rpu_config(name: str) -> NamedRPUConfig:
    """The registry's entry for a name, with the settings that fit it.

    Raises:
        InvalidArgument: there is no configuration of that name.
    """
    if name in NAMED_RPU_CONFIGS:
        return NAMED_RPU_CONFIGS[name]
    raise InvalidArgument(
        f"rpu_config {name!r} is not known{did_you_mean(name, NAMED_RPU_CONFIGS)}: give one of "
        f"{', '.join(NAMED_RPU_CONFIGS)}, or package.module:function or path/file.py:function "
        "returning an InferenceRPUConfig."
    )


def conductance_range(noise_model: BaseNoiseModel) -> tuple[float, float]:
    """Lowest and highest conductance in µS that a noise model describes.

    Noise models say it in different ways: a ``g_max`` that their fits are relative to, a ``g_min``
    (``ReRamCMONoiseModel``), or the table of a ``CustomDriftPCMLikeNoiseModel``. Where one does
    not say, the range is open: from 0 or to infinity.
    """
    lowest = float(getattr(noise_model, "g_min", None) or 0.0)
    g_max = getattr(noise_model, "g_max", None)
    highest = math.inf if g_max is None else float(g_max)
    drift_model = getattr(noise_model, "custom_drift_model", None)
    if drift_model is not None:
        lowest = max(lowest, float(min(drift_model["g_lst"])))
        highest = min(highest, float(max(drift_model["g_lst"])))
    return lowest, highest


# Converters


def parse_converter(
    text: str, g_min: float, g_max: float, argument: str
) -> BaseConductanceConverter:
    """The aihwkit converter that a specification stands for.

    Args:
        text: ``single`` for one pair of devices; ``dual:1,1`` or ``npair:1,2,4`` for pairs with
            these significance factors, each used once those before it are full; or the path of a
            strategy's file.
        g_min: lowest conductance of a device in µS.
        g_max: highest conductance of a device in µS.
        argument: which of the user's arguments this is, for the messages.

    Returns:
        a converter with this g_min and g_max; a strategy may use a part of the range alone.

    Raises:
        InvalidArgument: the text has none of these forms, the file cannot be used, or its
            conductances leave the range.
    """
    if not 0 <= g_min < g_max < math.inf:
        raise InvalidArgument(
            f"g_min = {g_min:g}, g_max = {g_max:g}: 0 <= g_min < g_max is needed (µS)."
        )
    if is_strategy_file(text):
        return _from_strategy(text, g_min, g_max, argument)
    name, colon, listed = text.lower().partition(":")
    name, factors = name.strip(), _factors(listed)
    fits = {"single": not colon, "dual": len(factors) == 2, "npair": len(factors) > 0}
    if not fits.get(name, False):
        hint = "" if name in fits else did_you_mean(name, fits)
        raise InvalidArgument(
            f"{argument} = {text!r}: single, dual:F,F or npair:F,F,... with positive significance "
            f"factors F, or the path of a strategy.json is needed{hint}."
        )
    from aihwkit.inference.converter import conductance

    if name == "single":
        return conductance.SinglePairConductanceConverter(g_min=g_min, g_max=g_max)
    if name == "dual":
        return conductance.DualPairConductanceConverter(factors, g_min=g_min, g_max=g_max)
    return conductance.NPairConductanceConverter(factors, g_min=g_min, g_max=g_max)


def is_strategy_file(text: str) -> bool:
    """Whether a specification names a file rather than a converter of aihwkit."""
    return text.lower().endswith(".json") or Path(text).is_file()


def _factors(listed: str) -> list[float]:
    """Significance factors; none if they are not all positive numbers."""
    try:
        factors = [float(entry) for entry in listed.split(",")]
    except ValueError:
        return []
    return factors if all(0 < factor < math.inf for factor in factors) else []


def _from_strategy(
    path: str, g_min: float, g_max: float, argument: str
) -> BaseConductanceConverter:
    try:
        strategy = ProgrammingStrategy.load(path)
    except InvalidArgument as error:
        raise InvalidArgument(f"{argument} = {path!r}: {error}") from error
    conductances = [g for curve in strategy.g_lst for g in curve]
    lowest, highest = min(conductances), max(conductances)
    slack = 1e-9 * g_max  # as strategies allow to rounding
    if lowest < g_min - slack or highest > g_max + slack:
        raise InvalidArgument(
            f"{argument} = {path!r}: the strategy's conductances, {lowest:g} to {highest:g} µS, "
            f"leave the range of the devices, {g_min:g} to {g_max:g} µS."
        )
    converter = strategy.to_converter()
    converter.g_min, converter.g_max = g_min, g_max
    return converter


# Times after programming


def parse_durations(text: str, argument: str) -> tuple[float, ...]:
    """Ascending times in s from a list such as ``1s,1min,1h,1d,30d,1y``.

    Args:
        text: durations separated by commas, each a number with a unit (s, min, h, d of 86 400 s,
            y of 365 d); a number alone is in seconds.
        argument: which of the user's arguments this is, for the messages.

    Raises:
        InvalidArgument: an entry is no duration, or the times do not ascend.
    """
    times = tuple(_parse_duration(entry.strip(), text, argument) for entry in text.split(","))
    ascending = tuple(sorted(set(times)))
    if times != ascending:
        raise InvalidArgument(
            f"{argument} = {text!r}: times must ascend, each one once, e.g. "
            f"{','.join(map(format_duration, ascending))}."
        )
    return times


def format_duration(seconds: float) -> str:
    """A duration in the largest unit that counts it in whole numbers.

    ``parse_durations`` reads back exactly the same number of seconds.
    """
    for unit, seconds_per_unit in reversed(SECONDS_PER_UNIT.items()):
        count = seconds / seconds_per_unit
        if seconds > 0 and count.is_integer() and count * seconds_per_unit == seconds:
            return f"{int(count)}{unit}" if count < 1e9 else f"{count!r}{unit}"
    return f"{seconds:g}s" if float(f"{seconds:g}") == seconds else f"{seconds!r}s"


def _parse_duration(entry: str, text: str, argument: str) -> float:
    match = _DURATION.fullmatch(entry)
    unit = (match.group(2).lower() or "s") if match else ""
    if match is None or unit not in SECONDS_PER_UNIT:
        raise InvalidArgument(
            f"{argument} = {text!r} contains {entry!r}: each time is a number with a unit, "
            f"{', '.join(SECONDS_PER_UNIT)}, e.g. 1s,1min,1h,1d,30d,1y; a number alone is in "
            "seconds."
        )
    seconds = float(match.group(1)) * SECONDS_PER_UNIT[unit]
    if not math.isfinite(seconds):
        raise InvalidArgument(f"{argument} = {text!r} contains {entry!r}: this time is infinite.")
    return seconds
