"""Every figure can be read on a phone, and shows what the study holds."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import optuna
import pytest
import reported_studies
from aihwkit.inference.converter.conductance import NPairConductanceConverter
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from small_problems import small_problem

from wpo_optuna.evaluate.metric_over_time import MetricOverTime
from wpo_optuna.hardware import parse_durations
from wpo_optuna.report import drawing, figures
from wpo_optuna.report.record import StudyRecord, read_study
from wpo_optuna.study import attributes

DAY = 86400.0

CASES: dict[str, dict[str, Any]] = {
    "pcm": {"t_steps": [1.0, 60.0, 3600.0, DAY, 30 * DAY, 360 * DAY]},
    "one time, one pair": {"t_steps": [20.0], "f_lst": [None]},
    "many times": {"t_steps": [4.0**k for k in range(9)]},
    "times from zero": {"t_steps": [0.0, 1.5, 12345.678, 3e7]},
    "four pairs against two": {"f_lst": [1.0, None, None, 2.5]},
    "one pair against three": {
        "f_lst": [2.0],
        "g_converter_baseline": NPairConductanceConverter([1.0, 2.0, 4.0], g_min=0.0, g_max=25.0),
    },
}
WHERE_THERE_IS_LEAST_ROOM = {
    "one time, one pair": ("tnmse_over_time", "weight_errors", "conductance_curves"),
    "many times": ("tnmse_over_time", "weight_correlation", "devices"),
    "times from zero": ("tnmse_over_time", "weight_errors"),
    "four pairs against two": ("conductance_curves", "explored_factors"),
    "one pair against three": ("conductance_curves",),
}


def draw(figure_of: Callable[[Any], Figure | str], subject: object) -> Figure:
    """A figure as it is saved: in the report's style, its layout settled."""
    with drawing.style():
        figure = figure_of(subject)
        assert isinstance(figure, Figure), figure
        figure.draw_without_rendering()  # where axes place their titles and labels
        return figure


def assert_readable(figure: Figure) -> None:
    """Fails if texts overlap, are too small or leave the figure, or if axes are empty."""
    for axes in figure.axes:
        assert axes.has_data() or axes.get_label() == "<colorbar>", "empty axes"
    frame = figure.bbox.padded(1)
    boxes = [(text, text.get_window_extent()) for text in _shown_texts(figure)]
    # 390 pixels of a phone less the page's margins show 4.5 inches of 72 points.
    assert min(text.get_fontsize() for text, _ in boxes) * 366 / (figure.get_figwidth() * 72) > 10
    for text, box in boxes:
        inside = frame.x0 <= box.x0 and frame.y0 <= box.y0
        inside &= box.x1 <= frame.x1 and box.y1 <= frame.y1
        assert inside, f"{text.get_text()!r} leaves the figure"
    for (one, one_box), (other, other_box) in itertools.combinations(boxes, 2):
        overlap = Bbox.intersection(one_box, other_box)
        touching = overlap is None or min(overlap.width, overlap.height) <= 0.5
        assert touching, f"{one.get_text()!r} overlaps {other.get_text()!r}"


def _shown_texts(figure: Figure) -> list[Text]:
    """All texts with letters that are drawn: not the labels of ticks beyond the axes."""
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            shown = axis._update_ticks()
            for tick in (*axis.majorTicks, *axis.minorTicks):
                hidden |= set() if tick in shown else {tick.label1, tick.label2}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text not in hidden]
    return [text for text in texts if text.get_text().strip()]


@functools.cache
def record_of(case: str) -> StudyRecord:
    small = {"test_out_features": 4, "baseline_iterations": 5}
    problem = small_problem(**(small | CASES[case]))
    n_trials = reported_studies.N_TRIALS if case == "pcm" else 12
    study = reported_studies.search("memory", f"study of {case}", problem, n_trials=n_trials)
    folder = reported_studies.directory() / case
    reported_studies.finish(study, problem, folder)
    return read_study(study)


