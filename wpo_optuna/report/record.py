"""A stored study as its report needs it: arrays over the trials, the winner, what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.report.measurements import Measurements
from wpo_optuna.storage import FinishedTrials
from wpo_optuna.study import attributes
from wpo_optuna.study.environment import from_here
from wpo_optuna.study.scoring import Scores

if TYPE_CHECKING:
    from optuna import Study

_ATTRIBUTES = frozenset({"tnmse", "baseline", "f_lst", "g_lst", "k_w"})
# Of studies that were made with plain Optuna.
_UNKNOWN: Mapping[str, Any] = {
    attributes.SAMPLER: "unknown", attributes.ENGINE: "unknown", attributes.PROBLEM: {},
    attributes.FINGERPRINT: None,
}  # fmt: skip


@dataclass(frozen=True)
class StudyRecord:
    """A stored study.

    Attributes:
        name: its name.
        settings: the study's user attributes, and ``unknown``, nothing or None for what it does
            not say of sampler, engine, problem and fingerprint.
        trials: its n completed trials, in order of their number.
        winner: the finalist that won; without scores the trial with the lowest loss.
        scores: scores on fresh noise; None if the study was not finished.
        measurements: what was measured of hardware and winner; None likewise.
    """

    name: str
    settings: Mapping[str, Any]
    trials: tuple[FrozenTrial, ...]
    winner: FrozenTrial
    scores: Scores | None
    measurements: Measurements | None

    @cached_property
    def number(self) -> NDArray[np.int64]:
        """Numbers of the trials in the study ``(n,)``."""
        return np.array([trial.number for trial in self.trials])

    @cached_property
    def ratio(self) -> NDArray[np.float64]:
        """TNMSE of the trials relative to the baseline, as the engine says ``(n,)``."""
        return self.values("tnmse") / self.values("baseline")

    @cached_property
    def is_polished(self) -> NDArray[np.bool_]:
        """Which trials refine others by gradient descent ``(n,)``."""
        phases = [trial.user_attrs.get(attributes.PHASE) for trial in self.trials]
        return np.array([phase == attributes.POLISH for phase in phases])

    @cached_property
    def asked(self) -> Mapping[str, Any]:
        """What the study's command was told, by setting; empty if it was made in Python."""
        return yaml.safe_load(self.settings.get(attributes.SETTINGS, "")) or {}

    @cached_property
    def strategy(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The winner's factors ``(P,)`` and conductances ``(2P, K)`` in µS, as in its file."""
        file = self.settings.get(attributes.STRATEGY, {})
        if file.get("provenance", {}).get("trial_number") == self.winner.number:
            return np.array(file["f_lst"]), np.array(file["g_lst_us"])
        trial = self.winner.user_attrs
        return np.array(trial["f_lst"]), np.array(trial["g_lst"])

    def facts(self) -> dict[str, str]:
        """What was asked and found, as far as the study says it, in a few words each."""
        asked, about = self.asked, self.settings[attributes.PROBLEM]
        hardware = asked.get("rpu_config", "")
        baseline = asked.get("baseline", "")
        if about:
            devices = "{noise_model}, {g_min_us:g} to {g_max_us:g} µS".format_map(about)
            if (n := about.get("devices", 1)) > 1:
                devices += f"; {n} devices, the {about['over']} of which counts"
            hardware = f"{hardware}: {devices}" if hardware else devices
            kind = about["baseline_converter"].partition("(")[0]
            baseline = f"{baseline}: {kind}" if baseline else kind
        if self.measurements is not None:
            baseline += f", f = {_listed(self.measurements.baseline_f)}"
        network = f" of {asked['weights'] or 'the built-in digits network'}" if asked else ""
        polished = self.is_polished.sum()
        finished = [t for trial in self.trials if (t := trial.datetime_complete) is not None]
        found = {
            "hardware": hardware,
            "weights": f"{about['n_weights']}{network}" if about else "",
            "baseline": baseline,
            "f of the winner": _listed(self.strategy[0]),
            "search": f"{self.settings[attributes.SAMPLER]}, {len(self.trials)} trials by the "
            f"{self.settings[attributes.ENGINE]} engine"
            + (f", of which {polished} refine the best by gradient descent" if polished else ""),
            # Optuna's times are naive and local.
            "last trial": f"{max(finished).astimezone(UTC):%Y-%m-%d %H:%M} UTC" if finished else "",
        }
        return {name: value for name, value in found.items() if value}

    @property
    def knows_conductance(self) -> bool:
        """Whether its second objective is the mean conductance."""
        winner = self.winner
        return winner.values[1:] == [winner.user_attrs.get(attributes.CONDUCTANCE)]

    @property
    def layer(self) -> str:
        """The layer it is about; empty if it is about the whole network."""
        parent = self.settings.get(attributes.PARENT_STUDY)
        return self.name.removeprefix(f"{parent}/") if parent else ""

    def file(self, name: str) -> str:
        """A file of the results folder, from the working directory if the folder is in it."""
        path = from_here(Path(self.settings.get(attributes.RESULTS, "")) / name)
        return name if path.is_absolute() else str(path)

    def values(self, name: str) -> NDArray[np.float64]:
        """A user attribute of all trials ``(n, ...)``."""
        return np.array([trial.user_attrs[name] for trial in self.trials], dtype=np.float64)


def _listed(factors: Iterable[float]) -> str:
    return ", ".join(f"{f:.4g}" for f in factors)


def read_study(study: Study) -> StudyRecord:
    """Reads what a report says of a study, from its storage and its results folder.

    Raises:
        InvalidArgument: no trial of weight programming was completed.
    """
    wanted = _ATTRIBUTES | {attributes.PHASE, attributes.CONDUCTANCE}
    reader = FinishedTrials(study, attributes=wanted)
    own = [
        trial
        for trial in reader.read_new()
        if trial.state == TrialState.COMPLETE and trial.user_attrs.keys() >= _ATTRIBUTES
    ]
    if not own:
        raise InvalidArgument(
            f"study_name = {study.study_name!r}: it has no completed trial of weight programming; "
            "a report needs at least one."
        )
    settings = {**_UNKNOWN, **study.user_attrs}
    stored = settings.get(attributes.SCORES)
    scores = None if stored is None else Scores.from_json(stored)
    winner = min(own, key=lambda trial: (trial.values[0], trial.number))
    if scores is not None:
        winner = next((trial for trial in own if trial.number == scores.winning_trial), winner)
    folder = settings.get(attributes.RESULTS)
    measurements = None if folder is None else Measurements.load(Path(folder))
    if measurements is not None and measurements.fingerprint != settings[attributes.FINGERPRINT]:
        measurements = None  # of a study that had this folder before
    return StudyRecord(
        name=study.study_name,
        settings=settings,
        trials=tuple(own),
        winner=winner,
        scores=scores,
        measurements=measurements,
    )
