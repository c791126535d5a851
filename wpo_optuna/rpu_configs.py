"""Named hardware descriptions: aihwkit RPU configurations, and what fits each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from aihwkit.inference import (
    DualPairConductanceConverter,
    GlobalDriftCompensation,
    PCMLikeNoiseModel,
    ReRamCMONoiseModel,
    ReRamWan2022NoiseModel,
)
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.inference.noise.hermes import HermesNoiseModel
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.parameters import MappingParameter, WeightClipParameter
from aihwkit.simulator.parameters.enums import (
    BoundManagementType,
    NoiseManagementType,
    WeightClipType,
    WeightNoiseType,
)
from aihwkit.simulator.presets import PresetIOParameters, StandardHWATrainingPreset

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.network.references import call_function, is_reference, load_function

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
SECOND_TO_YEAR = (1.0, MINUTE, HOUR, DAY, 30 * DAY, 360 * DAY)


@dataclass(frozen=True)
class NamedRPUConfig:
    """A hardware description with a name, and the problem settings that fit its devices.

    Attributes:
        name: What the user types.
        description: One line for the listing of all names.
        build: Makes a fresh configuration.
        g_min: Lowest conductance its noise model was characterised for (µS).
        g_max: Highest conductance its noise model was characterised for (µS).
        t_steps: Sensible times after programming to optimise over (s).
        only_these_times: True if the noise model knows no other times than ``t_steps``.
    """

    name: str
    description: str
    build: Callable[[], InferenceRPUConfig]
    g_min: float
    g_max: float
    t_steps: tuple[float, ...] = SECOND_TO_YEAR
    only_these_times: bool = False

    def baseline(self) -> DualPairConductanceConverter:
        """The strategy to beat: two equal pairs, the second used once the first is full."""
        return DualPairConductanceConverter([1.0, 1.0], g_min=self.g_min, g_max=self.g_max)


def rpu_config(source: str) -> InferenceRPUConfig:
    """A new RPU configuration, by name or from a function of the user's.

    Args:
        source: A name of ``NAMED_RPU_CONFIGS`` (``pcm``, ``standard-hwa``, ``reram-wan``,
            ``reram-cmo``, ``hermes``), or ``package.module:function`` or
            ``path/file.py:function`` for a function that takes no arguments and returns an
            ``InferenceRPUConfig``.

    Raises:
        InvalidArgument: If the name or the function cannot be found, the function raises, or what
            it returns is not an ``InferenceRPUConfig`` with a noise model.
    """
    if not is_reference(source):
        return named_rpu_config(source).build()
    config = call_function(load_function(source, argument="rpu_config"), source, "rpu_config")
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
    return config


def named_rpu_config(name: str) -> NamedRPUConfig:
    """The registry's entry for a name, with the settings that fit it.

    Raises:
        InvalidArgument: If there is no configuration of that name.
    """
    if name in NAMED_RPU_CONFIGS:
        return NAMED_RPU_CONFIGS[name]
    close = get_close_matches(name, NAMED_RPU_CONFIGS, n=1, cutoff=0.5)
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    raise InvalidArgument(
        f"rpu_config {name!r} is not known{meant}: give one of {', '.join(NAMED_RPU_CONFIGS)}, "
        "or package.module:function or path/file.py:function returning an InferenceRPUConfig."
    )


def _analog_network(noise_model: BaseNoiseModel, forward: PresetIOParameters) -> InferenceRPUConfig:
    """The configuration of aihwkit's example 33, for any devices and periphery."""
    return InferenceRPUConfig(
        clip=WeightClipParameter(type=WeightClipType.FIXED_VALUE, fixed_value=1.0),
        mapping=MappingParameter(
            digital_bias=True,
            learn_out_scaling=True,
            weight_scaling_omega=1.0,
            out_scaling_columnwise=True,
            weight_scaling_columnwise=True,
            max_input_size=512,
            max_output_size=0,
        ),
        forward=forward,
        noise_model=noise_model,
        drift_compensation=GlobalDriftCompensation(),
    )


def _periphery(w_noise: float, w_noise_type: WeightNoiseType) -> PresetIOParameters:
    """Converters of 256 levels, as in aihwkit's example 33, and some short-term read noise."""
    return PresetIOParameters(
        inp_res=256,
        out_res=256,
        out_bound=10.0,
        out_noise=0.04,
        w_noise=w_noise,
        w_noise_type=w_noise_type,
        bound_management=BoundManagementType.ITERATIVE,
        noise_management=NoiseManagementType.ABS_MAX,
    )


def _pcm() -> InferenceRPUConfig:
    return _analog_network(PCMLikeNoiseModel(), _periphery(0.0175, WeightNoiseType.PCM_READ))


def _hermes() -> InferenceRPUConfig:
    return _analog_network(
        HermesNoiseModel(num_devices=2), _periphery(0.0175, WeightNoiseType.PCM_READ)
    )


def _reram_wan() -> InferenceRPUConfig:
    # The fitted polynomials are in µS of a 40 µS device. Short-term read noise is not in them;
    # aihwkit's documentation of both ReRAM models advises 1 % additive noise for it.
    return _analog_network(
        ReRamWan2022NoiseModel(g_max=40.0), _periphery(0.01, WeightNoiseType.ADDITIVE_CONSTANT)
    )


def _reram_cmo() -> InferenceRPUConfig:
    return _analog_network(
        ReRamCMONoiseModel(g_min=9.0, g_max=88.2, acceptance_range=0.2),
        _periphery(0.01, WeightNoiseType.ADDITIVE_CONSTANT),
    )


NAMED_RPU_CONFIGS: dict[str, NamedRPUConfig] = {
    config.name: config
    for config in (
        NamedRPUConfig(
            "pcm",
            "phase-change memory of aihwkit's example 33: 0-25 µS, 256-level converters",
            _pcm,
            g_min=0.0,
            g_max=25.0,
        ),
        NamedRPUConfig(
            "standard-hwa",
            "phase-change memory of aihwkit's StandardHWATrainingPreset (Rasch et al. 2023): "
            "0-25 µS, 8-bit converters, IR drop",
            StandardHWATrainingPreset,
            g_min=0.0,
            g_max=25.0,
        ),
        NamedRPUConfig(
            "reram-wan",
            "ReRAM of Wan et al. (Nature 2022): 0-40 µS, measured only 1 s, 1 day and 2 days "
            "after programming",
            _reram_wan,
            g_min=0.0,
            g_max=40.0,
            t_steps=(1.0, DAY, 2 * DAY),
            only_these_times=True,
        ),
        NamedRPUConfig(
            "reram-cmo",
            "conductive-metal-oxide/HfOx ReRAM of IBM Research Zurich: 9-88.2 µS, "
            "0.2 % programming acceptance range",
            _reram_cmo,
            g_min=9.0,
            g_max=88.2,
        ),
        NamedRPUConfig(
            "hermes",
            "phase-change memory of the IBM HERMES chip (Le Gallo et al. 2023), two devices "
            "per conductance: 0-20.7 µS",
            _hermes,
            g_min=0.0,
            g_max=20.7,
        ),
    )
}
