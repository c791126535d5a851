"""The environment a command runs in: versions, whether they work together, how to call programs."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from wpo_optuna.errors import WeightProgrammingError

PACKAGES = ("wpo-optuna", "aihwkit", "torch", "optuna", "mlflow", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Version of Python and of each package, by name."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "not installed"
    return found


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


def program_here(name: str) -> str:
    """The program's name where the shell finds this environment's, else its path.

    Args:
        name: a program installed beside the interpreter, such as ``python`` or ``mlflow``.
    """
    directory = Path(sys.executable).absolute().parent
    program = directory / name
    found = shutil.which(name)
    # Not resolved: environments link to one interpreter, and differ by the directory of the link.
    if not program.exists() or (found and Path(found).absolute().parent == directory):
        return name
    here = Path.cwd()
    return os.path.relpath(program, here) if program.is_relative_to(here) else str(program)
