"""A study's finished trials: the numbers MLflow gets of them, and the table of all of them."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from wpo_optuna.study.attributes import CONDUCTANCE

#: User attributes of a trial that are recorded.
ATTRIBUTES = ("tnmse", "baseline", "f_lst", "g_lst", "k_w", "phase", CONDUCTANCE)

# MLflow's UI compares runs by the second column, until told otherwise.
_COLUMNS = (
    "number", "tnmse", "loss", "baseline", "improvement_percent_engine", "state", "phase", "k_w",
    "f_lst", "g_lst", "x",
)  # fmt: skip
# The UI shows no file of more than 50 MB; its table has six digits, the Parquet file all.
MOST_ROWS_SHOWN = 50_000
_SHOWN = ".6g"


def is_complete(trial: FrozenTrial) -> bool:
    """Whether the trial has a value."""
    return trial.state == TrialState.COMPLETE


def numbers_of(trial: FrozenTrial) -> dict[str, float]:
    """TNMSE, loss, the baseline's TNMSE, and by how many percent the first is below the last.

    The mean conductance where the trial knows it, and another second objective where there is one.

    All are the engine's; NaN where the trial has none.
    """
    tnmse = _number(trial.user_attrs.get("tnmse"))
    baseline = _number(trial.user_attrs.get("baseline"))
    further = {}
    if CONDUCTANCE in trial.user_attrs:
        further[CONDUCTANCE] = _number(trial.user_attrs[CONDUCTANCE])
    if len(trial.values or ()) == 2 and trial.values[1] not in further.values():
        further["second_objective"] = _number(trial.values[1])
    return further | {
        "tnmse": tnmse,
        "loss": _number(trial.values[0] if trial.values else None),
        "baseline": baseline,
        "improvement_percent_engine": (
            100.0 * (baseline - tnmse) / baseline if baseline else math.nan
        ),
    }


def numbers_of_strategy(
    f_lst: Sequence[float], g_lst: Sequence[Sequence[float]]
) -> dict[str, float]:
    """A strategy in single numbers, as charts that compare runs need them.

    The factors are ``f_1``, ``f_2``, ...; ``g_1_plus_at_0.6`` is the conductance g+ of the first
    pair in µS, where the weight is 0.6 of the largest: at weight zero, about half the largest, and
    the largest.

    Args:
        f_lst: factor of each of the P pairs.
        g_lst: 2P curves in µS, see :class:`~wpo_optuna.strategy.ProgrammingStrategy`.
    """
    numbers = {f"f_{pair}": float(f) for pair, f in enumerate(f_lst, start=1)}
    for index, curve in enumerate(g_lst):
        device = f"g_{index // 2 + 1}_{'minus' if index % 2 else 'plus'}"
        last = len(curve) - 1
        for knot in (last // 2, 3 * last // 4, last):
            numbers[f"{device}_at_{2 * knot / last - 1:.3g}"] = round(curve[knot], 3)
    return numbers


def rank(trial: FrozenTrial) -> float:
    """The TNMSE to compare trials by: infinite where there is none."""
    tnmse = _number(trial.user_attrs.get("tnmse")) if is_complete(trial) else math.nan
    return math.inf if math.isnan(tnmse) else tnmse


def milliseconds(time: datetime.datetime | None) -> int:
    """Milliseconds since the epoch of a local time, as Optuna keeps it; 0 for None."""
    return 0 if time is None else int(time.timestamp() * 1000)


def write_parquet(trials: Sequence[FrozenTrial], path: Path) -> None:
    """Writes all trials at full precision; the parameters' names are in the file's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = pa.list_(pa.float64())
    types = {
        "number": pa.int64(), "state": pa.string(), "phase": pa.string(), "f_lst": numbers,
        "g_lst": pa.list_(numbers), "x": numbers,
    }  # fmt: skip
    names = max((tuple(trial.params) for trial in trials), key=len, default=())
    schema = pa.schema(
        [(column, types.get(column, pa.float64())) for column in _COLUMNS],
        metadata={"x_names": json.dumps(names)},
    )
    table = pa.Table.from_pylist([_row(trial) for trial in trials], schema)
    pq.write_table(table, path, compression="zstd")


def write_shown(trials: Sequence[FrozenTrial], path: Path) -> None:
    """Writes the table for MLflow's UI: JSON in pandas' "split" orientation.

    Of more than 50 000 trials it has those of the lowest TNMSE.
    """
    if len(trials) > MOST_ROWS_SHOWN:
        best = sorted(trials, key=rank)[:MOST_ROWS_SHOWN]
        trials = sorted(best, key=lambda trial: trial.number)
    rows = ",\n".join(
        json.dumps([_shown(value) for value in _row(trial).values()]) for trial in trials
    )
    path.write_text(f'{{"columns": {json.dumps(_COLUMNS)}, "data": [\n{rows}\n]}}\n')


def _row(trial: FrozenTrial) -> dict[str, Any]:
    """The cells by column; None where the trial has none. A category is given by its index."""
    values: dict[str, Any] = {
        "number": trial.number,
        "state": trial.state.name,
        **{name: trial.user_attrs.get(name) for name in ("phase", "k_w", "f_lst", "g_lst")},
        **numbers_of(trial),
        "x": [trial.distributions[name].to_internal_repr(x) for name, x in trial.params.items()],
    }
    return {column: None if _is_missing(values[column]) else values[column] for column in _COLUMNS}


def _is_missing(value: Any) -> bool:
    return value == [] or (isinstance(value, float) and math.isnan(value))


def _shown(value: Any) -> Any:
    """A cell of the UI's table: JSON knows no infinity, and lists are shown as text."""
    if isinstance(value, list):
        return f"[{', '.join(str(_shown(item)) for item in value)}]"
    if isinstance(value, float):
        text = format(value, _SHOWN)
        return float(text) if math.isfinite(value) else text
    return "" if value is None else value


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
