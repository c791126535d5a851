"""What a report shows of the hardware, measured when a study ends and kept with the study.

A stored study says what its problem was, but weights and hardware themselves are not stored. So
that a report can be made from the Optuna storage alone, what it draws of them is measured while
they are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wpo_optuna.loss.reference import ReferenceEngine
from wpo_optuna.report.reporting.device_model import DeviceModel, sample_device_model
from wpo_optuna.report.reporting.stored_numbers import FloatArray, from_stored, to_stored
from wpo_optuna.report.reporting.weight_errors import (
    DRAWS,
    WeightErrors,
    measure_weight_errors,
    times_shown,
)
from wpo_optuna.study.progress import Progress

if TYPE_CHECKING:
    from optuna import Study

    from wpo_optuna.problem.weight_programming import WeightProgrammingProblem
    from wpo_optuna.strategy import ProgrammingStrategy
    from wpo_optuna.study.objective import HypercubeObjective
    from wpo_optuna.study.scoring import Scores

# System attributes of the study: one for each part, since some storages limit each to 64 kB.
_PROBLEM = "wpo:report:problem/1"
_OPTIMISED = "wpo:report:optimised/1"

_N_CURVE_POINTS = 81
_N_HISTOGRAM_BINS = 60
# Draws of these measurements alone: no search and no scoring has their seeds.
_SEED_OFFSET = 104_729


@dataclass(frozen=True)
class BaselineStrategy:
    """The baseline's curves over the weight.

    Attributes:
        weights: weights relative to the largest, ``(N,)`` from -1 to 1.
        f: significance factor of each pair ``(P,)``.
        g_us: conductances ``(2P, N)`` in µS, ordered g+ of pair 0, g- of pair 0, ...
    """

    weights: FloatArray
    f: FloatArray
    g_us: FloatArray


@dataclass(frozen=True)
class ProblemMeasurements:
    """What does not depend on the search.

    Attributes:
        t_s: times after programming in s ``(T,)``.
        histogram: share of the weights in each of equal bins from -m to m ``(B,)``.
        baseline: the baseline's curves.
        baseline_errors: what becomes of weights programmed like the baseline.
        devices: the device model; None if the noise model cannot be sampled apart from a tile.
    """

    t_s: FloatArray
    histogram: FloatArray
    baseline: BaselineStrategy
    baseline_errors: WeightErrors
    devices: DeviceModel | None

    def to_json(self) -> dict[str, Any]:
        """The measurements as nested plain values."""
        return {
            "t_s": self.t_s.tolist(),
            "histogram": to_stored(self.histogram),
            "baseline": {name: to_stored(v) for name, v in vars(self.baseline).items()},
            "baseline_errors": self.baseline_errors.to_json(),
            "devices": None if self.devices is None else self.devices.to_json(),
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> ProblemMeasurements:
        """Reverses :meth:`to_json`, but for digits that no figure shows."""
        baseline = {name: from_stored(values) for name, values in stored["baseline"].items()}
        devices = stored["devices"]
        return cls(
            t_s=from_stored(stored["t_s"]),
            histogram=from_stored(stored["histogram"]),
            baseline=BaselineStrategy(**baseline),
            baseline_errors=WeightErrors.from_json(stored["baseline_errors"]),
            devices=None if devices is None else DeviceModel.from_json(devices),
        )


@dataclass(frozen=True)
class Measurements:
    """What was measured of a study's problem and of its winner.

    Attributes:
        problem: what does not depend on the search.
        trial_number: the trial whose strategy was measured.
        optimised_errors: what becomes of weights programmed like that.
    """

    problem: ProblemMeasurements
    trial_number: int
    optimised_errors: WeightErrors


def keep_measurements(
    study: Study,
    objective: HypercubeObjective,
    scores: Scores,
    strategy: ProgrammingStrategy,
    progress: Progress | None = None,
) -> Measurements:
    """Measures what a report shows of hardware and winner, and keeps it with the study.

    What is there already is not measured again: after more trials without a better one nothing,
    after a better one its strategy alone.

    Args:
        study: the study.
        objective: its problem.
        scores: which trial won.
        strategy: the winner's strategy.
        progress: shows the draws.
    """
    problem, number = objective.problem, scores.winning_trial
    stored = study._storage.get_study_system_attrs(study._study_id)
    lacks_problem = _PROBLEM not in stored
    lacks_optimised = stored.get(_OPTIMISED, {}).get("trial_number") != number
    n_draws = DRAWS * (lacks_problem + lacks_optimised)
    with (progress or Progress(False)).bar("measuring errors over time", n_draws, "draw") as bar:
        if lacks_problem:
            _keep(study, _PROBLEM, measure_problem(problem, bar.update).to_json())
        if lacks_optimised:
            errors = measure_weight_errors(
                ReferenceEngine(problem), strategy.to_converter(), _seed(problem, number + 1),
                bar.update,
            )  # fmt: skip
            _keep(study, _OPTIMISED, {"trial_number": number, "errors": errors.to_json()})
    kept = stored_measurements(study)
    assert kept is not None
    return kept


def stored_measurements(study: Study) -> Measurements | None:
    """What is kept with a study; None if nothing was measured."""
    stored = study._storage.get_study_system_attrs(study._study_id)
    if _PROBLEM not in stored or _OPTIMISED not in stored:
        return None
    return Measurements(
        problem=ProblemMeasurements.from_json(stored[_PROBLEM]),
        trial_number=stored[_OPTIMISED]["trial_number"],
        optimised_errors=WeightErrors.from_json(stored[_OPTIMISED]["errors"]),
    )


def measure_problem(
    problem: WeightProgrammingProblem, on_draw: Any = lambda n: None
) -> ProblemMeasurements:
    """Measures what does not depend on the search.

    Args:
        problem: the problem.
        on_draw: told 1 after each draw of the baseline.
    """
    weights = problem.test_weights.double().numpy().ravel() / problem.max_abs_weight
    counts = np.histogram(weights, _N_HISTOGRAM_BINS, (-1, 1))[0]
    return ProblemMeasurements(
        t_s=np.array(problem.t_steps),
        histogram=counts / weights.size,
        baseline=_baseline_strategy(problem),
        baseline_errors=measure_weight_errors(
            ReferenceEngine(problem), problem.g_converter_baseline, _seed(problem, 0), on_draw
        ),
        devices=_devices(problem),
    )


def _devices(problem: WeightProgrammingProblem) -> DeviceModel | None:
    t_s = [problem.t_steps[i] for i in times_shown(len(problem.t_steps))]
    try:
        return sample_device_model(problem, t_s, _seed(problem, 0))
    # A noise model may serve aihwkit's tile only, and fails otherwise as it likes.
    except Exception:
        return None


def _baseline_strategy(problem: WeightProgrammingProblem) -> BaselineStrategy:
    converter = problem.g_converter_baseline
    weights = torch.linspace(-1, 1, _N_CURVE_POINTS)
    # aihwkit's converters span the matrix at hand, whose largest weight is here m.
    conductances, _ = converter.convert_to_conductances(weights * problem.max_abs_weight)
    g = np.array([g.double().numpy() for g in conductances])
    f = getattr(converter, "f_lst", [1.0] * (len(g) // 2))
    return BaselineStrategy(weights.double().numpy(), np.asarray(f, dtype=np.float64), g)


def _keep(study: Study, name: str, value: dict[str, Any]) -> None:
    # User attributes are shown to people, by optuna-dashboard for one; this is no reading matter.
    study._storage.set_study_system_attr(study._study_id, name, value)


def _seed(problem: WeightProgrammingProblem, what: int) -> int:
    sequence = np.random.SeedSequence([problem.seed, _SEED_OFFSET, what])
    return int(sequence.generate_state(1)[0])
