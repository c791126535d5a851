"""What a study found: its best distinct trials, and the baseline, scored on fresh noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.trial import FrozenTrial
from pydantic import TypeAdapter

from wpo_optuna.errors import InvalidArgument, WeightProgrammingError
from wpo_optuna.loss.engine_choice import drawing_engine, tile_engine
from wpo_optuna.loss.noise import step_on_weights
from wpo_optuna.notebook import image, table
from wpo_optuna.strategy import ProgrammingStrategy
from wpo_optuna.study.attributes import SCORES
from wpo_optuna.study.devices import DeviceScore, score_devices
from wpo_optuna.study.estimate import Estimate, distinct, score
from wpo_optuna.study.progress import progress_bar

if TYPE_CHECKING:
    from aihwkit.inference.converter.conductance import CustomPairConductanceConverter
    from matplotlib.figure import Figure
    from optuna import Study

    from wpo_optuna.problem import WeightProgrammingProblem
    from wpo_optuna.study.front import FrontPoint
    from wpo_optuna.study.mirror import Mirror
    from wpo_optuna.study.objective import HypercubeObjective

# The best trials among which finalists are looked for.
_POOL = 1000

# A score is lower for certain if it is by this many standard errors of the difference.
# Five of equal error get another winner than the engine's by chance in one study of two hundred.
_CERTAIN = 3.0

# Draws through aihwkit's own tile that confirm a score. It deviates by five standard errors of them
# by chance in one study of a thousand, and is then scored on the tile, which is harmless.
_CONFIRMING, _DEVIATING = 12, 5.0

# Draws of a mean conductance, which scatters by less than a thousandth.
_CONDUCTANCES = 4


@dataclass(frozen=True)
class Finalist:
    """One of the best distinct trials.

    Attributes:
        trial_number: its number in the study.
        tnmse_of_engine: what the study's engine said.
        tnmse: its score on fresh noise.
    """

    trial_number: int
    tnmse_of_engine: float
    tnmse: Estimate

    @property
    def engine_bias(self) -> float:
        """Relative deviation of the engine from the score."""
        return self.tnmse_of_engine / self.tnmse.mean - 1


@dataclass(frozen=True)
class Scores:
    """Scores of the finalists and of the baseline.

    All are drawn by the fastest engine that draws. Some draws through aihwkit's own tile confirm
    those of the winner and the baseline.

    Attributes:
        n_trials: completed trials of the study when the finalists were chosen.
        n_wanted: number of finalists asked for; there may be fewer distinct trials.
        finalists: the finalists, the winner first, then by score.
        winner: the winner's score on draws that had no part in choosing it.
        baseline: the baseline's.
        on_tile: the winner's and the baseline's on aihwkit's own tile, which agree with the above;
            None if those were drawn there themselves.
        conductance: the winner's and the baseline's mean conductance in µS per weight, to which the
            read power is proportional; None where the noise model knows no devices, and in scores
            of earlier versions.
        max_conductance: the limit of the finalists' in µS per weight; None if there was none.
        devices: the winner on each of several devices; empty if there is one.
    """

    n_trials: int
    n_wanted: int
    finalists: tuple[Finalist, ...]
    winner: Estimate
    baseline: Estimate
    on_tile: tuple[Estimate, Estimate] | None = None
    conductance: tuple[float, float] | None = None
    max_conductance: float | None = None
    devices: tuple[DeviceScore, ...] = ()

    @property
    def winning_trial(self) -> int:
        """Number of the trial that won; see :func:`winner_among`."""
        return self.finalists[0].trial_number

    @property
    def engine_bias(self) -> float:
        """Relative deviation of the engine from the score at the winner."""
        return self.finalists[0].tnmse_of_engine / self.winner.mean - 1

    @property
    def improvement(self) -> float:
        """By what fraction the winner's TNMSE is lower than the baseline's."""
        return 1 - self.winner.mean / self.baseline.mean

    @property
    def warning(self) -> str | None:
        """What to tell of a winner that is not better than the baseline for certain."""
        if self.winner.high < self.baseline.low:
            return None
        return (
            f"The strategy found is no better than the baseline: its TNMSE is {self.winner}, the "
            f"baseline's {self.baseline}. More trials, or polishing, may find a better one."
        )

    def metrics(self) -> dict[str, float]:
        """The scores as MLflow's metrics."""
        values = {
            "improvement_percent": 100 * self.improvement,
            "engine_bias_percent": 100 * self.engine_bias,
        }
        for name, estimate in (("winner", self.winner), ("scored_baseline", self.baseline)):
            values[f"{name}_tnmse"] = estimate.mean
            values[f"{name}_tnmse_low"] = estimate.low
            values[f"{name}_tnmse_high"] = estimate.high
            values[f"{name}_draws"] = float(estimate.draws)
        if self.conductance is not None:
            values["winner_conductance_us"], values["baseline_conductance_us"] = self.conductance
        if self.devices:
            least = min(device.improvement for device in self.devices)
            values["improvement_percent_worst_device"] = 100 * least
            lost = [device.lost for device in self.devices]
            values["lost_percent_mean_device"] = 100 * float(np.mean(lost))
        return values

    def to_json(self) -> dict[str, Any]:
        """The scores as nested plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Scores:
        """Reverses :meth:`to_json`."""
        return TypeAdapter(cls).validate_python(dict(values))


@dataclass(frozen=True)
class StudyResult:
    """What a study found.

    Attributes:
        study: the Optuna study.
        objective: the problem, its engine and the engine's baseline.
        scores: scores of the finalists and the baseline on fresh noise.
        strategy: the winner's strategy, in the form that equal ones have in common (see
            :meth:`~wpo_optuna.ProgrammingStrategy.normalised`); its trial keeps what was decoded.
        search_time: seconds this run spent searching (sampling, evaluating, storing, polishing).
        n_new_trials: trials that this run completed.
        results: folder with the files that were written; None if none.
        page: the report; None if there is none.
        front: of a study with two objectives, the strategies of which none is better in both.
        run_id: the MLflow run of the study; None without tracking, or while MLflow is away.
        experiment_id: the run's experiment; None likewise.
    """

    study: Study
    objective: HypercubeObjective
    scores: Scores
    strategy: ProgrammingStrategy
    search_time: float
    n_new_trials: int
    results: Path | None = None
    page: Path | None = None
    front: tuple[FrontPoint, ...] = ()
    run_id: str | None = None
    experiment_id: str | None = None

    @property
    def converter(self) -> CustomPairConductanceConverter:
        """The winner's aihwkit converter."""
        return self.strategy.to_converter()

    @property
    def tnmse(self) -> Estimate:
        """The winner's TNMSE on fresh noise, with its 95 % interval."""
        return self.scores.winner

    @property
    def baseline(self) -> Estimate:
        """The baseline's TNMSE on fresh noise, with its 95 % interval."""
        return self.scores.baseline

    @property
    def success(self) -> bool:
        """Whether the winner beats the baseline by the problem's margin."""
        return bool(self.objective.problem.loss(self.tnmse.mean, self.baseline.mean) < 0)

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """The figures of the report by name, as matplotlib's; drawing them takes some seconds.

        Notebooks show one as a picture after ``%matplotlib inline``.
        """
        from wpo_optuna.report.notebook import figures_of

        return figures_of(self)

    def __repr__(self) -> str:
        told = [f"{name} {value}" for name, value in self._facts().items()]
        return f"<StudyResult of {self.study.study_name!r}: {', '.join(told)}>"

    def _repr_html_(self) -> str:
        """What notebooks show: the scores, and the winner's conductances over the weight."""
        rows = list(self._facts().items())
        if self.scores.warning is not None:
            rows.append(("warning", self.scores.warning))
        curves = image(self.figures["conductance_curves"], "conductances over the weight")
        return table(f"Study {self.study.study_name}", rows) + curves

    def _facts(self) -> dict[str, str]:
        factors = ", ".join(f"{f:.4g}" for f in self.strategy.f_lst)
        return {
            "baseline TNMSE": str(self.baseline),
            "best TNMSE": str(self.tnmse),
            "improvement": f"{100 * self.scores.improvement:.1f} %",
            "f_lst": f"[{factors}]",
            "trials": f"{self.scores.n_trials}; best is number {self.scores.winning_trial}",
        }


