"""What the figures show is what the study holds."""

from __future__ import annotations

import dataclasses

import numpy as np
import optuna
import pytest
import reported_studies
from drawn_text import draw
from hypothesis import given
from hypothesis import strategies as st

from wpo_optuna.report.figures import (
    conductance_curves,
    importance,
    sampler_comparison,
    search_progress,
    time_axis,
)
from wpo_optuna.report.figures.drawing import Illustration, Width
from wpo_optuna.report.reporting.study_record import StudyRecord, read_study


@pytest.fixture(scope="module")
def record() -> StudyRecord:
    return read_study(reported_studies.stored_study())


def test_conductance_curves_are_the_winners_and_the_baselines(record: StudyRecord) -> None:
    figure = draw(conductance_curves.illustrate(record), Width.WIDE)
    scores = record.scores
    assert scores is not None
    trial = reported_studies.stored_study().trials[scores.winning_trial]
    for pair, axes in enumerate(figure.axes):
        lines = {line.get_label(): line.get_ydata() for line in axes.lines}
        for sign, name in enumerate(("optimised g⁺", "optimised g⁻")):
            np.testing.assert_array_equal(lines[name], trial.user_attrs["g_lst"][2 * pair + sign])
        # Two equal pairs, the second used once the first is full.
        assert lines["baseline g⁺"][-1] == pytest.approx(25.0)
        assert lines["baseline g⁻"][-1] == pytest.approx(0.0)
        assert f"f = {trial.user_attrs['f_lst'][pair]:.3g}" in axes.get_title("left")


def test_best_so_far_never_rises_and_ends_at_the_studys_best(record: StudyRecord) -> None:
    progress = search_progress.illustrate([record])
    assert isinstance(progress, Illustration)
    (axes,) = draw(progress, Width.WIDE).axes
    best = next(line for line in axes.lines if line.get_label() == "best so far").get_ydata()
    assert np.all(np.diff(best) <= 0)
    study = reported_studies.stored_study()
    assert best[-1] - 1 + 0.125 == pytest.approx(study.best_value)


@pytest.mark.parametrize("margin", [0.125, 0.0, 0.3])
def test_labels_of_the_loss_axis_say_the_loss_that_a_trial_there_has(
    record: StudyRecord, margin: float
) -> None:
    trials = dataclasses.replace(record.trials, loss=record.trials.ratio - 1 + margin)
    progress = search_progress.illustrate([dataclasses.replace(record, trials=trials)])
    assert isinstance(progress, Illustration)
    (axes,) = draw(progress, Width.WIDE).axes
    places = axes.get_yticks()
    labels = [float(label.get_text().replace("−", "-")) for label in axes.get_yticklabels()]
    assert len(labels) >= 3
    np.testing.assert_allclose(places, np.array(labels) + 1 - margin, atol=1e-9)


def test_studies_with_different_margins_share_the_axis_of_relative_errors(
    record: StudyRecord,
) -> None:
    trials = dataclasses.replace(record.trials, loss=record.trials.loss + 0.1)
    other = dataclasses.replace(record, name="other", trials=trials)
    progress = search_progress.illustrate([record, other])
    assert isinstance(progress, Illustration)
    (axes,) = draw(progress, Width.NARROW).axes
    assert axes.get_ylabel() == "TNMSE / baseline"


def test_studies_of_different_problems_are_compared_relative_to_their_baselines(
    record: StudyRecord,
) -> None:
    other = dataclasses.replace(
        record, settings={**record.settings, "problem_fingerprint": "another"}
    )
    assert record.scores is not None
    for records, expected, label in (
        ([record, record], record.scores.winner.mean, "TNMSE"),
        ([record, other], 1 - record.scores.improvement, "TNMSE / baseline"),
    ):
        comparison = sampler_comparison.illustrate(records)
        assert isinstance(comparison, Illustration)
        (axes,) = draw(comparison, Width.WIDE).axes
        assert axes.get_xlabel() == label
        assert axes.lines[0].get_xdata()[0] == pytest.approx(expected)


def _study_with_one_important_parameter(n: int) -> StudyRecord:
    """n trials whose loss depends on k_w alone, as far as the record's other parts allow."""
    record = read_study(reported_studies.stored_study())
    rng = np.random.default_rng(0)
    distribution = optuna.distributions.FloatDistribution(0, 1)
    names = ["f_1", "k_w", "g_0_0"]
    frozen = []
    for x in rng.random((n, 3)):
        params = dict(zip(names, x.tolist(), strict=True))
        frozen.append(
            optuna.trial.create_trial(
                value=(x[1] - 0.3) ** 2, params=params,
                distributions=dict.fromkeys(names, distribution),
            )
        )  # fmt: skip
    trials = dataclasses.replace(record.trials, is_polished=np.zeros(n, dtype=bool))
    return dataclasses.replace(record, frozen=tuple(frozen), trials=trials)


@pytest.mark.parametrize(("n", "said"), [(200, "200 trials"), (1300, "1000 of 1300 trials")])
def test_importance_names_the_parameter_that_matters_and_how_many_trials_were_used(
    n: int, said: str
) -> None:
    illustration = importance.illustrate(_study_with_one_important_parameter(n))
    assert isinstance(illustration, Illustration)
    assert said in illustration.caption
    (axes,) = draw(illustration, Width.WIDE).axes
    widths = [bar.get_width() for bar in axes.patches]
    assert axes.get_yticklabels()[-1].get_text() == "k_w"
    assert widths[-1] == max(widths) > 80
    assert sum(widths) == pytest.approx(100)


@given(st.floats(1e-3, 1e12) | st.just(0.0))
def test_names_of_times_are_short_and_near_the_time(seconds: float) -> None:
    from wpo_optuna.hardware import parse_durations

    name = time_axis.name(seconds)
    assert len(name) <= 9
    (read,) = parse_durations(name, "t_steps")
    assert read == pytest.approx(seconds, rel=0.005)
