"""Strategies are valid, are written down exactly, and program weights as aihwkit does."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from aihwkit.simulator.configs import InferenceRPUConfig
from hypothesis import assume, given
from hypothesis import strategies as st

from wpo_optuna import apply_strategy
from wpo_optuna.errors import InvalidArgument
from wpo_optuna.strategy import FORMAT, ProgrammingStrategy

G_MIN, G_MAX = 0.3, 24.7
STRATEGY = ProgrammingStrategy(
    (1.0, 2.5), ((1.0, 5.0, 9.0), (9.0, 5.0, 1.0), (2.0, 4.0, 8.0), (8.0, 4.0, 2.0)), G_MIN, G_MAX
)


@st.composite
def strategies(draw: st.DrawFn) -> ProgrammingStrategy:
    n_pairs, n_knots = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    factors = st.floats(1e-3, 1e3)
    curve = st.tuples(*[st.floats(G_MIN, G_MAX)] * n_knots)
    f_lst = draw(st.tuples(*[factors] * n_pairs))
    g_lst = draw(st.tuples(*[curve] * (2 * n_pairs)))
    # aihwkit divides by the largest weight that the curves give.
    weights_us = np.array(f_lst) @ (np.array(g_lst[0::2]) - np.array(g_lst[1::2]))
    assume(np.abs(weights_us).max() > 1e-3 * sum(f_lst))
    return ProgrammingStrategy(
        f_lst=f_lst,
        g_lst=g_lst,
        g_min=G_MIN,
        g_max=G_MAX,
        provenance=draw(st.dictionaries(st.text(), st.floats(allow_nan=False) | st.text())),
    )


@given(strategies())
def test_a_file_gives_back_exactly_what_was_saved(strategy: ProgrammingStrategy) -> None:
    with tempfile.TemporaryDirectory() as folder:
        loaded = ProgrammingStrategy.load(strategy.save(Path(folder) / "strategy.json"))
    assert loaded == strategy
    assert loaded.provenance == strategy.provenance


@given(strategies())
def test_the_converter_programs_what_the_curves_say(strategy: ProgrammingStrategy) -> None:
    converter = strategy.to_converter()
    assert (converter.g_min, converter.g_max) == (G_MIN, G_MAX)
    n_knots = len(strategy.g_lst[0])
    conductances, _ = converter.convert_to_conductances(torch.linspace(-0.5, 0.5, n_knots))
    for conductance, curve in zip(conductances, strategy.g_lst, strict=True):
        np.testing.assert_allclose(conductance.numpy(), curve, atol=1e-4 * G_MAX)


A, B, C = ((1.0, 5.0, 9.0), (9.0, 5.0, 1.0)), ((2.0, 4.0, 8.0), (8.0, 4.0, 2.0)), ((0.5,) * 3,) * 2


@pytest.mark.parametrize(
    ("problem", "found", "factors", "pairs"),
    [
        ((1.0, None), [(1.0, A), (0.5, B)], (1.0, 2.0), (B, A)),
        ((1.0, None), [(1.0, B), (2.0, A)], (1.0, 2.0), (B, A)),
        ((None, None), [(4.0, A), (2.0, B)], (1.0, 2.0), (B, A)),
        ((None, None, None), [(4.0, A), (8.0, B), (2.0, C)], (1.0, 2.0, 4.0), (C, A, B)),
        # One factor that is fixed is the scale; several are the hardware's.
        ((2.0, None), [(2.0, A), (1.0, B)], (2.0, 4.0), (B, A)),
        ((3.0, 1.0), [(3.0, A), (1.0, B)], (3.0, 1.0), (A, B)),
        ((1.0, 2.0, None), [(1.0, A), (2.0, B), (0.5, C)], (1.0, 2.0, 0.5), (A, B, C)),
        ((1.0, 1.0), [(1.0, A), (1.0, B)], (1.0, 1.0), (B, A)),
        ((1.0, 1.0), [(1.0, B), (1.0, A)], (1.0, 1.0), (B, A)),
        ((2.0, 1.0, 2.0), [(2.0, A), (1.0, B), (2.0, C)], (2.0, 1.0, 2.0), (C, B, A)),
    ],
)
def test_strategies_that_are_equal_are_normalised_to_one_form(
    problem: tuple[Any, ...], found: list[Any], factors: tuple[float, ...], pairs: tuple[Any, ...]
) -> None:
    f_lst, curves = tuple(f for f, _ in found), tuple(curve for _, pair in found for curve in pair)
    strategy = ProgrammingStrategy(f_lst, curves, G_MIN, G_MAX, {"study_name": "s"})
    normal = strategy.normalised(problem)
    assert normal.f_lst == factors
    assert normal.g_lst == tuple(curve for pair in pairs for curve in pair)
    assert normal.provenance == strategy.provenance
    assert normal.normalised(problem) == normal


@given(strategies(), st.floats(0.1, 10.0), st.randoms())
def test_a_normalised_strategy_programs_the_same_conductances_and_weights(
    strategy: ProgrammingStrategy, scale: float, random: Random
) -> None:
    # Factors that differ in their last digit alone may be equal once they are scaled.
    assume(len({f"{f:.9g}" for f in strategy.f_lst}) == len(set(strategy.f_lst)))
    order = random.sample(range(len(strategy.f_lst)), len(strategy.f_lst))
    exchanged = replace(
        strategy,
        f_lst=tuple(scale * strategy.f_lst[pair] for pair in order),
        g_lst=tuple(strategy.g_lst[2 * pair + sign] for pair in order for sign in (0, 1)),
    )
    normal = strategy.normalised()
    assert normal.g_lst == exchanged.normalised().g_lst
    np.testing.assert_allclose(normal.f_lst, exchanged.normalised().f_lst, rtol=1e-12)
    assert normal.f_lst[0] == 1.0
    assert list(normal.f_lst) == sorted(normal.f_lst)

    weights = torch.linspace(-0.5, 0.5, 23)
    converters = strategy.to_converter(), normal.to_converter()
    (conductances, parameters), (after, parameters_after) = (
        converter.convert_to_conductances(weights) for converter in converters
    )
    programmed = torch.stack(conductances).unflatten(0, (-1, 2)).sum(dim=0)
    np.testing.assert_allclose(
        torch.stack(after).unflatten(0, (-1, 2)).sum(dim=0), programmed, rtol=1e-4
    )
    np.testing.assert_allclose(
        converters[1].convert_back_to_weights(after, parameters_after),
        converters[0].convert_back_to_weights(conductances, parameters),
        atol=1e-4,
    )


def test_saving_makes_folders_replaces_the_old_file_and_leaves_nothing_else(
    tmp_path: Path,
) -> None:
    path = tmp_path / "new" / "folder" / "strategy.json"
    STRATEGY.save(path)
    other = replace(STRATEGY, f_lst=(1.0, 3.0))
    assert other.save(str(path)) == path
    assert ProgrammingStrategy.load(str(path)) == other
    assert list(path.parent.iterdir()) == [path]


def test_what_python_and_notebooks_show_is_short_and_has_factors_and_range() -> None:
    assert repr(STRATEGY) == "<ProgrammingStrategy f_lst=[1, 2.5], 0.3 to 24.7 µS at 3 weights>"
    shown = STRATEGY._repr_html_()
    assert shown.startswith("<table>")
    assert "0.3 to 24.7 µS" in shown
    assert "<tr><td>2.5</td><td>2.00 4.00 8.00</td><td>8.00 4.00 2.00</td></tr>" in shown
    assert '<img src="data:image/png;base64,' in shown


def document(**changes: Any) -> str:
    whole = {
        "format": FORMAT,
        "f_lst": [1.0],
        "g_lst_us": [[1.0, 2.0], [2.0, 1.0]],
        "g_min_us": 0.0,
        "g_max_us": 25.0,
    }
    return json.dumps({k: v for k, v in (whole | changes).items() if v is not None})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a JSON file"),
        ('{"format": ', "is not a JSON file"),
        (document(format="wpo_optuna.strategy/9"), f'"format" is not "{FORMAT}"'),
        (document(f_lst=None), "incomplete or malformed .*f_lst"),
        (document(g_max_us=None), "incomplete or malformed .*g_max_us"),
        (document(f_lst=["one"]), "incomplete or malformed .*one"),
        (document(f_lst=[-1.0]), r"f_lst = \[-1.0\]: give one positive factor"),
        (document(f_lst=[1.0, 1.0]), "g_lst has 2 curves: 2 pairs .* need 4"),
    ],
)
def test_a_file_that_is_no_strategy_is_refused_by_its_name(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "strategy.json"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=f"{path}.*{message}"):
        ProgrammingStrategy.load(path)


def test_a_missing_file_and_a_folder_are_refused_by_their_names(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(InvalidArgument, match=f"Strategy {path} cannot be read: "):
            ProgrammingStrategy.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"f_lst": ()}, r"f_lst = \[\]: give one positive factor per pair"),
        ({"f_lst": (1.0, 0.0)}, r"f_lst = \[1.0, 0.0\]: give one positive factor"),
        ({"f_lst": (1.0, float("nan"))}, "f_lst = .*nan.*positive factor"),
        ({"f_lst": (1.0,)}, "g_lst has 4 curves: 1 pairs .* need 2"),
        ({"g_lst": ((1.0, 2.0),) * 3 + ((1.0,),)}, r"lengths \[2, 2, 2, 1\]: .* same number"),
        ({"g_lst": ((1.0, 24.8),) * 4}, "g_lst contains 24.8 µS: .* g_max = 24.7"),
        ({"g_lst": ((0.2, 1.0),) * 4}, "g_lst contains 0.2 µS: .* g_min = 0.3"),
        ({"g_lst": ((float("nan"), 1.0),) * 4}, "g_lst contains nan µS"),
        ({"g_min": 24.7}, "g_min = 24.7, g_max = 24.7: 0 <= g_min < g_max"),
        ({"g_max": float("nan")}, "g_max = nan: 0 <= g_min < g_max"),
    ],
)
def test_what_cannot_be_programmed_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        replace(STRATEGY, **changes)


def test_curves_for_the_weight_zero_alone_are_no_strategy_to_be_used(tmp_path: Path) -> None:
    flat = ProgrammingStrategy((1.0,), ((5.0, 5.0, 5.0), (5.0, 5.0, 5.0)), 0.0, 25.0)
    with pytest.raises(InvalidArgument, match=r"flat.json stands for the weight 0 alone"):
        ProgrammingStrategy.load(flat.save(tmp_path / "flat.json"))
    with pytest.raises(InvalidArgument, match="the weight 0 alone"):
        apply_strategy(InferenceRPUConfig(), flat)
