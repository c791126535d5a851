"""Reading and writing Optuna's own tables in bulk, with SQLAlchemy Core.

A trial takes some 27 rows in five tables. ``RDBStorage`` writes them one statement after the other
and reads them as objects; here a batch is one statement for each table.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution

# The one private module of Optuna used here: its tables, which no public call fills in bulk.
# Without it FinishedTrials goes through Study.add_trials, at fifty times the cost.
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from sqlalchemy import Connection, Engine, Row, Table, insert, select
from sqlalchemy.exc import SQLAlchemyError

from wpo_optuna.storage.sqlite_file import StorageError, begin_immediate
from wpo_optuna.storage.urls import masked_url

_Result = TypeVar("_Result")

STUDIES: Table = models.StudyModel.__table__
TRIALS: Table = models.TrialModel.__table__

# Trials whose rows are read by one statement.
_CHUNK = 1000
_MOST_TEXTS = 4096


class StoredTrial(FrozenTrial):
    """A trial as it is stored; copies share its distributions, which never change."""

    def __deepcopy__(self, memo: dict[int, Any]) -> StoredTrial:
        twin = copy.copy(self)
        twin.values = self.values
        twin.params = dict(self.params)
        twin.distributions = dict(self.distributions)
        twin.user_attrs = copy.deepcopy(self.user_attrs, memo)
        twin.system_attrs = copy.deepcopy(self.system_attrs, memo)
        twin.intermediate_values = dict(self.intermediate_values)
        return twin


@dataclass(frozen=True)
class _Part:
    """A part of a trial that has a table of its own.

    Attributes:
        table: where it is.
        columns: those with its contents, after the trial's key; the first one is unique.
        rows: the contents that a trial has there.
        put: gives a trial the contents of one row.
    """

    table: Table
    columns: tuple[str, ...]
    rows: Callable[[FrozenTrial], Iterable[tuple[Any, ...]]]
    put: Callable[..., None]


@dataclass(frozen=True)
class _Cursor:
    """How far a study has been read.

    Attributes:
        last_id: the key of its last trial. Keys of one study grow with the time of storing: who
            creates a trial has the study's row, or the whole file, locked.
        n_trials: how many trials it has.
        open_ids: the keys of those that were not finished.
    """

    last_id: int = -1
    n_trials: int = 0
    open_ids: frozenset[int] = frozenset()


class DatabaseTrials:
    """The trials of one study in a relational database, and how far they have been read.

    Args:
        engine: the database.
        study_name: the study.
        attributes: names of the user attributes to read; None for all.
    """

    def __init__(self, engine: Engine, study_name: str, attributes: Collection[str] | None) -> None:
        if engine.dialect.name != "sqlite":
            # What is read after the lock was got must be newer than the lock.
            engine = engine.execution_options(isolation_level="READ COMMITTED")
        self._engine = engine
        self._attributes = attributes
        self._cursor = _Cursor()
        self._connection: Connection | None = None
        with self._connected() as connection:
            query = select(STUDIES.c.study_id).where(STUDIES.c.study_name == study_name)
            self._study_id: int = connection.execute(query).scalar_one()

    def read_new(self) -> list[FrozenTrial]:
        """The trials finished since the last call, by number."""
        cursor = self._cursor
        query = select(TRIALS).where(TRIALS.c.study_id == self._study_id)
        with self._connected() as connection:
            new = connection.execute(query.where(TRIALS.c.trial_id > cursor.last_id)).all()
            rows = [*new]
            for chunk in _chunks(sorted(cursor.open_ids)):
                rows += connection.execute(query.where(TRIALS.c.trial_id.in_(chunk)))
            trials = {row.trial_id: _trial(row) for row in rows if row.state.is_finished()}
            for chunk in _chunks(list(trials)):
                self._fill(connection, {trial_id: trials[trial_id] for trial_id in chunk})
        self._cursor = _Cursor(
            max((row.trial_id for row in new), default=cursor.last_id),
            cursor.n_trials + len(new),
            frozenset(row.trial_id for row in rows) - trials.keys(),
        )
        return sorted(trials.values(), key=lambda trial: trial.number)

    def _fill(self, connection: Connection, trials: dict[int, FrozenTrial]) -> None:
        for part in _PARTS:
            table = part.table
            query = select(table.c.trial_id, *(table.c[name] for name in part.columns))
            query = query.where(table.c.trial_id.in_(trials)).order_by(*table.primary_key)
            if part is _USER_ATTRIBUTES and self._attributes is not None:
                query = query.where(table.c.key.in_(self._attributes))
            put = part.put
            for trial_id, *contents in connection.execute(query):
                put(trials[trial_id], *contents)

    def write(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Stores finished trials after all others, which have just been read."""
        if not trials:
            return []
        cursor = self._cursor
        new_rows = [
            {
                "number": number,
                "study_id": self._study_id,
                "state": trial.state,
                "datetime_start": _utc(trial.datetime_start),
                "datetime_complete": _utc(trial.datetime_complete),
            }
            for number, trial in enumerate(trials, cursor.n_trials)
        ]
        query = select(TRIALS).where(
            TRIALS.c.study_id == self._study_id, TRIALS.c.trial_id > cursor.last_id
        )
        with self._connected() as connection:
            connection.execute(insert(TRIALS), new_rows)
            rows = connection.execute(query.order_by(TRIALS.c.number)).all()
            for part in _PARTS:
                names = ("trial_id", *part.columns)
                contents = [
                    dict(zip(names, (row.trial_id, *values), strict=True))
                    for row, trial in zip(rows, trials, strict=True)
                    for values in part.rows(trial)
                ]
                if contents:
                    connection.execute(insert(part.table), contents)
        last_id = max(row.trial_id for row in rows)
        self._cursor = _Cursor(last_id, cursor.n_trials + len(rows), cursor.open_ids)
        return [_trial(row, trial) for row, trial in zip(rows, trials, strict=True)]

    def alone(self, work: Callable[[], _Result]) -> _Result:
        """Reads and writes in one transaction that keeps other writers away.

        Raises:
            StorageError: the transaction failed, and nothing was written.
        """
        before = self._cursor
        try:
            with self._connected() as self._connection:
                if self._engine.dialect.name == "sqlite":
                    begin_immediate(self._connection)
                else:
                    # As Optuna does when it creates a trial.
                    query = select(STUDIES).where(STUDIES.c.study_id == self._study_id)
                    self._connection.execute(query.with_for_update()).one()
                result = work()
                self._connection.commit()
            return result
        except BaseException:
            self._cursor = before
            raise
        finally:
            self._connection = None

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """The connection of the transaction at hand, or a new one."""
        if self._connection is not None:
            yield self._connection
            return
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            url = masked_url(self._engine.url.render_as_string(hide_password=False))
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise StorageError(f"storage {url!r}: {reason}; nothing was written") from error


