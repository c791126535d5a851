"""Studies side by side: the TNMSE each one reached, with its interval."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wpo_optuna.report.figures import colours
from wpo_optuna.report.figures.drawing import Illustration, Omission, Width, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wpo_optuna.report.reporting.study_record import StudyRecord
    from wpo_optuna.study.scoring import Scores

TITLE = "Studies side by side"

_LONGEST_LINE = 20


def illustrate(records: Sequence[StudyRecord]) -> Illustration | Omission:
    """The figure of several studies' scores."""
    scored = [(record, record.scores) for record in records if record.scores is not None]
    if not scored:
        return Omission(TITLE, "None of the studies has been scored yet.")
    caption = (
        "TNMSE of each study's winner on fresh noise through aihwkit's own tile, with its 95 % "
        "interval. Further left is better."
    )
    if len(scored) < len(records):
        missing = ", ".join(record.name for record in records if record.scores is None)
        caption += f" Not scored yet: {missing}."
    is_relative = not are_about_one_problem(records)
    if is_relative:
        caption += " As the problems differ, it is shown relative to each study's own baseline."
    return Illustration(
        "sampler_comparison", TITLE, caption, lambda width: _draw(scored, is_relative, width)
    )


def are_about_one_problem(records: Sequence[StudyRecord]) -> bool:
    """Whether the studies' TNMSE are comparable, as far as they know."""
    fingerprints = {record.fingerprint for record in records}
    return len(fingerprints) == 1 and None not in fingerprints


def _draw(scored: Sequence[tuple[StudyRecord, Scores]], is_relative: bool, width: Width) -> Figure:
    labels = [_label(record) for record, _ in scored]
    lines = sum(label.count("\n") + 1 for label in labels)
    figure, (axes,) = panels(1, width, 0.7 + 0.22 * lines + 0.12 * len(labels))
    for place, (_, scores) in enumerate(scored):
        look, unit = colours.look(place), scores.baseline.mean if is_relative else 1.0
        mean, low, high = (v / unit for v in (scores.winner.mean, scores.winner.low,
                                              scores.winner.high))  # fmt: skip
        axes.errorbar(
            mean, -place, xerr=[[mean - low], [high - mean]], color=look.colour,
            marker=look.marker, markersize=7, capsize=5,
        )  # fmt: skip
    axes.set_yticks([-place for place in range(len(scored))], labels)
    axes.set_ylim(0.6 - len(scored), 0.4)
    axes.set_xlabel("TNMSE / baseline" if is_relative else "TNMSE")
    axes.margins(x=0.08)
    axes.locator_params(axis="x", nbins=8 if width is Width.WIDE else 4)
    return figure


def _label(record: StudyRecord) -> str:
    """Name and sampler, in lines that leave room for the figure."""
    name = f"{record.name} ({record.sampler})"
    return "\n".join(textwrap.wrap(name, _LONGEST_LINE, max_lines=3, placeholder=" …"))
