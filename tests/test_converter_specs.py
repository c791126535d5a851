"""Converters named on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from aihwkit.inference import (
    DualPairConductanceConverter,
    NPairConductanceConverter,
    SinglePairConductanceConverter,
)

from wpo_optuna.converter_specs import parse_converter
from wpo_optuna.errors import InvalidArgument
from wpo_optuna.strategy import ProgrammingStrategy

CURVES = ((20.0, 5.0, 1.0), (1.0, 5.0, 20.0))


def test_single_dual_and_npair_become_aihwkits_converters_with_the_range_given() -> None:
    single = parse_converter("single", 1.0, 20.0, "baseline")
    dual = parse_converter("dual:1,1", 0.0, 25.0, "baseline")
    npair = parse_converter(" NPair: 1, 2,4", 0.0, 25.0, "baseline")
    assert isinstance(single, SinglePairConductanceConverter)
    assert (single.g_min, single.g_max) == (1.0, 20.0)
    assert isinstance(dual, DualPairConductanceConverter)
    assert dual.f_lst == [1.0, 1.0]
    assert isinstance(npair, NPairConductanceConverter)
    assert npair.f_lst == [1.0, 2.0, 4.0]
    assert (npair.g_min, npair.g_max) == (0.0, 25.0)


def test_a_strategy_file_programs_as_the_strategy_with_the_devices_range(tmp_path: Path) -> None:
    strategy = ProgrammingStrategy((1.5,), CURVES, 0.0, 20.0)
    path = strategy.save(tmp_path / "strategy.json")
    converter = parse_converter(str(path), 0.0, 25.0, "baseline")
    weights = torch.linspace(-0.3, 0.3, 17)
    programmed, _ = converter.convert_to_conductances(weights)
    expected, _ = strategy.to_converter().convert_to_conductances(weights)
    assert all(torch.equal(a, b) for a, b in zip(programmed, expected, strict=True))
    assert (converter.g_min, converter.g_max) == (0.0, 25.0)


def test_a_strategy_that_leaves_the_range_of_the_devices_is_refused(tmp_path: Path) -> None:
    path = ProgrammingStrategy((1.0,), CURVES, 0.0, 20.0).save(tmp_path / "strategy.json")
    with pytest.raises(InvalidArgument, match="1 to 20 µS, leave the range of the devices, 2 to"):
        parse_converter(str(path), 2.0, 25.0, "baseline")
    with pytest.raises(InvalidArgument, match="leave the range of the devices, 0 to 15 µS"):
        parse_converter(str(path), 0.0, 15.0, "baseline")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("duall:1,1", r"--baseline = 'duall:1,1': .* is needed \(did you mean 'dual'\?\)"),
        ("", "single, dual:F,F, npair:F,F,... or the path of a strategy.json is needed"),
        ("single:1", "a single pair has no significance factors"),
        ("dual", "contains ''"),
        ("dual:1,2,3", "dual needs two significance factors"),
        ("dual:1,x", "contains 'x': significance factors are positive numbers"),
        ("npair:1,-2", "contains '-2'"),
        ("npair:1,inf", "contains 'inf'"),
        ("no/such/strategy.json", "cannot be read: No such file"),
    ],
)
def test_other_texts_are_refused_in_one_sentence_naming_the_argument(
    text: str, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message) as refused:
        parse_converter(text, 0.0, 25.0, "--baseline")
    assert str(refused.value).startswith("--baseline = ")


def test_a_range_without_room_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="0 <= g_min < g_max is needed"):
        parse_converter("single", 25.0, 0.0, "--baseline")
