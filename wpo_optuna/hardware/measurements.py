"""Conductances of devices as they were measured, read from a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wpo_optuna.errors import InvalidArgument, did_you_mean, first_line

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
    place = f"measurements {str(path)!r}"
    readings, are_followed = _readings(Path(path), place)
    by_device = readings.groupby(DEVICE)["target_us"]
    for is_wrong, what in (
        (by_device.transform("nunique") > 1, "has several targets"),
        (readings.duplicated([DEVICE, "t_s"]), "was read twice at one time"),
    ):
        if is_wrong.any():
            raise InvalidArgument(
                f"{place}: device {readings[DEVICE][is_wrong.idxmax()]!r} {what}; one is needed, "
                "or device ids that tell its programmings apart."
            )
    conductance = readings.pivot(index=DEVICE, columns="t_s", values="g_us")
    measurements = Measurements(
        target=by_device.first().to_numpy(),
        t=conductance.columns.to_numpy(),
        conductance=conductance.to_numpy(),
        are_followed=are_followed,
    )
    _check_amount(measurements, place)
    return measurements


def _readings(path: Path, place: str) -> tuple[pd.DataFrame, bool]:
    """The table's numbers, each line with its device or a name of its own; whether any has one."""
    try:
        text = pd.read_csv(
            path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig"
        )
    except OSError as error:
        raise InvalidArgument(f"{place} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InvalidArgument(
            f"{place} is no table of text in CSV: {first_line(error)}."
        ) from error
    for name in COLUMNS:
        if name not in text:
            raise InvalidArgument(
                f"{place} has no column {name!r}{did_you_mean(name, text.columns)}: "
                f"{', '.join(COLUMNS)} and, if known, {DEVICE} are needed in its first line."
            )
    readings = text[[*COLUMNS]].apply(pd.to_numeric, errors="coerce")
    for name in COLUMNS:
        is_wrong = ~readings[name].between(0, np.inf, inclusive="left")
        if is_wrong.any():
            row = is_wrong.idxmax()
            raise InvalidArgument(
                f"{place}, line {row + 2}: {name} = {text[name][row]!r}; a number of at least 0 "
                "is needed."
            )
    readings["t_s"] = readings["t_s"].map(lambda t: float(f"{t:.3g}"))
    n_times = readings["t_s"].nunique()
    if n_times > _MOST_TIMES:
        raise InvalidArgument(
            f"{place} has {n_times} times that differ in three digits: at most {_MOST_TIMES} are "
            "taken; round t_s to the times that were meant."
        )
    named = text[DEVICE].str.strip() if DEVICE in text else pd.Series("", text.index)
    readings[DEVICE] = named.where(named != "", "line " + text.index.astype(str))
    return readings, bool((named != "").any())


def _check_amount(measurements: Measurements, place: str) -> None:
    n_targets = len(np.unique(measurements.target))
    if n_targets < LEAST_TARGETS:
        raise InvalidArgument(
            f"{place}: there are {n_targets} different targets; at least {LEAST_TARGETS} are "
            "needed, from the lowest to the highest conductance in use."
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
            raise InvalidArgument(
                f"{place}: {found} devices near {target:g} µS are enough for no fit: {needed}."
            )