@pytest.fixture(scope="module")
def record() -> StudyRecord:
    return read_study(reported_studies.stored_study())


@pytest.mark.parametrize("case", CASES)
def test_texts_do_not_overlap_or_shrink_and_no_axes_are_empty(case: str) -> None:
    record = record_of(case)
    if case == "pcm":
        assert_readable(draw(figures.search_progress, [record]))
    for figure_of, subject in figures.figures_of_study(record).items():
        if case == "pcm" or figure_of.__name__ in WHERE_THERE_IS_LEAST_ROOM[case]:
            assert_readable(draw(figure_of, subject))


@pytest.mark.parametrize("t_steps", [(1.0, 3600.0, DAY), (0.0, 1.0, 60.0), (5.0, 5.1, 5.2)])
def test_accuracy_over_time_can_be_read_as_well(t_steps: tuple[float, ...]) -> None:
    values = np.array([[0.9, 0.9, np.nan], [0.91, 0.9, 0.9]])
    curves = {"baseline": values, "network-wide": values, "per layer": values[:, ::-1]}
    result = MetricOverTime("my_metric", t_steps, 0.9, curves)
    assert_readable(draw(MetricOverTime.figure, result))


def test_any_name_of_a_study_can_be_drawn(record: StudyRecord, tmp_path: Path) -> None:
    names = ["a$b$c_{x", r"\frac{", "<&>\"'", "Größe 中文", " ", "two\nlines", 99 * "long "]
    records = [dataclasses.replace(record, name=name) for name in names]
    svg = drawing.save(figures.search_progress, records, tmp_path / "drawn")
    assert svg == tmp_path / "drawn.svg"
    texts = "".join(ElementTree.parse(svg).getroot().itertext())
    for name in names[:4]:
        assert name in texts
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("n_bad", [1, reported_studies.N_TRIALS])
def test_trials_without_a_finite_error_have_no_place_but_break_nothing(
    record: StudyRecord, n_bad: int
) -> None:
    def damaged(trial: optuna.trial.FrozenTrial) -> optuna.trial.FrozenTrial:
        return optuna.trial.create_trial(
            value=float("inf"), params=trial.params, distributions=trial.distributions,
            user_attrs=trial.user_attrs | {"tnmse": float("inf")},
        )  # fmt: skip

    trials = (*map(damaged, record.trials[:n_bad]), *record.trials[n_bad:])
    bad = dataclasses.replace(record, trials=trials)
    for figure, subject in ((figures.explored_factors, bad), (figures.search_progress, [bad])):
        if n_bad == len(trials):
            assert figure(subject) == "No trial has a finite TNMSE."  # type: ignore[operator]
        else:
            assert_readable(draw(figure, subject))


def test_conductance_curves_are_the_winners_and_the_baselines(record: StudyRecord) -> None:
    """As its file has them, with pairs in another order than the trial where that compares well."""
    figure = draw(figures.conductance_curves, record)
    assert record.scores is not None
    trial = reported_studies.stored_study().trials[record.scores.winning_trial]
    for pair, axes in enumerate(figure.axes):
        lines = {line.get_label(): line.get_ydata() for line in axes.lines}
        for sign, name in enumerate(("optimised g⁺", "optimised g⁻")):
            np.testing.assert_array_equal(lines[name], trial.user_attrs["g_lst"][2 * pair + sign])
        # Two equal pairs, the second used once the first is full.
        assert lines["baseline g⁺"][-1] == pytest.approx(25.0)
        assert lines["baseline g⁻"][-1] == pytest.approx(0.0)
        assert f"optimised f = {trial.user_attrs['f_lst'][pair]:.3g}" in axes.get_title("left")
    f, g = trial.user_attrs["f_lst"], trial.user_attrs["g_lst"]
    file = {
        "f_lst": f[::-1],
        "g_lst_us": g[2:] + g[:2],
        "provenance": {"trial_number": trial.number},
    }
    settings = {**record.settings, attributes.STRATEGY: file}
    (line, *_) = (
        draw(figures.conductance_curves, dataclasses.replace(record, settings=settings))
        .axes[0]
        .lines
    )
    np.testing.assert_array_equal(line.get_ydata(), g[2])


