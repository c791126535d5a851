"""Trials as Optuna holds them, and how their parts are stored in Optuna's tables."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.trial import FrozenTrial, TrialState


class OpenTrial:
    """A trial that may still change: waiting or running.

    Its dictionaries are changed in place; nobody outside the cache sees them, only copies.
    """

    __slots__ = (
        "datetime_complete",
        "datetime_start",
        "distributions",
        "intermediate_values",
        "number",
        "params",
        "position",
        "state",
        "system_attrs",
        "trial_id",
        "user_attrs",
        "values",
    )

    def __init__(
        self,
        trial_id: int,
        number: int,
        state: TrialState,
        datetime_start: datetime.datetime | None,
        datetime_complete: datetime.datetime | None = None,
    ) -> None:
        self.trial_id = trial_id
        self.number = number
        self.position = -1
        self.state = state
        self.datetime_start = datetime_start
        self.datetime_complete = datetime_complete
        self.values: list[float] | None = None
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}
        self.user_attrs: dict[str, Any] = {}
        self.system_attrs: dict[str, Any] = {}
        self.intermediate_values: dict[int, float] = {}

    def copied(self) -> FrozenTrial:
        """The trial as it is now, untouched by later writes."""
        return self._frozen(
            self.params.copy(),
            self.distributions.copy(),
            self.user_attrs.copy(),
            self.system_attrs.copy(),
            self.intermediate_values.copy(),
        )

    def handed_over(self) -> FrozenTrial:
        """The trial in its last state, made of this object's own dictionaries."""
        return self._frozen(
            self.params,
            self.distributions,
            self.user_attrs,
            self.system_attrs,
            self.intermediate_values,
        )

    def _frozen(
        self,
        params: dict[str, Any],
        distributions: dict[str, BaseDistribution],
        user_attrs: dict[str, Any],
        system_attrs: dict[str, Any],
        intermediate_values: dict[int, float],
    ) -> FrozenTrial:
        return FrozenTrial(
            number=self.number,
            state=self.state,
            value=None,
            values=self.values,
            datetime_start=self.datetime_start,
            datetime_complete=self.datetime_complete,
            params=params,
            distributions=distributions,
            user_attrs=user_attrs,
            system_attrs=system_attrs,
            intermediate_values=intermediate_values,
            trial_id=self.trial_id,
        )


class KnownDistributions:
    """The distributions of a study's parameters; equal ones are one object, encoded once."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[BaseDistribution, str]] = {}
        self._decoded: dict[str, BaseDistribution] = {}

    def note(self, name: str, distribution: BaseDistribution) -> None:
        """Remember ``distribution`` as the parameter's first, unless it has one."""
        if name not in self._first:
            text = distribution_to_json(distribution)
            self._first[name] = distribution, text
            self._decoded.setdefault(text, distribution)

    def stored(self, name: str, distribution: BaseDistribution) -> tuple[BaseDistribution, str]:
        """The object to keep in place of ``distribution``, and its JSON.

        Raises:
            ValueError: If an earlier trial of the study used the name for another kind.
        """
        first = self._first.get(name)
        if first is not None:
            if first[0] is distribution:
                return first
            check_distribution_compatibility(first[0], distribution)
            # Equal categorical choices may still differ in type, as 1 and True do.
            if (
                isinstance(distribution, (FloatDistribution, IntDistribution))
                and first[0] == distribution
            ):
                return first
        return distribution, distribution_to_json(distribution)

    def decoded(self, text: str) -> BaseDistribution:
        """The distribution with this JSON."""
        distribution = self._decoded.get(text)
        if distribution is None:
            distribution = self._decoded[text] = json_to_distribution(text)
        return distribution


def external_value(distribution: BaseDistribution, internal: float) -> Any:
    """The parameter value a user sees."""
    if type(distribution) is FloatDistribution:
        return internal
    return distribution.to_external_repr(internal)


def finite_or_named(value: float) -> tuple[float | None, str]:
    """A number as Optuna's tables hold it: SQL has no infinities and NaN is its NULL."""
    if math.isnan(value):
        return None, "NAN"
    if math.isinf(value):
        return None, "INF_POS" if value > 0 else "INF_NEG"
    return value, "FINITE"


_NAMED_VALUES = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}


def number_of(value: float | None, kind: str) -> float:
    """The inverse of :func:`finite_or_named`."""
    if kind == "FINITE":
        return math.nan if value is None else value
    return _NAMED_VALUES[kind]


def checked_internal(value: float) -> float:
    """A parameter's internal value as a float.

    Raises:
        ValueError: If it is NaN, which Optuna's tables cannot hold.
    """
    value = float(value)
    if math.isnan(value):
        raise ValueError("NaN is not a parameter value")
    return value


def checked_values(values: Sequence[float]) -> list[float]:
    """Objective values as floats.

    Raises:
        ValueError: If one is NaN, which Optuna's tables cannot hold.
    """
    checked = [float(value) for value in values]
    if any(math.isnan(value) for value in checked):
        raise ValueError(f"values {list(values)}: NaN is not an objective value")
    return checked


def now() -> tuple[datetime.datetime, str]:
    """This moment, in local time for people and in UTC for the table."""
    moment = datetime.datetime.now(datetime.UTC)
    return local_time(moment), _utc_text(moment)


def utc_text(local: datetime.datetime | None) -> str | None:
    """A naive local or an aware time as the tables hold it: naive, UTC, microseconds."""
    return None if local is None else _utc_text(local.astimezone(datetime.UTC))


def local_of(text: str | None) -> datetime.datetime | None:
    """The inverse of :func:`utc_text`: naive local time."""
    if text is None:
        return None
    return local_time(datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC))


def local_time(moment: datetime.datetime) -> datetime.datetime:
    """Naive local time of an aware one."""
    return moment.astimezone().replace(tzinfo=None)


def _utc_text(moment: datetime.datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(" ", "microseconds")


def json_round_trip(value: Any) -> tuple[str, Any]:
    """The JSON text of an attribute, and the value as reading it again would give it.

    Raises:
        TypeError: If the value has no JSON form.
    """
    text = json.dumps(value)
    return text, value if type(value) in (float, int, str, bool) else json.loads(text)
