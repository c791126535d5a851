"""The sentences and tables of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wpo_optuna.hardware import format_duration
from wpo_optuna.report.figures.sampler_comparison import are_about_one_problem
from wpo_optuna.report.reporting.page import Paragraph, Table
from wpo_optuna.study import study_identity as identity

if TYPE_CHECKING:
    from wpo_optuna.report.reporting.study_record import StudyRecord
    from wpo_optuna.study.estimate import Estimate

_NOT_SCORED = "not scored yet"

# The problem's settings, as people call them.
_SETTINGS = (
    ("weights", "n_weights"),
    ("largest absolute weight", "max_abs_weight"),
    ("noise model", "noise_model"),
    ("drift compensation", "drift_compensation"),
    ("rows and columns of the test matrix", "tile"),
    ("baseline", "baseline_converter"),
    ("symmetric", "symmetric"),
    ("nbins", "nbins"),
    ("g_err", "g_err"),
    ("f_min", "f_min"),
    ("f_max", "f_max"),
    ("use_max_kw", "use_max_kw"),
    ("loss margin", "loss_margin"),
    ("dimensions of the hypercube", "dimension"),
    ("seed of the problem", "seed"),
)


def result(record: StudyRecord) -> list[str]:
    """What a study found, in sentences; the most important first."""
    trials, scores = record.trials, record.scores
    n_polished = int(trials.is_polished.sum())
    searched = (
        f"The search ({record.sampler}) made {len(trials.number)} trials, evaluated by the "
        f"{record.engine} engine"
        + (f"; {n_polished} of them refine the best by gradient descent." if n_polished else ".")
    )
    if scores is None:
        return [
            f"The best of {len(trials.number)} trials so far has a TNMSE "
            f"{_difference(1 - record.winner.ratio)} the baseline's.",
            "The study has not been scored on fresh noise: what the engine says of its best trial "
            "is a little too good. Resume it to finish it.",
            searched,
        ]
    sentences = [
        f"The best strategy found has a TNMSE of {_interval(scores.winner)}, "
        f"{_difference(scores.improvement)} the baseline's {_interval(scores.baseline)}.",
        f"These are means over {scores.winner.draws} and {scores.baseline.draws} fresh draws "
        "through aihwkit's own tile, with 95 % intervals. " + searched,
    ]
    n_later = len(trials.number) - scores.n_trials
    if n_later > 0:
        sentences.append(
            f"{n_later} trials have been completed since the scoring, and had no part in it."
        )
    measured = record.measurements
    if measured is not None and measured.trial_number != record.winner.number:
        sentences.append(
            f"Errors over time were measured of an earlier winner, trial {measured.trial_number}."
        )
    return sentences


def comparison(records: Sequence[StudyRecord]) -> str:
    """What several studies have in common, and which is the best."""
    scored = [record for record in records if record.scores is not None]
    if not are_about_one_problem(records):
        return (
            "These studies are not known to be about the same problem: their TNMSE and losses are "
            "comparable with their own baselines, not with each other."
        )
    if not scored:
        return "None of these studies has been scored on fresh noise yet."
    best = min(scored, key=lambda record: _winner(record).mean)
    estimate = _winner(best)
    tied = [r.name for r in scored if r is not best and _winner(r).low <= estimate.high]
    sentence = f"Of the same problem, {best.name} found the lowest TNMSE, {_interval(estimate)}"
    if not tied:
        return f"{sentence}; its interval is below all others."
    return f"{sentence}; its interval overlaps that of {' and that of '.join(tied)}."


def comparison_table(records: Sequence[StudyRecord]) -> Table:
    """A row for each study."""
    rows = []
    for record in records:
        scores = record.scores
        scored = ["", _NOT_SCORED, ""] if scores is None else [
            _interval(scores.baseline), _interval(scores.winner), f"{100 * scores.improvement:.1f}",
        ]  # fmt: skip
        rows.append(
            [record.name, record.sampler, record.engine, str(len(record.trials.number)), *scored]
        )
    head = ["study", "sampler", "engine", "trials", "baseline TNMSE", "best TNMSE", "better by %"]
    return Table(head, rows, frozenset({0, 1, 2}))


def finalists(record: StudyRecord) -> list[Paragraph | Table]:
    """The scores of the best distinct trials."""
    scores = record.scores
    if scores is None:
        return [Paragraph("The best trials have not been scored on fresh noise yet.")]
    rows = [
        [
            str(finalist.trial_number),
            *_cells(finalist.tnmse),
            f"{finalist.tnmse_of_engine:.5f}",
            f"{100 * finalist.engine_bias:+.2f}",
        ]
        for finalist in scores.finalists
    ]
    rows.append([f"{scores.winning_trial}, scored again", *_cells(scores.winner), "", ""])
    rows.append(["baseline", *_cells(scores.baseline), "", ""])
    head = ["trial", "TNMSE", "95 % interval", "draws", "TNMSE of the engine", "deviation %"]
    return [
        Paragraph(
            "The best distinct trials on fresh noise through aihwkit's own tile, the winner first: "
            "the lowest score, or where scores differ by no more than their noise, the lowest "
            "expected TNMSE of these. As the lowest of several scores is a little lucky, the "
            "winner was drawn once more for the score that is reported."
        ),
        Table(head, rows),
    ]


def tnmse_table(record: StudyRecord) -> Table | None:
    """The errors at each time in numbers; None if they were not measured."""
    measured = record.measurements
    if measured is None:
        return None
    rows = [
        [format_duration(float(t)), _interval(before), _interval(after),
         f"{100 * (1 - after.mean / before.mean):.1f}"]
        for t, before, after in zip(
            measured.problem.t_s, measured.problem.baseline_errors.tnmse,
            measured.optimised_errors.tnmse, strict=True,
        )
    ]  # fmt: skip
    return Table(["time", "baseline", "optimised", "better by %"], rows)


def problem(record: StudyRecord) -> list[Paragraph | Table]:
    """What the study is about."""
    settings = record.problem
    if not settings:
        return [Paragraph("The study does not say what its problem is.")]
    rows = [[name, _written(settings[key])] for name, key in _SETTINGS if key in settings]
    if "f_lst" in settings:
        factors = ("free" if f is None else _written(f) for f in settings["f_lst"])
        rows.insert(4, ["significance factors", ", ".join(factors)])
    if "g_min_us" in settings:
        rows.insert(2, ["conductance", f"{settings['g_min_us']:g} to {settings['g_max_us']:g} µS"])
    if "t_steps_s" in settings:
        times = ", ".join(format_duration(float(t)) for t in settings["t_steps_s"])
        rows.insert(5, ["times after programming", times])
    rows.append(["seed of the search", _written(record.settings.get(identity.SEED))])
    rows.append(["options of the sampler", _written(record.settings.get(identity.SAMPLER_OPTIONS))])
    self_check = record.settings.get(identity.SELF_CHECK)
    if self_check is not None:
        truth = "aihwkit's tile"
        if self_check.get("compared_with", "aihwkit") != "aihwkit":
            truth = "the mean of many Monte Carlo draws"
        worst = f"{100 * self_check['worst']:.2f} % from {truth} at worst"
        if not self_check.get("is_conclusive", True):
            worst += " (inconclusive: the noise is too large)"
        rows.append(["self-check of the engine", worst])
    rows.append(["fingerprint", _written(record.fingerprint)])
    versions = record.settings.get(identity.VERSIONS)
    if versions:
        rows.append(["versions", _written(versions)])
    return [Table([], rows, frozenset({0, 1}))]


def _winner(record: StudyRecord) -> Estimate:
    assert record.scores is not None
    return record.scores.winner


def _difference(improvement: float) -> str:
    percent = 100 * improvement
    return f"{percent:.1f} % below" if percent >= 0 else f"{-percent:.1f} % above"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.mean:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def _cells(estimate: Estimate) -> list[str]:
    return [
        f"{estimate.mean:.5f}",
        f"[{estimate.low:.5f}, {estimate.high:.5f}]",
        str(estimate.draws),
    ]


def _written(value: Any) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_written(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_written, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
