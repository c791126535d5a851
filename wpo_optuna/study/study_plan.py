"""How a study is to be carried out: everything but the problem."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.loss import ENGINE_NAMES
from wpo_optuna.samplers import SAMPLER_NAMES, make_sampler

if TYPE_CHECKING:
    from wpo_optuna.study.objective import HypercubeObjective

GRADIENT = "gradient"
SEARCHES = (*SAMPLER_NAMES, GRADIENT)

# Which trials get an MLflow run of their own.
TRIAL_RUNS = ("auto", "all", "best", "none")

DEFAULT_N_TRIALS = 1000

# Differential evolution with the settings that did best within a few thousand trials.
DE_OPTIONS: Mapping[str, Any] = {"popsize": 5, "mutation": (0.3, 0.8), "recombination": 0.9}


@dataclass(frozen=True)
class StudyPlan:
    """How a study is to be carried out; see :func:`wpo_optuna.study.run.run_study` for each field.

    Raises:
        InvalidArgument: a value cannot be used.
    """

    sampler: str
    n_trials: int
    seed: int
    engine: str | None = None
    sampler_options: Mapping[str, Any] | None = None
    batch_size: int | None = None
    polish: bool = True
    stop_at_margin: bool = False
    n_finalists: int = 5
    workers: int = 1
    device: str = "cpu"
    self_check: bool = True
    parent_study: str | None = None
    report: bool = True
    output: Path | None = None
    attachments: Callable[[HypercubeObjective], Mapping[str, str]] = lambda objective: {}

    def __post_init__(self) -> None:
        check_choice("sampler", self.sampler, SEARCHES)
        if self.engine is not None:
            check_choice("engine", self.engine, ENGINE_NAMES)
        if self.sampler == GRADIENT and self.engine not in (None, "expected"):
            raise InvalidArgument(
                f"engine = {self.engine!r}: the gradient search needs the expected engine, which "
                "alone has gradients."
            )
        for name in ("n_trials", "batch_size", "n_finalists"):
            value = getattr(self, name)
            if value is not None and (not _is_whole(value) or value < 1):
                raise InvalidArgument(
                    f"{name} = {value!r}: a whole number of at least 1 is needed."
                )
        if not _is_whole(self.workers) or (self.workers < 1 and self.workers != -1):
            raise InvalidArgument(
                f"workers = {self.workers!r}: a number of processes is needed, or -1 for one per "
                "core."
            )
        if not _is_whole(self.seed) or not 0 <= self.seed < 2**32:
            raise InvalidArgument(
                f"seed = {self.seed!r}: a whole number from 0 to 2^32 - 1 is needed."
            )
        if self.sampler != GRADIENT:
            options = DE_OPTIONS if self.sampler == "de" else {}
            # Refuses options that the sampler does not take.
            make_sampler(self.sampler, seed=self.seed, **(self.sampler_options or options))


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_choice(argument: str, value: object, accepted: Sequence[str]) -> None:
    """Refuses a value that is not one of those accepted, and suggests the nearest.

    Raises:
        InvalidArgument: it is none of them.
    """
    if value in accepted:
        return
    close = difflib.get_close_matches(str(value), accepted, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise InvalidArgument(f"{argument} = {value!r}: one of {', '.join(accepted)} is needed{hint}.")