def _trial(row: Row[Any], contents: FrozenTrial | None = None) -> StoredTrial:
    """A trial by its row in :data:`TRIALS`, and the contents of another one or none."""
    return StoredTrial(
        number=row.number,
        trial_id=row.trial_id,
        state=row.state,
        value=None,
        values=contents.values if contents else None,
        datetime_start=_local(row.datetime_start),
        datetime_complete=_local(row.datetime_complete),
        params=contents.params if contents else {},
        distributions=contents.distributions if contents else {},
        user_attrs=contents.user_attrs if contents else {},
        system_attrs=contents.system_attrs if contents else {},
        intermediate_values=contents.intermediate_values if contents else {},
    )


def _params(trial: FrozenTrial) -> Iterator[tuple[Any, ...]]:
    for name, value in trial.params.items():
        distribution = trial.distributions[name]
        yield name, distribution.to_internal_repr(value), _json_of(distribution)


def _put_param(trial: FrozenTrial, name: str, value: float, text: str) -> None:
    distribution = _distribution_of(text)
    trial.distributions[name] = distribution
    trial.params[name] = distribution.to_external_repr(value)


def _values(trial: FrozenTrial) -> Iterator[tuple[Any, ...]]:
    for objective, value in enumerate(trial.values or ()):
        yield objective, *models.TrialValueModel.value_to_stored_repr(value)


def _put_value(trial: FrozenTrial, objective: int, value: float | None, kind: Any) -> None:
    number = models.TrialValueModel.stored_repr_to_value(value, kind)
    trial.values = [*(trial.values or ()), number]


def _intermediate_values(trial: FrozenTrial) -> Iterator[tuple[Any, ...]]:
    to_stored = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
    for step, value in trial.intermediate_values.items():
        yield step, *to_stored(value)


def _put_intermediate_value(trial: FrozenTrial, step: int, value: float | None, kind: Any) -> None:
    to_value = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
    trial.intermediate_values[step] = to_value(value, kind)


def _user_attributes(trial: FrozenTrial) -> Iterator[tuple[str, str]]:
    return ((key, json.dumps(value)) for key, value in trial.user_attrs.items())


def _put_user_attribute(trial: FrozenTrial, key: str, text: str) -> None:
    trial.user_attrs[key] = json.loads(text)


def _system_attributes(trial: FrozenTrial) -> Iterator[tuple[str, str]]:
    return ((key, json.dumps(value)) for key, value in trial.system_attrs.items())


def _put_system_attribute(trial: FrozenTrial, key: str, text: str) -> None:
    trial.system_attrs[key] = json.loads(text)


_USER_ATTRIBUTES = _Part(
    models.TrialUserAttributeModel.__table__,
    ("key", "value_json"),
    _user_attributes,
    _put_user_attribute,
)
_PARTS = (
    _Part(
        models.TrialParamModel.__table__,
        ("param_name", "param_value", "distribution_json"),
        _params,
        _put_param,
    ),
    _Part(
        models.TrialValueModel.__table__,
        ("objective", "value", "value_type"),
        _values,
        _put_value,
    ),
    _USER_ATTRIBUTES,
    _Part(
        models.TrialSystemAttributeModel.__table__,
        ("key", "value_json"),
        _system_attributes,
        _put_system_attribute,
    ),
    _Part(
        models.TrialIntermediateValueModel.__table__,
        ("step", "intermediate_value", "intermediate_value_type"),
        _intermediate_values,
        _put_intermediate_value,
    ),
)

_distribution_of = functools.lru_cache(maxsize=4096)(json_to_distribution)
# The distribution is held beside its text, which keeps its id its own. (Equality will not do: a
# choice of 0 or 1 equals one of False or True.)
_texts: dict[int, tuple[BaseDistribution, str]] = {}


def _json_of(distribution: BaseDistribution) -> str:
    known = _texts.get(id(distribution))
    if known is None:
        if len(_texts) >= _MOST_TEXTS:
            _texts.clear()
        known = _texts[id(distribution)] = (distribution, distribution_to_json(distribution))
    return known[1]


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK))


def _utc(local: datetime | None) -> datetime | None:
    """A time as Optuna's tables keep it, from the naive local one of a trial."""
    return None if local is None else local.astimezone(UTC).replace(tzinfo=None)


def _local(utc: datetime | None) -> datetime | None:
    return None if utc is None else utc.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
