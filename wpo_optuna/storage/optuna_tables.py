"""Reading and writing Optuna's own tables in bulk, with SQLAlchemy Core.

A trial takes some 27 rows in five tables. ``RDBStorage`` writes them one statement after the other
and reads them as objects; here a batch is one statement for each table.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import compress, groupby
from operator import itemgetter
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution

# The one private module of Optuna used here: its tables, which no public call fills in bulk.
# Without it FinishedTrials goes through Study.add_trials, at fifty times the cost.
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from sqlalchemy import Connection, Engine, Row, Table, func, insert, select
from sqlalchemy.exc import SQLAlchemyError

from wpo_optuna.errors import first_line
from wpo_optuna.storage.optuna_calls import Choice, Outcome
from wpo_optuna.storage.reconnecting import StorageError
from wpo_optuna.storage.urls import begin_writing, masked_url

STUDIES: Table = models.StudyModel.__table__
TRIALS: Table = models.TrialModel.__table__

# Trials whose rows are read by one statement.
_CHUNK = 1000
_MOST_TEXTS = 4096
_COMPACT = (",", ":")
_ABBREVIATED = {
    "FloatDistribution": "float",
    "IntDistribution": "int",
    "CategoricalDistribution": "categorical",
}


class StoredTrial(FrozenTrial):
    """A trial as it is stored.

    Trials of equal distributions share one dictionary of them. Copies have their own dictionaries
    of all else, and share what is in them.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> StoredTrial:
        twin = StoredTrial.__new__(StoredTrial)
        vars(twin).update(vars(self))
        twin.params = dict(self.params)
        twin.user_attrs = dict(self.user_attrs)
        twin.system_attrs = dict(self.system_attrs)
        twin.intermediate_values = dict(self.intermediate_values)
        return twin


