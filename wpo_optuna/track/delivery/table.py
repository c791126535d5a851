"""The table of all trials: kept on disk while it grows, written as Parquet and for MLflow's UI."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from wpo_optuna.track.delivery.messages import TrialRecord

if TYPE_CHECKING:
    import pyarrow

# MLflow's UI compares runs by the second column, until told otherwise.
COLUMNS = (
    "number", "tnmse", "loss", "baseline", "improvement", "state", "phase", "k_w", "f_lst",
    "g_lst", "x",
)  # fmt: skip

# Rows gathered before they go to disk, and rows of the written table in memory at a time.
_ROWS_IN_MEMORY = 2000
# The UI's table has six digits, the Parquet file all. The UI shows no file of more than 50 MB, so
# that a table of some 60 000 trials or more is shown in parts.
_SHOWN = ".6g"
_MOST_CHARACTERS_SHOWN = 40_000_000


def schema() -> pyarrow.Schema:
    """Columns and types of the table."""
    import pyarrow as pa

    numbers = pa.list_(pa.float64())
    return pa.schema(
        [
            ("number", pa.int64()),
            ("tnmse", pa.float64()),
            ("loss", pa.float64()),
            ("baseline", pa.float64()),
            ("improvement", pa.float64()),
            ("state", pa.string()),
            ("phase", pa.string()),
            ("k_w", pa.float64()),
            ("f_lst", numbers),
            ("g_lst", pa.list_(numbers)),
            ("x", numbers),
        ]
    )


class TrialTable:
    """Rows of trials in any order, on disk: of each, only its number stays in memory.

    Attributes:
        numbers: the trials it has.
        best: the complete trial of lowest TNMSE, the first of equals.
        last_finished_ms: end of the last trial, in milliseconds since the epoch.
    """

    def __init__(self) -> None:
        self.numbers: set[int] = set()
        self.best: TrialRecord | None = None
        self.last_finished_ms = 0
        self._rows: list[TrialRecord] = []
        self._x_names: tuple[str, ...] = ()
        self._directory = tempfile.TemporaryDirectory(prefix="wpo_trials_")
        self._spool = Path(self._directory.name, "rows.arrow")
        self._writer: Any = None
        self._sink: Any = None

    def add(self, records: Sequence[TrialRecord]) -> None:
        """Adds trials; those it has already are left as they are."""
        for record in records:
            if record.number in self.numbers:
                continue
            self.numbers.add(record.number)
            self._rows.append(record)
            self.last_finished_ms = max(self.last_finished_ms, record.finished_ms)
            if len(record.x_names) > len(self._x_names):
                self._x_names = record.x_names
            if record.is_complete and _comes_before(record, self.best):
                self.best = record
        if len(self._rows) >= _ROWS_IN_MEMORY:
            self._spill()

    def close(self) -> None:
        """Removes what it keeps on disk."""
        self._directory.cleanup()

    def write(self, parquet: Path, shown: Path) -> list[Path]:
        """Writes the table, sorted by number.

        Args:
            parquet: file for everything, at full precision.
            shown: file for MLflow's UI: JSON in pandas' "split" orientation. What is too much for
                one file goes on in ``NAME_2.json`` and so forth.

        Returns:
            the files for the UI.
        """
        import pyarrow.parquet as pq

        about = schema().with_metadata({"x_names": json.dumps(self._x_names)})
        with (
            pq.ParquetWriter(parquet, about, compression="zstd") as writer,
            _ShownTable(shown) as shown_table,
        ):
            for piece in self._in_order():
                writer.write_table(piece.cast(about))
                for row in piece.to_pylist():
                    shown_table.write(json.dumps([_shown(row[column]) for column in COLUMNS]))
        return shown_table.files

    def _spill(self) -> None:
        import pyarrow as pa

        if self._writer is None:
            self._sink = pa.OSFile(str(self._spool), "wb")
            self._writer = pa.ipc.new_stream(self._sink, schema())
        self._writer.write_batch(_batch(self._rows))
        self._rows = []

    def _in_order(self) -> Iterator[pyarrow.Table]:
        """The rows sorted by number, in pieces."""
        import pyarrow as pa

        batches = self._batches()
        numbers = [batch.column("number").to_numpy() for batch in batches]
        order = np.argsort(np.concatenate([*numbers, np.empty(0, np.int64)]))
        ends = np.cumsum([len(part) for part in numbers])
        for start in range(0, len(order), _ROWS_IN_MEMORY):
            wanted = np.sort(order[start : start + _ROWS_IN_MEMORY])
            source = np.searchsorted(ends, wanted, side="right")
            parts = []
            for index in np.unique(source):
                first = ends[index] - len(numbers[index])
                parts.append(batches[index].take(pa.array(wanted[source == index] - first)))
            yield pa.Table.from_batches(parts, schema=schema()).combine_chunks().sort_by("number")

    def _batches(self) -> list[pyarrow.RecordBatch]:
        """All rows as they came; those on disk are mapped, not read."""
        import pyarrow as pa

        batches = []
        if self._writer is not None:
            # The stream is read without its end mark, so that it can grow further.
            self._sink.flush()
            with pa.memory_map(str(self._spool)) as source, pa.ipc.open_stream(source) as reader:
                batches = list(reader)
        return [*batches, _batch(self._rows)] if self._rows else batches


class _ShownTable:
    """Files for MLflow's UI, at least one, written row by row."""

    def __init__(self, first: Path) -> None:
        self.files: list[Path] = []
        self._first = first
        self._file: IO[str] | None = None
        self._n_characters = 0

    def __enter__(self) -> _ShownTable:
        self._begin()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def write(self, row: str) -> None:
        """Appends a row, in another file if this one becomes too large."""
        if self._n_characters and self._n_characters + len(row) > _MOST_CHARACTERS_SHOWN:
            self._end()
            self._begin()
        assert self._file is not None
        self._file.write((",\n" if self._n_characters else "") + row)
        self._n_characters += len(row) + 2

    def _begin(self) -> None:
        number = len(self.files) + 1
        path = self._first
        if number > 1:
            path = path.with_stem(f"{path.stem}_{number}")
        self.files.append(path)
        self._n_characters = 0
        self._file = path.open("w", encoding="utf-8")
        self._file.write(json.dumps({"columns": list(COLUMNS)})[:-1] + ', "data": [\n')

    def _end(self) -> None:
        if self._file is not None:
            self._file.write("\n]}\n")
            self._file.close()


