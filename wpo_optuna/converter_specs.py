"""Converters as people write them: ``single``, ``dual:1,1``, ``npair:1,2,4``, a strategy file."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import TYPE_CHECKING

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.strategy import ProgrammingStrategy

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

_NAMES = ("single", "dual", "npair")
_FORMS = "single, dual:F,F, npair:F,F,... or the path of a strategy.json"


def parse_converter(
    text: str, g_min: float, g_max: float, argument: str
) -> BaseConductanceConverter:
    """The aihwkit converter that a specification stands for.

    Args:
        text: ``single`` for one pair of devices; ``dual:1,1`` or ``npair:1,2,4`` for pairs with
            these significance factors, each used once those before it are full; or the path of a
            strategy's file.
        g_min: lowest conductance of a device in µS.
        g_max: highest conductance of a device in µS.
        argument: which of the user's arguments this is, for the messages.

    Returns:
        a converter with this g_min and g_max; a strategy may use a part of the range alone.

    Raises:
        InvalidArgument: the text has none of these forms, the file cannot be used, or its
            conductances leave the range.
    """
    if not 0 <= g_min < g_max < math.inf:
        raise InvalidArgument(
            f"g_min = {g_min:g}, g_max = {g_max:g}: 0 <= g_min < g_max is needed (µS)."
        )
    if is_strategy_file(text):
        return _from_strategy(text, g_min, g_max, argument)
    name, colon, factors_text = text.strip().partition(":")
    name = name.strip().lower()
    if name not in _NAMES:
        close = difflib.get_close_matches(name, _NAMES, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise InvalidArgument(f"{argument} = {text!r}: {_FORMS} is needed{hint}.")

    from aihwkit.inference.converter.conductance import (
        DualPairConductanceConverter,
        NPairConductanceConverter,
        SinglePairConductanceConverter,
    )

    if name == "single":
        if colon:
            raise InvalidArgument(
                f"{argument} = {text!r}: a single pair has no significance factors, write single."
            )
        return SinglePairConductanceConverter(g_min=g_min, g_max=g_max)
    factors = _factors(factors_text, text, argument)
    if name == "npair":
        return NPairConductanceConverter(factors, g_min=g_min, g_max=g_max)
    if len(factors) != 2:
        raise InvalidArgument(
            f"{argument} = {text!r}: dual needs two significance factors, e.g. dual:1,1; for "
            "another number write npair."
        )
    return DualPairConductanceConverter(factors, g_min=g_min, g_max=g_max)


def is_strategy_file(text: str) -> bool:
    """Whether a specification names a file rather than a converter of aihwkit."""
    return text.lower().endswith(".json") or Path(text).is_file()


def _factors(factors_text: str, text: str, argument: str) -> list[float]:
    factors = []
    for entry in factors_text.split(","):
        try:
            factor = float(entry)
        except ValueError:
            factor = math.nan
        if not (math.isfinite(factor) and factor > 0):
            raise InvalidArgument(
                f"{argument} = {text!r} contains {entry.strip()!r}: significance factors are "
                "positive numbers, e.g. dual:1,1 or npair:1,2,4."
            )
        factors.append(factor)
    return factors


def _from_strategy(
    path: str, g_min: float, g_max: float, argument: str
) -> BaseConductanceConverter:
    try:
        strategy = ProgrammingStrategy.load(path)
    except InvalidArgument as error:
        raise InvalidArgument(f"{argument} = {path!r}: {error}") from error
    conductances = [g for curve in strategy.g_lst for g in curve]
    lowest, highest = min(conductances), max(conductances)
    slack = 1e-9 * g_max  # as strategies allow to rounding
    if lowest < g_min - slack or highest > g_max + slack:
        raise InvalidArgument(
            f"{argument} = {path!r}: the strategy's conductances, {lowest:g} to {highest:g} µS, "
            f"leave the range of the devices, {g_min:g} to {g_max:g} µS."
        )
    converter = strategy.to_converter()
    converter.g_min, converter.g_max = g_min, g_max
    return converter
