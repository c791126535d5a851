"""A stored study as its report needs it: arrays over the trials, the winner, what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.report.reporting.measurements import Measurements, stored_measurements
from wpo_optuna.report.reporting.stored_numbers import FloatArray
from wpo_optuna.study import study_identity as identity
from wpo_optuna.study.optimize import PHASE
from wpo_optuna.study.scoring import SCORES, Scores
from wpo_optuna.study.search import POLISH

if TYPE_CHECKING:
    from optuna import Study

_ATTRIBUTES = frozenset({"tnmse", "baseline", "f_lst", "g_lst", "k_w"})


@dataclass(frozen=True)
class Trials:
    """The completed trials in order of their number, as arrays.

    Attributes:
        number: numbers in the study ``(n,)``.
        loss: values ``(n,)``.
        tnmse: what the engine said ``(n,)``.
        baseline: the baseline's ``(n,)``.
        f: significance factors ``(n, P)``.
        k_w: scale from unitless weights to µS ``(n,)``.
        is_polished: which ones refine others by gradient descent ``(n,)``.
    """

    number: NDArray[np.int64]
    loss: FloatArray
    tnmse: FloatArray
    baseline: FloatArray
    f: FloatArray
    k_w: FloatArray
    is_polished: NDArray[np.bool_]

    @property
    def ratio(self) -> FloatArray:
        """TNMSE relative to the baseline ``(n,)``."""
        return self.tnmse / self.baseline

    @classmethod
    def of(cls, trials: Sequence[FrozenTrial]) -> Trials:
        """The arrays of trials that carry a weight programming trial's attributes."""
        values = [trial.user_attrs for trial in trials]
        return cls(
            number=np.array([trial.number for trial in trials]),
            loss=np.array([trial.value for trial in trials], dtype=np.float64),
            tnmse=np.array([v["tnmse"] for v in values], dtype=np.float64),
            baseline=np.array([v["baseline"] for v in values], dtype=np.float64),
            f=np.array([v["f_lst"] for v in values], dtype=np.float64),
            k_w=np.array([v["k_w"] for v in values], dtype=np.float64),
            is_polished=np.array([v.get(PHASE) == POLISH for v in values]),
        )


@dataclass(frozen=True)
class Winner:
    """The trial whose strategy is shown.

    Attributes:
        number: its number in the study.
        f: significance factor of each pair ``(P,)``.
        g_us: curves ``(2P, K)`` in µS at weights evenly spaced from -m to m.
        k_w: scale from unitless weights to µS.
        ratio: its TNMSE relative to the baseline, as the engine says.
    """

    number: int
    f: FloatArray
    g_us: FloatArray
    k_w: float
    ratio: float


@dataclass(frozen=True)
class StudyRecord:
    """A stored study.

    Attributes:
        name: its name.
        settings: the study's user attributes that say what it is about.
        trials: its completed trials.
        frozen: the same trials as Optuna has them.
        winner: the finalist that won; without scores the trial with the lowest loss.
        scores: scores on fresh noise; None if the study was not finished.
        measurements: what was measured of hardware and winner; None likewise.
    """

    name: str
    settings: Mapping[str, Any]
    trials: Trials
    frozen: tuple[FrozenTrial, ...]
    winner: Winner
    scores: Scores | None
    measurements: Measurements | None

    @property
    def sampler(self) -> str:
        """Name of the sampler."""
        return str(self.settings.get(identity.SAMPLER, "unknown"))

    @property
    def engine(self) -> str:
        """Name of the loss engine."""
        return str(self.settings.get(identity.ENGINE, "unknown"))

    @property
    def problem(self) -> Mapping[str, Any]:
        """The problem's settings in a form to read; empty if the study does not know them."""
        return dict(self.settings.get(identity.PROBLEM, {}))

    @property
    def fingerprint(self) -> str | None:
        """The problem's fingerprint; None if the study does not know it."""
        return self.settings.get(identity.FINGERPRINT)


def read_study(study: Study) -> StudyRecord:
    """Reads what a report says of a study.

    Raises:
        InvalidArgument: no trial of weight programming was completed.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    own = [t for t in complete if t.user_attrs.keys() >= _ATTRIBUTES and t.value is not None]
    if not own:
        raise InvalidArgument(
            f"study_name = {study.study_name!r}: "
            + ("none of its trials is one of weight programming" if complete
               else "it has no completed trial")
            + "; a report needs at least one."
        )  # fmt: skip
    settings = study.user_attrs
    stored = settings.get(SCORES)
    scores = None if stored is None else Scores.from_json(stored)
    winner = _winner(own, scores)
    n_pairs = len(winner.user_attrs["f_lst"])
    # Trials of other search spaces (enqueued or added by hand) may have other pairs.
    own = [trial for trial in own if len(trial.user_attrs["f_lst"]) == n_pairs]
    values = winner.user_attrs
    return StudyRecord(
        name=study.study_name,
        settings=settings,
        trials=Trials.of(own),
        frozen=tuple(own),
        winner=Winner(
            number=winner.number,
            f=np.array(values["f_lst"], dtype=np.float64),
            g_us=np.array(values["g_lst"], dtype=np.float64),
            k_w=float(values["k_w"]),
            ratio=float(values["tnmse"]) / float(values["baseline"]),
        ),
        scores=scores,
        measurements=stored_measurements(study),
    )


def _winner(trials: Sequence[FrozenTrial], scores: Scores | None) -> FrozenTrial:
    if scores is not None:
        for trial in trials:
            if trial.number == scores.winning_trial:
                return trial
    return min(trials, key=lambda trial: (trial.value, trial.number))