def score_finalists(
    mirror: Mirror, how_many: int, show_progress: bool, max_conductance: float | None = None
) -> Scores:
    """Scores the best distinct trials and the baseline on fresh noise.

    As the lowest of several scores is a little lucky again, the winner's reported score comes from
    further draws of its own. It and the baseline's are confirmed by aihwkit's own tile, or drawn
    there if it does not agree.

    Args:
        mirror: the study.
        how_many: number of finalists.
        show_progress: whether to show the draws on a terminal.
        max_conductance: of the finalists, in µS per weight; None for no limit.

    Returns:
        the scores; those kept with the study, if no trial has been completed since.

    Raises:
        WeightProgrammingError: the study has no completed trial of this problem, or a score is no
            number.
    """
    objective, study = mirror.objective, mirror.study
    stored = study.user_attrs.get(SCORES)
    wanted = mirror.n_complete, how_many, max_conductance
    if stored is not None and wanted == (
        stored["n_trials"], stored["n_wanted"], stored.get("max_conductance"),
    ):  # fmt: skip
        return Scores.from_json(stored)
    chosen = _best_distinct(mirror, how_many, max_conductance)
    if not chosen and max_conductance is not None:
        raise InvalidArgument(
            f"max_conductance = {max_conductance:g}: no trial of study {study.study_name!r} "
            "conducts so little; a larger n_trials finds one that does."
        )
    if not chosen:
        raise WeightProgrammingError(
            f"study {study.study_name!r} has no completed trial of this problem to be scored."
        )
    problem = objective.problem
    drawing = drawing_engine(problem, objective.engine)
    tile = tile_engine(problem, objective.engine)
    # Seeds of this scoring alone: neither the search nor an earlier scoring used them.
    sequence = np.random.SeedSequence([problem.seed, mirror.n_complete])
    seeds = [int(seed) for seed in sequence.generate_state(len(chosen) + 3)]
    with progress_bar(show_progress, desc="scoring on fresh noise", unit="draw") as bar:
        finalists = [
            Finalist(
                mirror.number_of(trial),
                float(trial.user_attrs["tnmse"]),
                score(drawing, strategy.to_converter(), seed, bar.update),
            )
            for (trial, strategy), seed in zip(chosen, seeds[2:-1], strict=True)
        ]
        best = winner_among(finalists, engine_has_noise=objective.engine.name != "expected")
        winner = finalists.pop(best)
        converters = (chosen[best][1].to_converter(), problem.g_converter_baseline)
        pairs = tuple(zip(converters, seeds[:2], strict=True))
        scores = [score(drawing, converter, seed, bar.update) for converter, seed in pairs]
        on_tile = None
        if drawing.name != tile.name:
            on_tile = [
                Estimate.of(tile.tnmse_of(converter, repeats=_CONFIRMING, seed=seed))
                for converter, seed in pairs
            ]
            bar.update(2 * _CONFIRMING)
            if not all(map(_agree, scores, on_tile)):
                scores = [score(tile, converter, seed, bar.update) for converter, seed in pairs]
                on_tile = None
        conductance = None
        if _act_on_devices(problem):
            winners, baselines = (
                float(drawing.conductance_of(converter, _CONDUCTANCES, seed).mean())
                for converter, seed in pairs
            )
            conductance = winners, baselines
        return Scores(
            n_trials=mirror.n_complete,
            n_wanted=how_many,
            finalists=(winner, *sorted(finalists, key=lambda finalist: finalist.tnmse.mean)),
            winner=scores[0],
            baseline=scores[1],
            on_tile=None if on_tile is None else (on_tile[0], on_tile[1]),
            conductance=conductance,
            max_conductance=max_conductance,
            devices=score_devices(mirror, chosen[best][1], seeds[-1], bar.update),
        )