def _comes_before(record: TrialRecord, best: TrialRecord | None) -> bool:
    if math.isnan(record.tnmse):
        return False
    return best is None or (record.tnmse, record.number) < (best.tnmse, best.number)


def _batch(records: Sequence[TrialRecord]) -> pyarrow.RecordBatch:
    import pyarrow as pa

    rows = {
        "number": [record.number for record in records],
        "tnmse": [_or_null(record.tnmse) for record in records],
        "loss": [_or_null(record.loss) for record in records],
        "baseline": [_or_null(record.baseline) for record in records],
        "improvement": [_or_null(record.improvement) for record in records],
        "state": [record.state for record in records],
        "phase": [record.phase for record in records],
        "k_w": [_or_null(record.k_w) for record in records],
        "f_lst": [record.f_lst or None for record in records],
        "g_lst": [record.g_lst or None for record in records],
        "x": [record.x for record in records],
    }
    return pa.RecordBatch.from_pydict(rows, schema=schema())


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _shown(value: Any) -> Any:
    """A cell of the UI's table: JSON knows no infinity, and lists are shown as text."""
    if value is None:
        return ""
    if isinstance(value, float):
        text = format(value, _SHOWN)
        return float(text) if math.isfinite(value) else text
    if isinstance(value, list):
        return _list_text(value)
    return value


def _list_text(values: list[Any]) -> str:
    if values and isinstance(values[0], list):
        return "[" + ", ".join(_list_text(curve) for curve in values) + "]"
    return "[" + ", ".join([format(value, _SHOWN) for value in values]) + "]"
