"""A weight programming strategy: significance factors and conductance curves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.notebook import table

if TYPE_CHECKING:
    from aihwkit.inference.converter.conductance import CustomPairConductanceConverter

FORMAT = "wpo_optuna.strategy/1"


@dataclass(frozen=True)
class ProgrammingStrategy:
    """How a weight is split over pairs of conductances.

    Attributes:
        f_lst: significance factor of each of the P pairs.
        g_lst: 2P curves ``(g+ of pair 0, g- of pair 0, g+ of pair 1, ...)`` in µS, each given at K
            weights evenly spaced from the most negative to the most positive.
        g_min: lowest conductance of a device in µS.
        g_max: highest conductance of a device in µS.
        provenance: where the strategy comes from (problem fingerprint, TNMSE with its interval,
            versions, ...), carried along in the file.

    Raises:
        InvalidArgument: the curves do not fit the factors or leave the range of conductance.
    """

    f_lst: tuple[float, ...]
    g_lst: tuple[tuple[float, ...], ...]
    g_min: float
    g_max: float
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        # Lists are welcome, but would make equal strategies differ.
        object.__setattr__(self, "f_lst", tuple(self.f_lst))
        object.__setattr__(self, "g_lst", tuple(tuple(curve) for curve in self.g_lst))
        if not self.f_lst or not all(math.isfinite(f) and f > 0 for f in self.f_lst):
            raise InvalidArgument(f"f_lst = {list(self.f_lst)}: give one positive factor per pair.")
        if len(self.g_lst) != 2 * len(self.f_lst):
            raise InvalidArgument(
                f"g_lst has {len(self.g_lst)} curves: {len(self.f_lst)} pairs of conductances "
                f"need {2 * len(self.f_lst)}."
            )
        if len({len(curve) for curve in self.g_lst}) != 1 or len(self.g_lst[0]) < 2:
            raise InvalidArgument(
                f"g_lst has curves of lengths {[len(curve) for curve in self.g_lst]}: all need the "
                "same number of conductances, at least two."
            )
        if not 0 <= self.g_min < self.g_max < math.inf:
            raise InvalidArgument(
                f"g_min = {self.g_min}, g_max = {self.g_max}: 0 <= g_min < g_max is needed (µS), "
                "and both finite."
            )
        # Rounding of the decoder's last subtraction may leave the range by a part in 10^9.
        slack = 1e-9 * self.g_max
        for curve in self.g_lst:
            for g in curve:
                if not self.g_min - slack <= g <= self.g_max + slack:
                    raise InvalidArgument(
                        f"g_lst contains {g} µS: conductances lie between g_min = {self.g_min} "
                        f"and g_max = {self.g_max}."
                    )

    def __repr__(self) -> str:
        factors = ", ".join(f"{f:.4g}" for f in self.f_lst)
        return f"<ProgrammingStrategy f_lst=[{factors}], {self._extent}>"

    def _repr_html_(self) -> str:
        """What notebooks show: the factor of each pair, and its conductances from -w to w."""
        from wpo_optuna.report.notebook import image_of_strategy

        factors = [f"{f:.4g}" for f in self.f_lst]
        curves = [" ".join(f"{g:.2f}" for g in curve) for curve in self.g_lst]
        rows = zip(factors, curves[::2], curves[1::2], strict=True)
        caption = f"ProgrammingStrategy, {self._extent}"
        return table(caption, rows, ("f", "g⁺ (µS)", "g⁻ (µS)")) + image_of_strategy(self)

    @property
    def _extent(self) -> str:
        knots = len(self.g_lst[0])
        return f"{self.g_min:.4g} to {self.g_max:.4g} µS at {knots} weights"

    @property
    def spans_weights(self) -> bool:
        """Whether another weight than 0 can be programmed."""
        pairs = zip(self.f_lst, self.g_lst[::2], self.g_lst[1::2], strict=True)
        weights = zip(
            *([f * (g - h) for g, h in zip(plus, minus, strict=True)] for f, plus, minus in pairs),
            strict=True,
        )
        return any(abs(sum(terms)) > 0 for terms in weights)

    def normalised(self, f_lst: Sequence[float | None] = (None,)) -> ProgrammingStrategy:
        """The same programming in the form that equal strategies have in common.

        Weights are relative to the largest one, and the noise of all devices is alike: neither the
        order of the pairs nor a scale that all factors share changes a weight or its errors. So
        pairs are ordered by their factors, the largest last, and the first factor is 1. Pairs of
        equal factors are ordered by their conductances.

        Args:
            f_lst: the problem's factors, None where a factor was to be found. One that the problem
                fixes is the scale, and the first factor becomes that one. Several are the
                hardware's: these strategies keep their factors, and only pairs of equal factors are
                ordered.
        """
        fixed = [f for f in f_lst if f is not None]
        pairs = list(zip(self.f_lst, self.g_lst[::2], self.g_lst[1::2], strict=True))
        ordered = sorted(pairs, key=lambda pair: (pair[0], sum(pair[1]) + sum(pair[2]), pair))
        if len(fixed) > 1:
            places = sorted(range(len(pairs)), key=lambda place: pairs[place][0])
            ordered = [ordered[rank] for rank in sorted(range(len(pairs)), key=places.__getitem__)]
            factors = self.f_lst
        else:
            first = fixed[0] if fixed else 1.0
            factors = tuple(first * (f / ordered[0][0]) for f, *_ in ordered)
        curves = tuple(curve for _, *plus_and_minus in ordered for curve in plus_and_minus)
        return replace(self, f_lst=factors, g_lst=curves)

    def to_converter(self) -> CustomPairConductanceConverter:
        """The aihwkit converter that programs weights this way."""
        from aihwkit.inference.converter.conductance import CustomPairConductanceConverter

        return CustomPairConductanceConverter(
            f_lst=list(self.f_lst),
            g_lst=[list(curve) for curve in self.g_lst],
            g_min=self.g_min,
            g_max=self.g_max,
            # aihwkit's test compares to 1e-4 absolute on five weights and rejects valid curves
            # whose conductances are large; the decoder is invertible by construction.
            invertibility_test=False,
        )

    def to_json(self) -> str:
        """The strategy as a JSON document; numbers read back exactly."""
        document = {
            "format": FORMAT,
            "f_lst": list(self.f_lst),
            "g_lst_us": [list(curve) for curve in self.g_lst],
            "g_min_us": self.g_min,
            "g_max_us": self.g_max,
            "provenance": dict(self.provenance),
        }
        return json.dumps(document, indent=2) + "\n"

    def save(self, path: str | Path) -> Path:
        """Writes the JSON document to a file and returns its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(self.to_json(), encoding="utf-8")
        partial.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> ProgrammingStrategy:
        """Reads a strategy written by :meth:`save`.

        Raises:
            InvalidArgument: the file cannot be read or is not such a strategy.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidArgument(f"Strategy {path} cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"Strategy {path} is not a JSON file: {error}.") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise InvalidArgument(
                f'Strategy {path} is not a file of wpo_optuna: its "format" is not "{FORMAT}".'
            )
        try:
            strategy = cls(
                f_lst=tuple(float(f) for f in document["f_lst"]),
                g_lst=tuple(tuple(float(g) for g in curve) for curve in document["g_lst_us"]),
                g_min=float(document["g_min_us"]),
                g_max=float(document["g_max_us"]),
                provenance=dict(document.get("provenance", {})),
            )
        except InvalidArgument as error:
            raise InvalidArgument(f"Strategy {path}: {error}") from error
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InvalidArgument(
                f"Strategy {path} is incomplete or malformed ({error!r}): f_lst, g_lst_us, "
                "g_min_us and g_max_us are needed."
            ) from error
        if not strategy.spans_weights:
            raise InvalidArgument(
                f"Strategy {path} stands for the weight 0 alone: the sum of f (g+ - g-) must "
                "differ from 0 at one of the weights."
            )
        return strategy
