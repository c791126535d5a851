"""A study's finished trials as MLflow gets them, and the table of all of them."""

from __future__ import annotations

import datetime
import heapq
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

#: User attributes of a trial that are recorded.
ATTRIBUTES = ("tnmse", "baseline", "f_lst", "g_lst", "k_w", "phase")

# MLflow's UI compares runs by the second column, until told otherwise.
_COLUMNS = (
    "number", "tnmse", "loss", "baseline", "improvement", "state", "phase", "k_w", "f_lst",
    "g_lst", "x",
)  # fmt: skip
# The UI shows no file of more than 50 MB; its table has six digits, the Parquet file all.
MOST_ROWS_SHOWN = 50_000
_SHOWN = ".6g"


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """A finished trial as MLflow gets it.

    Attributes:
        number: the trial's number in its study.
        state: ``COMPLETE``, ``PRUNED`` or ``FAIL``.
        tnmse: time-averaged normalised mean-squared error; NaN where the trial has none.
        loss: the trial's value; NaN where it has none.
        baseline: TNMSE of the baseline; NaN where the trial has none.
        k_w: scale from unitless weights to µS; NaN where the trial has none.
        f_lst: significance factors, empty where the trial has none.
        g_lst: conductance curves in µS, empty where the trial has none.
        x: the parameters ``(d,)`` as Optuna stores them (a category by its index).
        x_names: their names.
        phase: what proposed the trial, if not the sampler.
        started_ms: start in milliseconds since the epoch.
        finished_ms: end in milliseconds since the epoch.
    """

    number: int
    state: str
    tnmse: float
    loss: float
    baseline: float
    k_w: float
    f_lst: list[float]
    g_lst: list[list[float]]
    x: list[float]
    x_names: tuple[str, ...]
    phase: str | None
    started_ms: int
    finished_ms: int

    @classmethod
    def from_trial(cls, trial: FrozenTrial) -> TrialRecord:
        """The record of a finished trial, complete or not."""
        attributes = trial.user_attrs
        finished_ms = _milliseconds(trial.datetime_complete)
        return cls(
            number=trial.number,
            state=trial.state.name,
            tnmse=_number(attributes.get("tnmse")),
            loss=_number(trial.values[0] if trial.values else None),
            baseline=_number(attributes.get("baseline")),
            k_w=_number(attributes.get("k_w")),
            f_lst=list(attributes.get("f_lst") or ()),
            g_lst=list(attributes.get("g_lst") or ()),
            x=[trial.distributions[name].to_internal_repr(x) for name, x in trial.params.items()],
            x_names=tuple(trial.params),
            phase=attributes.get("phase"),
            started_ms=_milliseconds(trial.datetime_start) or finished_ms,
            finished_ms=finished_ms,
        )

    @property
    def is_complete(self) -> bool:
        """Whether the trial has a value."""
        return self.state == "COMPLETE"

    @property
    def improvement(self) -> float:
        """How far the TNMSE lies below the baseline's, in percent."""
        if not self.baseline:
            return math.nan
        return 100.0 * (self.baseline - self.tnmse) / self.baseline

    @property
    def rank(self) -> float:
        """The TNMSE to compare trials by: infinite where there is none."""
        return self.tnmse if self.is_complete and not math.isnan(self.tnmse) else math.inf


def best_before(records: Iterable[TrialRecord]) -> Iterator[float]:
    """For each of all trials, numbers ascending, the lowest TNMSE of those before it."""
    best = math.inf
    for record in records:
        yield best
        best = min(best, record.rank)


def best_of(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The trial of lowest TNMSE, the first of equals; None if there is none."""
    best = min(records, key=lambda record: record.rank, default=None)
    return best if best is not None and math.isfinite(best.rank) else None


def write_parquet(records: Sequence[TrialRecord], path: Path) -> None:
    """Writes all trials at full precision; the parameters' names are in the file's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = pa.list_(pa.float64())
    types = {
        "number": pa.int64(), "state": pa.string(), "phase": pa.string(), "f_lst": numbers,
        "g_lst": pa.list_(numbers), "x": numbers,
    }  # fmt: skip
    names = max((record.x_names for record in records), key=len, default=())
    schema = pa.schema(
        [(column, types.get(column, pa.float64())) for column in _COLUMNS],
        metadata={"x_names": json.dumps(names)},
    )
    columns = {
        column: [_or_null(getattr(record, column)) for record in records] for column in _COLUMNS
    }
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")


def write_shown(records: Sequence[TrialRecord], path: Path) -> None:
    """Writes the table for MLflow's UI: JSON in pandas' "split" orientation.

    Of more than 50 000 trials it has those of the lowest TNMSE.
    """
    if len(records) > MOST_ROWS_SHOWN:
        best = heapq.nsmallest(MOST_ROWS_SHOWN, records, key=lambda record: record.rank)
        records = sorted(best, key=lambda record: record.number)
    rows = ",\n".join(
        json.dumps([_shown(getattr(record, column)) for column in _COLUMNS]) for record in records
    )
    path.write_text(f'{{"columns": {json.dumps(_COLUMNS)}, "data": [\n{rows}\n]}}\n')


def _or_null(value: Any) -> Any:
    is_missing = value == [] or (isinstance(value, float) and math.isnan(value))
    return None if is_missing else value


def _shown(value: Any) -> Any:
    """A cell of the UI's table: JSON knows no infinity, and lists are shown as text."""
    value = _or_null(value)
    if value is None:
        return ""
    if isinstance(value, float):
        text = format(value, _SHOWN)
        return float(text) if math.isfinite(value) else text
    return _list_text(value) if isinstance(value, list) else value


def _list_text(values: list[Any]) -> str:
    texts = [_list_text(v) if isinstance(v, list) else format(v, _SHOWN) for v in values]
    return f"[{', '.join(texts)}]"


def _milliseconds(time: datetime.datetime | None) -> int:
    """Milliseconds since the epoch of a local time, as Optuna keeps it; 0 for None."""
    return 0 if time is None else int(time.timestamp() * 1000)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