def _agree(score: Estimate, on_tile: Estimate) -> bool:
    error = math.hypot(score.standard_error, on_tile.standard_error)
    return abs(score.mean - on_tile.mean) <= _DEVIATING * error


def winner_among(finalists: Sequence[Finalist], *, engine_has_noise: bool) -> int:
    """Index of the finalist with the lowest error, as far as scores can tell.

    Scores that differ by less than their noise do not tell: the lowest of them is the luckiest, and
    another one each time. Of those the expectation decides, which is the same each time, so that a
    study that is repeated ends with the same strategy.

    Args:
        finalists: at least one.
        engine_has_noise: whether ``tnmse_of_engine`` was drawn, too; then it tells no more than the
            scores, and the lowest score wins.
    """
    lowest = min(range(len(finalists)), key=lambda i: finalists[i].tnmse.mean)
    if engine_has_noise:
        return lowest
    return min(
        (i for i in range(len(finalists)) if _is_tied(finalists[i].tnmse, finalists[lowest].tnmse)),
        key=lambda i: finalists[i].tnmse_of_engine,
    )


def _is_tied(score: Estimate, lowest: Estimate) -> bool:
    error = math.hypot(score.standard_error, lowest.standard_error)
    return score.mean - lowest.mean <= _CERTAIN * error


def strategy_of(objective: HypercubeObjective, trial: FrozenTrial) -> ProgrammingStrategy:
    """The strategy that a trial evaluated, as its point decodes and its attributes say.

    Strategies that differ in the order of their pairs or in the scale of their factors alone are
    the same; :meth:`ProgrammingStrategy.normalised` writes them alike.
    """
    strategy = objective.problem.hypercube.decode(objective.point(trial.params))
    assert isinstance(strategy, ProgrammingStrategy)
    return strategy


def comparable(
    strategy: ProgrammingStrategy, problem: WeightProgrammingProblem
) -> ProgrammingStrategy:
    """A problem's strategy in the form that equal ones have in common."""
    if not _act_on_devices(problem):
        return strategy  # the model sees all pairs at once, and may tell them apart
    return strategy.normalised(problem.f_lst)


def _act_on_devices(problem: WeightProgrammingProblem) -> bool:
    """Whether all noise models act on single devices, rather than on weights as a whole."""
    return all(step_on_weights(alone.noise_model) is None for alone in problem.on_each_device)


def _best_distinct(
    mirror: Mirror, how_many: int, max_conductance: float | None
) -> list[tuple[FrozenTrial, ProgrammingStrategy]]:
    best, objective = mirror.completed(), mirror.objective
    if best and max_conductance is not None:
        points = np.array([objective.point(trial.params) for trial in best])
        is_below = objective.engine.conductance(points) <= max_conductance
        best = list(compress(best, is_below))
    best = best[:_POOL]
    if not best:
        return []
    strategies = objective.problem.hypercube.decode([objective.point(t.params) for t in best])
    assert isinstance(strategies, list)
    compared = [comparable(strategy, objective.problem) for strategy in strategies]
    return [(best[i], strategies[i]) for i in distinct(compared, how_many)]
