"""Tries the package with the lowest and the newest versions that pyproject.toml allows.

For either end, all dependencies but aihwkit and torch, whose versions are tied to each other, are
installed into a directory of their own, before this environment's on Python's path, and a short
study is run, tracked and reported. Each Python has its own ends: run this with each.

    python -m experiments.try_versions
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
_TIED = ("aihwkit", "torch")
_STUDY = ("--n-trials", "60", "--finalists", "1", "--baseline-iterations", "2", "--quiet")


def requirements() -> list[Requirement]:
    """What this Python takes of the package's dependencies, those with ranges."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [Requirement(text) for text in project["dependencies"]]
    return [r for r in found if r.name not in _TIED and (not r.marker or r.marker.evaluate())]


def lowest(requirement: Requirement) -> str:
    """The requirement of its lowest version alone, with any patches of it."""
    (version,) = (s.version for s in requirement.specifier if s.operator == ">=")
    return f"{requirement.name}=={version}.*"


def attempt(choose: Callable[[Requirement], str], folder: Path) -> tuple[Mapping[str, str], str]:
    """Installs one end and runs a study with it.

    Returns:
        the versions by name, and what failed; nothing if it works.
    """
    chosen = [choose(requirement) for requirement in requirements()]
    packages = folder / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(packages)]
    installed = subprocess.run([*pip, *chosen], capture_output=True, text=True)
    names = {requirement.name.lower() for requirement in requirements()}
    versions = {
        distribution.name: distribution.version
        for distribution in distributions(path=[str(packages)])
        if distribution.name.lower() in names
    }
    if installed.returncode != 0:
        return versions, installed.stderr.strip().splitlines()[-1]
    study = subprocess.run(
        [sys.executable, "-m", "wpo_optuna.study", *_STUDY], cwd=folder, capture_output=True,
        text=True, env=os.environ | {"PYTHONPATH": f"{packages}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    told = study.stderr.strip().splitlines()
    return versions, (told or ["it failed"])[-1] if study.returncode or told else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Tries both ends and prints a table; returns 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["lowest", "newest"])
    only = parser.parse_args(arguments).only
    ends = {"lowest": lowest, "newest": str}
    n_failed = 0
    for name, choose in ends.items():
        if only in (None, name):
            with tempfile.TemporaryDirectory(prefix="wpo_versions_") as folder:
                versions, failure = attempt(choose, Path(folder))
            n_failed += bool(failure)
            listed = ", ".join(f"{package} {version}" for package, version in versions.items())
            python = platform.python_version()
            print(f"| {name} | Python {python} | {listed} | {failure or 'works'} |", flush=True)
    return int(n_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