@dataclass(frozen=True)
class _Part:
    """A part of a trial that has a table of its own.

    Attributes:
        table: where it is.
        columns: those with its contents, after the trial's key; the first one is unique.
        rows: the contents that a trial has there.
        put: gives a trial the contents of one row; None for parameters.
    """

    table: Table
    columns: tuple[str, ...]
    rows: Callable[[FrozenTrial], Iterable[tuple[Any, ...]]]
    put: Callable[..., None] | None = None


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
        # How far the study has been read: the key of its last trial, how many there are, and the
        # keys of those not finished. Keys grow with the time of storing: who creates a trial has
        # the study's row, or the whole file, locked.
        self._last_id, self._n_trials = -1, 0
        self._open_ids: set[int] = set()
        self._connection: Connection | None = None
        with self._connected() as connection:
            query = select(STUDIES.c.study_id).where(STUDIES.c.study_name == study_name)
            self._study_id: int = connection.execute(query).scalar_one()

    def read_new(self, at_most: int | None = None) -> list[FrozenTrial]:
        """The trials finished since the last call, by number.

        Args:
            at_most: how many; none are returned if there are no more.
        """
        query = select(TRIALS).where(TRIALS.c.study_id == self._study_id)
        newer = query.where(TRIALS.c.trial_id > self._last_id).order_by(TRIALS.c.trial_id)
        with self._connected() as connection:
            new = connection.execute(newer.limit(at_most)).all()
            rows = [*new]
            for chunk in _chunks(sorted(self._open_ids)):
                rows += connection.execute(query.where(TRIALS.c.trial_id.in_(chunk)))
            trials = {row.trial_id: _trial(row) for row in rows if row.state.is_finished()}
            late = sorted(self._open_ids & trials.keys())
            for run in [*_chunks([row.trial_id for row in new]), *([key] for key in late)]:
                self._fill(connection, trials, run[0], run[-1])
        self._last_id = max((row.trial_id for row in new), default=self._last_id)
        self._n_trials += len(new)
        self._open_ids = {row.trial_id for row in rows} - trials.keys()
        if not trials and len(new) == at_most:
            return self.read_new(at_most)
        return sorted(trials.values(), key=lambda trial: trial.number)

    def _fill(
        self, connection: Connection, trials: dict[int, StoredTrial], first: int, last: int
    ) -> None:
        """Reads what does not stand in the table of trials, of those with keys in a range."""
        for part in _PARTS:
            table, (key,) = part.table, part.table.primary_key
            in_range = table.c.trial_id.between(first, last)
            # SQLite keeps rows by this key, and is three times as fast where it need not jump.
            ends = connection.execute(select(func.min(key), func.max(key)).where(in_range)).one()
            query = select(table.c.trial_id, *(table.c[name] for name in part.columns))
            query = query.where(key.between(*ends), in_range).order_by(key)
            if part is _USER_ATTRIBUTES and self._attributes is not None:
                query = query.where(table.c.key.in_(self._attributes))
            result = connection.execute(query)
            if part.put is None:
                _fill_params(trials, result.cursor.fetchall())
                continue
            for trial_id, *contents in result:
                if trial_id in trials:
                    part.put(trials[trial_id], *contents)

    def append(self, trials: Sequence[FrozenTrial], choose: Choice) -> Outcome:
        """Stores those of some finished trials that are chosen, after all others.

        Raises:
            StorageError: the transaction failed, and nothing was written.
        """
        with self._alone():
            others = self.read_new()
            kept = choose(trials, others)
            return self._write(list(compress(trials, kept))), others, kept

    def _write(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Stores finished trials after all others, which have just been read."""
        if not trials:
            return []
        new_rows = [
            {
                "number": number,
                "study_id": self._study_id,
                "state": trial.state,
                "datetime_start": _utc(trial.datetime_start),
                "datetime_complete": _utc(trial.datetime_complete),
            }
            for number, trial in enumerate(trials, self._n_trials)
        ]
        query = select(TRIALS).where(
            TRIALS.c.study_id == self._study_id, TRIALS.c.trial_id > self._last_id
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
        self._last_id = max(row.trial_id for row in rows)
        self._n_trials += len(rows)
        return [_trial(row, trial) for row, trial in zip(rows, trials, strict=True)]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Reads and writes in one transaction that keeps other writers away."""
        before = self._last_id, self._n_trials, self._open_ids
        try:
            with self._connected() as self._connection:
                if self._engine.dialect.name == "sqlite":
                    begin_writing(self._connection)
                else:
                    # As Optuna does when it creates a trial.
                    query = select(STUDIES).where(STUDIES.c.study_id == self._study_id)
                    self._connection.execute(query.with_for_update()).one()
                yield
                self._connection.commit()
        except BaseException:
            self._last_id, self._n_trials, self._open_ids = before
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
            reason = first_line(getattr(error, "orig", None) or error)
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


def _params(trial: FrozenTrial) -> Iterable[tuple[Any, ...]]:
    for name, value in trial.params.items():
        distribution = trial.distributions[name]
        yield name, distribution.to_internal_repr(value), _json_of(distribution)


def _values(trial: FrozenTrial) -> Iterable[tuple[Any, ...]]:
    for objective, value in enumerate(trial.values or ()):
        yield objective, *_Value.value_to_stored_repr(value)


def _put_value(trial: StoredTrial, objective: int, value: float | None, kind: Any) -> None:
    trial.values = [*(trial.values or ()), _Value.stored_repr_to_value(value, kind)]


def _steps(trial: FrozenTrial) -> Iterable[tuple[Any, ...]]:
    for step, value in trial.intermediate_values.items():
        yield step, *_Step.intermediate_value_to_stored_repr(value)


def _put_step(trial: StoredTrial, step: int, value: float | None, kind: Any) -> None:
    trial.intermediate_values[step] = _Step.stored_repr_to_intermediate_value(value, kind)


def _attributes(name: str, model: Any) -> _Part:
    """The part with a trial's ``user_attrs`` or ``system_attrs``."""

    def rows(trial: FrozenTrial) -> Iterable[tuple[str, str]]:
        contents = getattr(trial, name).items()
        return ((key, json.dumps(value, separators=_COMPACT)) for key, value in contents)

    def put(trial: StoredTrial, key: str, text: str) -> None:
        getattr(trial, name)[sys.intern(key)] = _decode(text)

    return _Part(model.__table__, ("key", "value_json"), rows, put)


def _shared(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary of JSON, whose words other trials have as well."""
    return {sys.intern(key): sys.intern(v) if isinstance(v, str) else v for key, v in pairs}


_decode = json.JSONDecoder(object_pairs_hook=_shared).decode


def _fill_params(
    trials: dict[int, StoredTrial], rows: Iterable[tuple[int, str, float, str]]
) -> None:
    """Gives trials their parameters, which are nearly all rows."""
    key_of = itemgetter(0)
    for key, own in groupby(sorted(rows, key=key_of), key_of):
        if key not in trials:
            continue
        _, names, values, texts = zip(*own, strict=True)
        trial, distributions = trials[key], _distributions_of(names, texts)
        trial.distributions = distributions
        trial.params = {
            name: distribution.to_external_repr(value)
            for (name, distribution), value in zip(distributions.items(), values, strict=True)
        }


@functools.lru_cache(maxsize=_MOST_TEXTS)
def _distributions_of(
    names: tuple[str, ...], texts: tuple[str, ...]
) -> dict[str, BaseDistribution]:
    return dict(zip(names, map(json_to_distribution, texts), strict=True))


_Value, _Step = models.TrialValueModel, models.TrialIntermediateValueModel
_STEP_COLUMNS = ("step", "intermediate_value", "intermediate_value_type")
_PARAM_COLUMNS = ("param_name", "param_value", "distribution_json")
_USER_ATTRIBUTES = _attributes("user_attrs", models.TrialUserAttributeModel)
_PARTS = (
    _Part(models.TrialParamModel.__table__, _PARAM_COLUMNS, _params),
    _Part(_Value.__table__, ("objective", "value", "value_type"), _values, _put_value),
    _USER_ATTRIBUTES,
    _attributes("system_attrs", models.TrialSystemAttributeModel),
    _Part(_Step.__table__, _STEP_COLUMNS, _steps, _put_step),
)

# The distribution is held beside its text, which keeps its id its own. (Equality will not do: a
# choice of 0 or 1 equals one of False or True.)
_texts: dict[int, tuple[BaseDistribution, str]] = {}


def _json_of(distribution: BaseDistribution) -> str:
    known = _texts.get(id(distribution))
    if known is None:
        if len(_texts) >= _MOST_TEXTS:
            _texts.clear()
        known = _texts[id(distribution)] = (distribution, _short_json(distribution))
    return known[1]


def _short_json(distribution: BaseDistribution) -> str:
    """The abbreviated text that Optuna reads a distribution from.

    Each parameter of each trial has it, which makes it a good part of what a study takes.
    """
    text = distribution_to_json(distribution)
    told = json.loads(text)
    kind = _ABBREVIATED.get(told["name"])
    if kind is None:
        return text
    told = {name: v for name, v in told["attributes"].items() if v is not None and v is not False}
    return json.dumps({"type": kind} | told, separators=_COMPACT)


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK))


def _utc(local: datetime | None) -> datetime | None:
    """A time as Optuna's tables keep it, from the naive local one of a trial."""
    return None if local is None else local.astimezone(UTC).replace(tzinfo=None)


def _local(utc: datetime | None) -> datetime | None:
    return None if utc is None else datetime.fromtimestamp(utc.replace(tzinfo=UTC).timestamp())
