"""The environment a command runs in: versions of packages, programs, and where results go."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath

from wpo_optuna.errors import InvalidArgument, WeightProgrammingError

# Of a directory's name in bytes, and of a study's in Optuna's tables.
_LONGEST_PART, _LONGEST_NAME = 255, 512
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
    return str(from_here(program))


def from_here(path: Path) -> Path:
    """An absolute path, relative to the working directory if it is in it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def check_directory(path: Path, argument: str) -> None:
    """Refuses a directory that cannot be made or written into.

    Args:
        path: the directory, which need not exist.
        argument: which of the user's arguments it is, for the message.

    Raises:
        InvalidArgument: files cannot be written there.
    """
    place = next(place for place in (path, *path.parents) if place.exists())
    if not place.is_dir():
        raise InvalidArgument(f"{argument} = {str(path)!r}: this is not a directory.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InvalidArgument(
            f"{argument} = {str(path)!r}: files cannot be written into {place}; another directory "
            "is needed."
        )


def directory_of_study(output: Path, study_name: str) -> Path:
    """The directory of a study's results: its name under ``output``.

    Slashes in the name make directories, as for the layers of a network.

    Raises:
        InvalidArgument: the name leads out of ``output``, or no directory can have it.
    """
    name = PurePath(study_name)
    if not (study_name.isprintable() and study_name.strip()):
        raise InvalidArgument(
            f"study_name = {study_name!r}: a name of printable characters is needed."
        )
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise InvalidArgument(
            f"study_name = {study_name!r}: results are kept in a directory of this name, which "
            "must not lead elsewhere; a name without '..' and without a slash in front is needed."
        )
    if len(study_name) > _LONGEST_NAME or any(
        len(os.fsencode(part)) > _LONGEST_PART for part in name.parts
    ):
        raise InvalidArgument(
            f"study_name = {study_name[:20] + '...'!r}, of {len(study_name)} characters: file "
            f"systems and databases take names of at most {_LONGEST_NAME} characters, and "
            f"{_LONGEST_PART} bytes between two slashes."
        )
    return output / name
