"""Times after programming as people write them: ``1s,1min,1h,1d,30d,1y``."""

from __future__ import annotations

import math
import re
from itertools import pairwise

from wpo_optuna.errors import InvalidArgument

# A year of 365 days: what a calendar makes of it is below the resolution of any drift model.
SECONDS_PER_UNIT = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "y": 365 * 86400.0}

_DURATION = re.compile(r"((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([a-zµ]*)", re.IGNORECASE)


def parse_durations(text: str, argument: str) -> tuple[float, ...]:
    """Ascending times in s from a list such as ``1s,1min,1h,1d,30d,1y``.

    Args:
        text: durations separated by commas, each a number with a unit (s, min, h, d of 86 400 s,
            y of 365 d); a number alone is in seconds.
        argument: which of the user's arguments this is, for the messages.

    Raises:
        InvalidArgument: an entry is no duration, or the times do not ascend.
    """
    times = tuple(_parse(entry.strip(), text, argument) for entry in text.split(","))
    for earlier, later in pairwise(times):
        if later <= earlier:
            ascending = ",".join(format_duration(t) for t in sorted(set(times)))
            raise InvalidArgument(
                f"{argument} = {text!r}: times must ascend, each one once, e.g. {ascending}."
            )
    return times


def format_duration(seconds: float) -> str:
    """A duration in the largest unit that counts it in whole numbers.

    ``parse_durations`` reads back exactly the same number of seconds.
    """
    for unit, seconds_per_unit in reversed(SECONDS_PER_UNIT.items()):
        count = seconds / seconds_per_unit
        if seconds > 0 and count.is_integer() and count * seconds_per_unit == seconds:
            return f"{int(count)}{unit}" if count < 1e9 else f"{count!r}{unit}"
    return f"{seconds:g}s" if float(f"{seconds:g}") == seconds else f"{seconds!r}s"


def _parse(entry: str, text: str, argument: str) -> float:
    match = _DURATION.fullmatch(entry)
    unit = (match.group(2).lower() or "s") if match else ""
    if match is None or unit not in SECONDS_PER_UNIT:
        raise InvalidArgument(
            f"{argument} = {text!r} contains {entry!r}: each time is a number with a unit, "
            f"{', '.join(SECONDS_PER_UNIT)}, e.g. 1s,1min,1h,1d,30d,1y; a number alone is in "
            "seconds."
        )
    seconds = float(match.group(1)) * SECONDS_PER_UNIT[unit]
    if not math.isfinite(seconds):
        raise InvalidArgument(f"{argument} = {text!r} contains {entry!r}: this time is infinite.")
    return seconds
