"""``--select-by metric`` of the study's command: its finalists compared in the user's network.

The lowest error of the weights is a means; what counts is what the network makes of it. The
finalists are programmed again and again, each time with the same seeds for all of them, until the
best is told from the others, or a limit is reached; then the error of the weights decides.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from wpo_optuna.evaluate.accuracy import BASELINE, NetworkSetup, compare_over_time
from wpo_optuna.hardware import format_duration
from wpo_optuna.study import attributes
from wpo_optuna.study.environment import from_here
from wpo_optuna.study.scoring import comparable, strategy_of
from wpo_optuna.study.users_network import network_of
from wpo_optuna.track.destination import destination_of
from wpo_optuna.track.follower import Follower

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.strategy import ProgrammingStrategy
    from wpo_optuna.study.problem_setup import ProblemSetup
    from wpo_optuna.study.scoring import StudyResult
    from wpo_optuna.study.settings import StudySettings

FloatArray = NDArray[np.float64]

STRATEGY_FILE, TABLE_FILE = "strategy-by-metric.json", "selection.csv"

# Rounds of programmings, at most.
_ROUNDS = 8
# A finalist that is as good as the best is dropped in one of so many looks at it.
_FALSE_ALARMS = 1e-3


@dataclass(frozen=True, eq=False)
class Selection:
    """Finalists of a study, compared in a network at the last time.

    Attributes:
        metric: name of the metric.
        t: the time after programming in s.
        values: the metric of each finalist's programmings ``(n,)``, by the number of its trial, in
            the order of their TNMSE; those of equal seeds come at equal places.
        baseline: the baseline's ``(n,)``.
        contenders: trials that were not told from the best, in the same order.
    """

    metric: str
    t: float
    values: Mapping[int, FloatArray]
    baseline: FloatArray
    contenders: tuple[int, ...]

    @property
    def best(self) -> int:
        """The winning trial; of several that were not told apart that of the lowest TNMSE."""
        return self.contenders[0]

    def rows(self) -> list[tuple[str, float, float, int]]:
        """Name, mean, standard error and number of programmings of each."""
        named = {f"trial {number}": values for number, values in self.values.items()}
        return [
            (name, float(v.mean()), float(v.std(ddof=1) / len(v) ** 0.5), len(v))
            for name, v in (named | {BASELINE: self.baseline}).items()
        ]

    def table(self) -> str:
        """The comparison, for people to read."""
        most = max(map(len, self.values.values()))
        by_tnmse = next(iter(self.values))
        if self.best != by_tnmse:
            found = (
                f"By {self.metric} trial {self.best} wins, by TNMSE trial {by_tnmse}: they differ."
            )
        elif len(self.contenders) == 1:
            found = f"Trial {by_tnmse} wins by {self.metric} as by TNMSE."
        else:
            found = (
                f"Trial {by_tnmse} has the lowest TNMSE, and {most} programmings do not tell its "
                f"{self.metric} from that of trial {', '.join(map(str, self.contenders[1:]))}."
            )
        measured = [
            f"  {name:12} {mean:.4f} ± {error:.4f}  in {n} programmings"
            for name, mean, error, n in self.rows()
        ]
        heading = (
            f"{self.metric} of the finalists after {format_duration(self.t)}, in order of their "
            "TNMSE (mean ± standard error, the same seeds for all):"
        )
        return "\n".join([heading, "", *measured, "", found])

    def write(self, path: Path) -> None:
        """Writes every measurement as CSV."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["programming", "repeat", "t_s", self.metric])
            named = {f"trial {number}": values for number, values in self.values.items()}
            for name, values in (named | {BASELINE: self.baseline}).items():
                writer.writerows(
                    [name, repeat, self.t, float(v)] for repeat, v in enumerate(values)
                )