def test_weights_programmed_like_the_baseline_show_no_difference_from_it(
    record: StudyRecord,
) -> None:
    assert record.measurements is not None
    measured = dataclasses.replace(record.measurements, optimised=record.measurements.baseline)
    share, gain = draw(figures.weight_errors, measured).axes
    for line in share.lines:
        within = np.asarray(line.get_ydata())
        assert np.all(np.diff(within) >= 0)
        assert within[0] == 0
        assert 98.5 < within[-1] < 100 + 1e-9
    _, ratio = draw(figures.weight_correlation, measured).axes
    for axes, none in ((gain, 0), (ratio, 1)):
        for line in axes.lines:
            np.testing.assert_allclose(line.get_ydata(), none, atol=1e-9)


def test_best_so_far_never_rises_and_ends_at_the_studys_best(record: StudyRecord) -> None:
    (axes,) = draw(figures.search_progress, [record]).axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    best = np.asarray(lines["best so far"])
    assert np.all(np.diff(best) <= 0)
    assert best[-1] - 1 + 0.125 == pytest.approx(reported_studies.stored_study().best_value)
    assert lines["loss 0: 12.5 % better"][0] == pytest.approx(0.875)


def test_the_front_names_the_corner_where_it_bends_most(record: StudyRecord) -> None:
    """The corner of a front that is an L in the figure; trials that are worse in both have none."""
    front = [(2.0, 0.4), (2.1, 0.2), (2.2, 0.11), (5.0, 0.1), (9.0, 0.09)]
    points = [*front, (6.0, 0.3), (100.0, 0.12)]
    template = record.winner
    trials = tuple(
        optuna.trial.create_trial(
            values=[tnmse, cost], params=template.params, distributions=template.distributions,
            user_attrs=template.user_attrs | {"tnmse": tnmse, attributes.CONDUCTANCE: cost},
        )
        for cost, tnmse in points
    )  # fmt: skip
    for number, trial in enumerate(trials):
        trial.number = number
    figure = draw(figures.front, dataclasses.replace(record, trials=trials))
    assert_readable(figure)
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(zip(*lines["front"].get_data(), strict=True)) == front
    corner = lines["corner: trial 2, 0.1100 % at 2.2 µS"]
    assert (corner.get_xdata()[0], corner.get_ydata()[0]) == front[2]
    straight = dataclasses.replace(record, trials=(trials[0], trials[4]))
    (axes,) = draw(figures.front, straight).axes
    assert not any(str(line.get_label()).startswith("corner") for line in axes.lines)


def test_importance_names_the_parameter_that_matters(record: StudyRecord) -> None:
    distribution = optuna.distributions.FloatDistribution(0, 1)
    names = ["f_1", "k_w", "g_0_0"]
    trials = tuple(
        optuna.trial.create_trial(
            value=(x[1] - 0.3) ** 2, params=dict(zip(names, x.tolist(), strict=True)),
            distributions=dict.fromkeys(names, distribution),
        )
        for x in np.random.default_rng(0).random((1300, 3))
    )  # fmt: skip
    (axes,) = draw(figures.importance, dataclasses.replace(record, trials=trials)).axes
    widths = [bar.get_width() for bar in axes.patches]
    assert axes.get_yticklabels()[-1].get_text() == "k_w"
    assert widths[-1] == max(widths) > 80
    assert sum(widths) == pytest.approx(100)


@given(st.floats(1e-3, 1e12) | st.just(0.0))
def test_names_of_times_are_short_and_near_the_time(seconds: float) -> None:
    name = drawing.time_name(seconds)
    assert len(name) <= 9
    (read,) = parse_durations(name, "t_steps")
    assert read == pytest.approx(seconds, rel=0.005)
