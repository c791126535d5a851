"""Every figure can be read at every width: nothing overlaps, no axes are empty."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import reported_studies
from aihwkit.inference.converter.conductance import NPairConductanceConverter
from drawn_text import assert_readable, draw
from small_problems import small_problem

from wpo_optuna.hardware import NAMED_RPU_CONFIGS
from wpo_optuna.report.figures import (
    colours,
    conductance_curves,
    devices,
    error_distributions,
    explored,
    importance,
    sampler_comparison,
    search_progress,
    tnmse_over_time,
    weight_correlation,
)
from wpo_optuna.report.figures.drawing import Illustration, Omission, Width, render
from wpo_optuna.report.reporting.study_record import StudyRecord, Trials, read_study

DAY = 86400.0
OF_ONE_STUDY: dict[str, Callable[[StudyRecord], Illustration | Omission]] = {
    module.__name__.rpartition(".")[2]: module.illustrate
    for module in (
        conductance_curves, devices, error_distributions, explored, importance, tnmse_over_time,
        weight_correlation,
    )
}  # fmt: skip
OF_ONE_STUDY["search_progress"] = lambda record: search_progress.illustrate([record])
OF_ONE_STUDY["sampler_comparison"] = lambda record: sampler_comparison.illustrate([record])

CASES: dict[str, dict[str, Any]] = {
    "pcm": {"t_steps": [1.0, 60.0, 3600.0, DAY, 30 * DAY, 360 * DAY]},
    "one time, one pair": {"t_steps": [20.0], "f_lst": [None]},
    "more times than panels": {"t_steps": [4.0**k for k in range(9)]},
    "times from zero": {"t_steps": [0.0, 1.5, 12345.678, 3e7]},
    "four pairs against two": {"f_lst": [1.0, None, None, 2.5]},
    "one pair against three": {
        "f_lst": [2.0],
        "g_converter_baseline": NPairConductanceConverter([1.0, 2.0, 4.0], g_min=0.0, g_max=25.0),
    },
    "reram": {
        "rpu_config": NAMED_RPU_CONFIGS["reram-cmo"].build(),
        "g_converter_baseline": NAMED_RPU_CONFIGS["reram-cmo"].baseline(),
        "t_steps": [1.0, 3600.0],
    },
}
DRAWN = [
    *(("pcm", figure, width) for figure in OF_ONE_STUDY for width in Width),
    # Where there is least room.
    *((case, figure, Width.NARROW) for case, figures in {
        "one time, one pair": ("tnmse_over_time", "error_distributions", "conductance_curves"),
        "more times than panels": ("tnmse_over_time", "weight_correlation"),
        "times from zero": ("tnmse_over_time", "error_distributions"),
        "four pairs against two": ("conductance_curves", "explored"),
        "one pair against three": ("conductance_curves",),
        "reram": ("devices",),
    }.items() for figure in figures),
]  # fmt: skip


@functools.cache
def record_of(case: str) -> StudyRecord:
    small = {"test_out_features": 4, "baseline_iterations": 5}
    problem = small_problem(**(small | CASES[case]))
    n_trials = reported_studies.N_TRIALS if case == "pcm" else 12
    study = reported_studies.search("memory", f"study of {case}", problem, n_trials=n_trials)
    reported_studies.finish(study, problem)
    return read_study(study)


@pytest.mark.parametrize(("case", "figure", "width"), DRAWN)
def test_texts_of_figures_do_not_overlap_and_no_axes_are_empty(
    case: str, figure: str, width: Width
) -> None:
    illustration = OF_ONE_STUDY[figure](record_of(case))
    assert isinstance(illustration, Illustration), illustration
    assert_readable(draw(illustration, width))


def test_many_studies_with_long_names_are_compared_without_overlaps() -> None:
    record = record_of("pcm")
    names = [f"a study of a network whose name is long number {i}, {'x' * i}" for i in range(9)]
    records = [dataclasses.replace(record, name=name) for name in names]
    for illustration in (
        search_progress.illustrate(records), sampler_comparison.illustrate(records)
    ):  # fmt: skip
        assert isinstance(illustration, Illustration)
        for width in Width:
            assert_readable(draw(illustration, width))


def test_any_name_of_a_study_can_be_drawn() -> None:
    names = ["a$b$c_{x", r"\frac{", "<&>\"'", "Größe 中文", " ", "two\nlines"]
    records = [dataclasses.replace(record_of("pcm"), name=name) for name in names]
    comparison = sampler_comparison.illustrate(records)
    assert isinstance(comparison, Illustration)
    drawn = render(comparison)
    texts = "".join(ElementTree.fromstring(drawn.svg).itertext())
    for name in ("a$b$c_{x", r"\frac{", "<&>\"'", "Größe 中文"):
        assert name in texts
    assert drawn.png.startswith(b"\x89PNG")


def test_a_style_of_the_users_changes_no_figure_and_is_left_as_it_was() -> None:
    import matplotlib

    illustration = conductance_curves.illustrate(record_of("one time, one pair"))
    usual = render(illustration).svg
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        assert render(illustration).svg == usual
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize("n_bad", [1, reported_studies.N_TRIALS])
def test_trials_that_failed_to_give_a_finite_error_have_no_place_but_break_nothing(
    n_bad: int,
) -> None:
    record = record_of("pcm")
    trials = record.trials
    bad = np.arange(len(trials.number)) < n_bad
    trials = dataclasses.replace(
        trials, tnmse=np.where(bad, np.inf, trials.tnmse), loss=np.where(bad, np.inf, trials.loss)
    )
    damaged = dataclasses.replace(record, trials=trials)
    for illustrate in (explored.illustrate, OF_ONE_STUDY["search_progress"]):
        illustration = illustrate(damaged)
        if n_bad == len(trials.number):
            assert isinstance(illustration, Omission)
            continue
        assert isinstance(illustration, Illustration)
        assert_readable(draw(illustration, Width.NARROW))


def test_a_study_of_a_single_trial_has_figures_or_reasons_why_not() -> None:
    record = record_of("pcm")
    first = {name: values[:1] for name, values in vars(record.trials).items()}
    single = dataclasses.replace(record, trials=Trials(**first), frozen=record.frozen[:1])
    progress = search_progress.illustrate([single])
    assert isinstance(progress, Illustration)
    assert_readable(draw(progress, Width.NARROW))
    assert isinstance(explored.illustrate(single), Omission)
    few = importance.illustrate(single)
    assert isinstance(few, Omission)
    assert "at least 50" in few.reason


# Machado, Oliveira, Fernandes: "A physiologically-based model for simulation of color vision
# deficiency", IEEE Transactions on Visualization and Computer Graphics 2009, severity 1.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]
    ),
}  # fmt: skip


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colours_of_one_figure_differ_for_every_colour_vision(deficiency: str) -> None:
    """CIE76 differences; 2.3 is just noticeable. Alike ones differ in marker or line besides."""
    pairs = {(colours.BASELINE, colours.OPTIMISED): 40, (colours.G_PLUS, colours.G_MINUS): 15}
    looks = [colours.look(i) for i in range(7)]
    pairs |= {(a.colour, b.colour): 8 for a, b in itertools.combinations(looks, 2)}
    for (one, other), least in pairs.items():
        difference = np.linalg.norm(_lab(one, deficiency) - _lab(other, deficiency))
        assert difference > least, f"{one} and {other} differ by {difference:.1f}"
    assert len({(look.line, look.marker) for look in looks}) == len(looks)
    times = np.array([_lab(colour, deficiency) for colour in colours.of_times(8)])
    assert np.all(np.diff(times[:, 0]) > 3), "later times must be lighter"


def _lab(colour: Any, deficiency: str) -> np.ndarray:
    from matplotlib.colors import to_rgb

    srgb = np.array(to_rgb(colour))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(DEFICIENCIES[deficiency] @ linear, 0, 1)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    relative = to_xyz @ seen / (to_xyz @ np.ones(3))
    f = np.where(relative > 216 / 24389, np.cbrt(relative), (24389 / 27 * relative + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