def run(
    settings: StudySettings,
    setup: ProblemSetup,
    run_study: Callable[..., StudyResult],
    show_progress_bar: bool,
) -> tuple[StudyResult, str]:
    """Runs or resumes a study, and compares its finalists in the user's network.

    Args:
        settings: what the user asked for.
        setup: the problem.
        run_study: :func:`wpo_optuna.run_study` with everything else settled.
        show_progress_bar: whether to show progress on a terminal.

    Returns:
        the study's result, and the text to print.

    Raises:
        InvalidArgument: a setting cannot be used.
    """
    network = network_of(settings, setup)  # before a search of minutes
    result = run_study(setup.problem, study_name=setup.study_name)
    trials = result.study.get_trials(deepcopy=False)
    strategies = {
        finalist.trial_number: comparable(
            strategy_of(result.objective, trials[finalist.trial_number]), setup.problem
        )
        for finalist in result.scores.finalists
    }
    selection = select(
        network, strategies, setup.problem.g_converter_baseline, setup.problem.t_steps[-1],
        programmings=settings.repeats, seed=settings.seed, show_progress_bar=show_progress_bar,
    )  # fmt: skip
    lines = [selection.table()]
    if result.results is not None:
        told = dict(result.strategy.provenance) | {
            "trial_number": selection.best,
            "selected_by": selection.metric,
        }
        chosen = replace(strategies[selection.best], provenance=told)
        path = chosen.save(result.results / STRATEGY_FILE)
        selection.write(result.results / TABLE_FILE)
        lines += ["", f"strategy by {selection.metric}  {from_here(path)}"]
    _record(settings, result, selection, show_progress_bar)
    return result, "\n".join(lines)


def select(
    network: NetworkSetup,
    strategies: Mapping[int, ProgrammingStrategy],
    baseline: BaseConductanceConverter,
    t: float,
    *,
    programmings: int = 10,
    seed: int = 0,
    show_progress_bar: bool = False,
) -> Selection:
    """Compares strategies by a network's metric at one time, with as many programmings as it takes.

    Args:
        network: the network, and how its quality is measured.
        strategies: by the number of their trials, in the order of their TNMSE.
        baseline: converter of the programming beside them.
        t: time after programming in s.
        programmings: of each strategy in a round; after eight rounds the comparison ends.
        seed: seed of the programmings.
        show_progress_bar: whether to show progress on a terminal.
    """
    values = {number: np.empty(0) for number in strategies}
    of_baseline, contenders = np.empty(0), list(strategies)
    for round_number in range(_ROUNDS):
        measured = compare_over_time(
            network, {str(number): strategies[number] for number in contenders}, baseline, [t],
            repeats=programmings, seed=seed + round_number * programmings,
            show_progress_bar=show_progress_bar,
        )  # fmt: skip
        # Nobody knows of a network without a digital form what is better: more is taken to be.
        sign = -1 if measured.higher_is_better is False else 1
        of_baseline = np.append(of_baseline, measured.curves[BASELINE])
        for number in contenders:
            values[number] = np.append(values[number], measured.curves[str(number)])
        contenders = _not_worse({number: values[number] for number in contenders}, sign)
        if len(contenders) == 1:
            break
    return Selection(network.metric_name, t, values, of_baseline, tuple(contenders))


def _not_worse(values: Mapping[int, FloatArray], sign: int) -> list[int]:
    """Those that are not told from the best of them, in their order."""
    best = max(values, key=lambda number: sign * values[number].mean())
    n = len(values[best])
    if n < 2:
        return list(values)
    certain = stats.t.ppf(1 - _FALSE_ALARMS, n - 1)

    def is_worse(number: int) -> bool:
        behind = sign * (values[best] - values[number])
        return bool(behind.mean() > certain * behind.std(ddof=1) / n**0.5)

    return [number for number in values if not is_worse(number)]


def _record(
    settings: StudySettings, result: StudyResult, selection: Selection, show_progress_bar: bool
) -> None:
    """Adds what was found to the study, and brings it to its run."""
    study, best = result.study, selection.values[selection.best]
    told = {"selected_trial": selection.best, f"selected_{selection.metric}": float(best.mean())}
    study.set_user_attr(attributes.METRICS, study.user_attrs[attributes.METRICS] | told)
    destination = destination_of(settings)
    if destination is not None:
        with Follower(study, destination, show_progress_bar=show_progress_bar) as follower:
            follower.finish(attributes.FINISHED)
