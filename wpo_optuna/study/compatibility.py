"""Whether the installed aihwkit and torch were made for each other."""

from __future__ import annotations

from importlib.metadata import version

from wpo_optuna.errors import WeightProgrammingError

WORKING_VERSIONS = (
    "on Python 3.11 aihwkit 1.1.0 with torch 2.10 or 2.11, on Python 3.12 and 3.13 aihwkit 1.2.0 "
    "with torch 2.15"
)


def check_aihwkit() -> None:
    """Tries aihwkit's compiled tile on a 1 x 1 matrix.

    Its wheels are compiled against one release of torch; with another, they import and fail
    later, with messages about CPU tensors or missing symbols.

    Raises:
        WeightProgrammingError: the tile does not work; the message names versions that do.
    """
    try:
        import torch
        from aihwkit.nn import AnalogLinear
        from aihwkit.simulator.configs import InferenceRPUConfig

        layer = AnalogLinear(1, 1, bias=False, rpu_config=InferenceRPUConfig())
        layer.set_weights(torch.zeros(1, 1), None)
    except (ImportError, RuntimeError, OSError) as error:
        raise WeightProgrammingError(
            f"aihwkit {version('aihwkit')} does not work with torch {version('torch')} here "
            f"({error}): {WORKING_VERSIONS} work together."
        ) from error
