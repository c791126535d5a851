"""What users write about their hardware, and what they measured on it, as aihwkit's objects."""

from wpo_optuna.hardware.descriptions import (
    DAY,
    NAMED_RPU_CONFIGS,
    SECOND_TO_YEAR,
    SECONDS_PER_UNIT,
    NamedRPUConfig,
    conductance_range,
    format_duration,
    is_strategy_file,
    named_rpu_config,
    parse_converter,
    parse_durations,
    rpu_config,
    rpu_configs,
    split_sources,
)

__all__ = [
    "DAY",
    "NAMED_RPU_CONFIGS",
    "SECONDS_PER_UNIT",
    "SECOND_TO_YEAR",
    "NamedRPUConfig",
    "conductance_range",
    "format_duration",
    "is_strategy_file",
    "named_rpu_config",
    "parse_converter",
    "parse_durations",
    "rpu_config",
    "rpu_configs",
    "split_sources",
]
