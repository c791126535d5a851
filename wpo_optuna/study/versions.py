"""Versions of what a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

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
