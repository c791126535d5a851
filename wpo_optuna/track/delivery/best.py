"""The lowest TNMSE up to a trial, also when trials become known out of order."""

from __future__ import annotations

import math
from bisect import bisect_left


class BestSoFar:
    """Running minimum of the TNMSE over the trial number."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._tnmse: list[float] = []
        self._lowest: list[float] = []

    def add(self, number: int, tnmse: float) -> None:
        """Regards a trial; NaN counts as infinite, a second value of a trial is ignored."""
        tnmse = math.inf if math.isnan(tnmse) else tnmse
        place = bisect_left(self._numbers, number)
        if place < len(self._numbers) and self._numbers[place] == number:
            return
        self._numbers.insert(place, number)
        self._tnmse.insert(place, tnmse)
        del self._lowest[place:]
        lowest = self._lowest[-1] if self._lowest else math.inf
        for value in self._tnmse[place:]:
            lowest = min(lowest, value)
            self._lowest.append(lowest)

    def before(self, number: int) -> float:
        """Lowest TNMSE of the trials with a smaller number; infinite if there is none."""
        place = bisect_left(self._numbers, number)
        return self._lowest[place - 1] if place else math.inf
