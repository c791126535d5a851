"""How a program of the environment that runs is called from the user's shell."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


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
