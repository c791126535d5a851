"""What the study's command prints: the result, where to look at it, and how to go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wpo_optuna.storage import masked_url
from wpo_optuna.study.command_line import command_for_shell
from wpo_optuna.study.devices import DEVICES_FILE
from wpo_optuna.study.environment import from_here
from wpo_optuna.study.estimate import RELATIVE_WIDTH
from wpo_optuna.study.front import FRONT_FILE
from wpo_optuna.study.run import STRATEGY_FILE
from wpo_optuna.track.destination import destination_of
from wpo_optuna.track.view import look_lines, page_of_experiment, page_of_trials

if TYPE_CHECKING:
    from wpo_optuna.study.scoring import Scores, StudyResult
    from wpo_optuna.study.settings import StudySettings

# Flags that the command to go on does not repeat, and whether a value follows them.
_DROPPED = {"--n-trials": True, "--maxiter": True, "--stop-at-margin": False}


def describe(
    settings: StudySettings, result: StudyResult, n_trials: int, resume: str, seconds: float
) -> str:
    """The result of a finished study.

    Args:
        settings: what the user asked for.
        result: what was found.
        n_trials: the total of trials that was asked for.
        resume: the command that goes on.
        seconds: how long the whole command took.
    """
    scores = result.scores
    factors = ", ".join(f"{f:.4g}" for f in result.strategy.f_lst)
    lines = [
        "",
        f"baseline TNMSE   {scores.baseline}  (95 % interval, {scores.baseline.draws} draws)",
        f"best TNMSE       {scores.winner}  (95 % interval, {scores.winner.draws} fresh draws)",
        *_on_tile(scores),
        f"improvement      {100 * scores.improvement:.1f} %",
        *_conductance(scores),
        *_devices(scores, settings.over),
        f"f_lst            [{factors}]",
        f"engine           {result.objective.engine.name}, {100 * scores.engine_bias:+.2f} % "
        "from the fresh draws at the best",
        f"trials           {scores.n_trials}, {result.n_new_trials} of them new in "
        f"{result.search_time:.1f} s; best is number {scores.winning_trial}",
        f"time             {seconds:.1f} s from the command to here",
        *_remarks(settings, scores, n_trials),
        *([] if scores.warning is None else ["", f"WARNING: {scores.warning}"]),
        "",
        f"study            {result.study.study_name} in {masked_url(settings.storage)}",
        f"MLflow           {_tracking(settings, result)}",
        *_file_lines(result),
        "",
        *_look_lines(settings, result),
        "To go on with the search:",
        f"  {resume}",
    ]
    return "\n".join(lines)


def interruption(resume: str) -> str:
    """What is told after Ctrl-C."""
    return f"\nInterrupted; what was finished is saved. To go on:\n  {resume}"


def resume_command(given: Sequence[str], n_trials: int) -> str:
    """The command that goes on: the same one, with this total and without what stopped it.

    Args:
        given: the words of the command.
        n_trials: the total.
    """
    kept, skip = [], False
    for word in given:
        flag, equals, _ = word.partition("=")
        if skip:
            skip = False
        elif flag in _DROPPED:
            skip = _DROPPED[flag] and not equals
        else:
            kept.append(word)
    return command_for_shell("study", [*kept, "--n-trials", str(n_trials)])


def _on_tile(scores: Scores) -> list[str]:
    if scores.on_tile is None:
        return [f"{'':16} (drawn through aihwkit's tile)"]
    winner, baseline = scores.on_tile
    numbers = f"{winner.mean:.5f} against {baseline.mean:.5f} in {winner.draws} draws each"
    return [f"{'':16} (confirmed by aihwkit's tile: {numbers})"]


def _conductance(scores: Scores) -> list[str]:
    if scores.conductance is None:
        return []
    winner, baseline = scores.conductance
    more = winner / baseline - 1
    beside = f"{abs(more):.0%} {'more' if more > 0 else 'less'} than the baseline's"
    return [f"conductance      {winner:.1f} µS a weight, {beside}"]


def _devices(scores: Scores, over: str) -> list[str]:
    if not scores.devices:
        return []
    n = len(scores.devices)
    better = [f"{100 * end(d.improvement for d in scores.devices):.1f}" for end in (min, max)]
    lost = [f"{100 * end(d.lost for d in scores.devices):.1f}" for end in (min, max)]
    return [
        f"devices          {n}, of which the above is the {over}; improvement on each "
        f"{' to '.join(better)} %,",
        f"{'':16} TNMSE {' to '.join(lost)} % higher than with a strategy of its own",
    ]


def _remarks(settings: StudySettings, scores: Scores, n_trials: int) -> list[str]:
    told = []
    if scores.n_trials < n_trials:
        why = "the margin was reached" if settings.stop_at_margin else "the population converged"
        told.append(f"(ended before {n_trials}: {why})")
    if max(scores.winner.relative_width, scores.baseline.relative_width) > RELATIVE_WIDTH:
        told.append("(draws scatter so widely that an interval stayed wider than 1 %)")
    return [f"{'':16} {remark}" for remark in told]


def _tracking(settings: StudySettings, result: StudyResult) -> str:
    if settings.tracking_uri is False:
        return "off"
    run = f"run {result.run_id}" if result.run_id else "not delivered yet (see the warning above)"
    return f"{run}, experiment {settings.experiment}"


def _look_lines(settings: StudySettings, result: StudyResult) -> list[str]:
    """How to see the run in MLflow."""
    destination = destination_of(settings)
    if destination is None:
        return []
    if result.run_id is None or result.experiment_id is None:
        return look_lines(destination.uri, page="")
    further = {}
    if destination.trial_runs != "none":
        page = page_of_trials(result.experiment_id, result.run_id)
        further["for this study's trials, the best first"] = page
    by_hand = (
        f"(by hand: 'Model training', top left; the experiment {settings.experiment}; "
        "then 'Views', top right)"
    )
    page = page_of_experiment(result.experiment_id)
    return [*look_lines(destination.uri, page, further), by_hand]


def _file_lines(result: StudyResult) -> list[str]:
    if result.results is None:
        return []
    lines = [f"strategy         {from_here(result.results / STRATEGY_FILE)}"]
    if result.front:
        assert result.objective.second is not None
        name = result.objective.second.name
        ends = f"{name} {result.front[0].second:.4g} to {result.front[-1].second:.4g}"
        table = from_here(result.results / FRONT_FILE)
        lines.append(f"front            {table}, {len(result.front)} strategies of {ends}")
    if result.scores.devices:
        lines.append(f"each device      {from_here(result.results / DEVICES_FILE)}")
    if result.page is not None:
        lines.append(f"report           {from_here(result.page)}")
    return lines
