"""Conductances of devices as they were measured, read from a table."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wpo_optuna.errors import InvalidArgument, did_you_mean

FloatArray = NDArray[np.float64]

COLUMNS, DEVICE = ("target_us", "t_s", "g_us"), "device"

# What a spread and its interval take, at each target: fewer devices, or fewer times, tell too
# little; so do fewer targets for what depends on them.
LEAST_DEVICES, LEAST_TIMES, LEAST_TARGETS = 10, 3, 3
_MOST_TIMES = 50

# More targets than this are taken together, so many groups of equal size.
_MOST_TARGETS, _GROUPS = 24, 12


@dataclass(frozen=True, eq=False)
class Measurements:
    """Conductances of n devices at T times.

    Attributes:
        target: what each device was programmed to, in µS ``(n,)``.
        t: times after programming in s, ascending ``(T,)``.
        conductance: as read, in µS ``(n, T)``; NaN where a device was not read.
        are_followed: whether it is known which readings are of one device; if not, each reading
            counts as a device of its own.
    """

    target: FloatArray
    t: FloatArray
    conductance: FloatArray
    are_followed: bool

    def groups(self) -> list[NDArray[np.intp]]:
        """Numbers of the devices of each target, or of neighbouring ones; ascending targets."""
        distinct = np.unique(self.target)
        if len(distinct) > _MOST_TARGETS:
            return np.array_split(np.argsort(self.target, kind="stable"), _GROUPS)
        return [np.flatnonzero(self.target == target) for target in distinct]


def read_measurements(path: str | Path) -> Measurements:
    """Reads a CSV file of one reading a line.

    Args:
        path: the file. Its columns are ``target_us`` (what the device was programmed to, µS),
            ``t_s`` (when it was read, s after programming), ``g_us`` (what was read, µS) and, if
            it is known which device that was, ``device``.

    Raises:
        InvalidArgument: the file cannot be read, lacks a column, holds an impossible value, or
            holds too little to fit a model to.
    """
    rows = list(_rows(Path(path)))
    values = np.array([row[:3] for row in rows], np.float64).reshape(-1, 3)
    t, of_time = np.unique([float(f"{time:.3g}") for time in values[:, 1]], return_inverse=True)
    if len(t) > _MOST_TIMES:
        raise InvalidArgument(
            f"measurements {str(path)!r} has {len(t)} times that differ in three digits: at most "
            f"{_MOST_TIMES} are taken; round t_s to the times that were meant."
        )
    are_followed = any(row[3] for row in rows)
    numbers: dict[str, int] = {}
    of_device = np.array(
        [
            numbers.setdefault(row[3] or f"line {line}", len(numbers))
            for line, row in enumerate(rows)
        ]
    )
    conductance = np.full((len(numbers), len(t)), np.nan)
    target = np.full(len(numbers), np.nan)
    for (wanted, time, g), device, column, row in zip(
        values, of_device, of_time, rows, strict=True
    ):
        if target[device] not in (wanted,) and not math.isnan(target[device]):
            raise InvalidArgument(
                f"measurements {str(path)!r}: device {row[3]!r} has the targets "
                f"{target[device]:g} and {wanted:g} µS; one is needed, or device ids that tell "
                "its programmings apart."
            )
        if not math.isnan(conductance[device, column]):
            raise InvalidArgument(
                f"measurements {str(path)!r}: device {row[3]!r} was read twice at {time:g} s; "
                "one reading is needed, or device ids that tell its programmings apart."
            )
        target[device], conductance[device, column] = wanted, g
    measurements = Measurements(target, t, conductance, are_followed)
    _check_amount(measurements, path)
    return measurements


def _rows(path: Path) -> Iterator[tuple[float, float, float, str]]:
    """Target, time, conductance and device of each line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or ()
            for name in COLUMNS:
                if name not in names:
                    raise InvalidArgument(
                        f"measurements {str(path)!r} has no column {name!r}"
                        f"{did_you_mean(name, names)}: {', '.join(COLUMNS)} and, if known, "
                        f"{DEVICE} are needed in its first line."
                    )
            for row in reader:
                place = f"measurements {str(path)!r}, line {reader.line_num}"
                target, t, g = (_number(row[name], name, place) for name in COLUMNS)
                yield target, t, g, (row.get(DEVICE) or "").strip()
    except OSError as error:
        raise InvalidArgument(
            f"measurements {str(path)!r} cannot be read: {error.strerror}."
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidArgument(
            f"measurements {str(path)!r} is no table of text in CSV: {error}."
        ) from error


def _number(text: str | None, name: str, place: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InvalidArgument(f"{place}: {name} = {text!r}; a number of at least 0 is needed.")
    return value


def _check_amount(measurements: Measurements, path: str | Path) -> None:
    def too_little(what: str) -> InvalidArgument:
        return InvalidArgument(f"measurements {str(path)!r}: {what}.")

    n_targets = len(np.unique(measurements.target))
    if n_targets < LEAST_TARGETS:
        raise too_little(
            f"there are {n_targets} different targets; at least {LEAST_TARGETS} are needed, from "
            "the lowest to the highest conductance in use"
        )
    n_times = LEAST_TIMES if measurements.are_followed else LEAST_TIMES + 1
    was_read = np.isfinite(measurements.conductance)
    for group in measurements.groups():
        target = measurements.target[group].mean()
        if measurements.are_followed:
            found = int((was_read[group].sum(axis=1) >= n_times).sum())
            needed = f"{LEAST_DEVICES} that were read at {n_times} times or more"
        else:
            counts = np.sort(was_read[group].sum(axis=0))[::-1]
            found = int(counts[n_times - 1]) if len(counts) >= n_times else 0
            needed = (
                f"{LEAST_DEVICES} at each of {n_times} times, as no column {DEVICE!r} says which "
                "readings are of one device"
            )
        if found < LEAST_DEVICES:
            raise too_little(f"{found} devices near {target:g} µS are enough for no fit: {needed}")
