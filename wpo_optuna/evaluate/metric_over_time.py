"""A metric over time, as it was measured: as a text, as tables, as a figure, as a run in MLflow."""

from __future__ import annotations

import csv
import math
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wpo_optuna.hardware import format_duration
from wpo_optuna.report import drawing
from wpo_optuna.study.environment import versions
from wpo_optuna.track import store
from wpo_optuna.track.destination import Destination
from wpo_optuna.track.follower import TrackingWarning
from wpo_optuna.track.study_run import tags_of_origin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The baseline's and the optimised strategy's as in reports, then others.
_LOOKS = tuple(drawing.LOOKS[index] for index in (5, 0, 2, 3))

# A difference of more standard errors than this is one; of fewer repeats the error is a guess.
_CERTAIN, _ENOUGH_REPEATS = 2.0, 10


@dataclass(frozen=True, eq=False)
class MetricOverTime:
    """A metric over time, for several ways to program the same weights.

    Attributes:
        metric: name of the metric.
        t_steps: times after programming in s ``(times,)``.
        ideal: the metric of the digital network; None where there is no digital one.
        curves: the metric ``(repeats, times)`` for each way to program, by its name; the others are
            compared with the first.
        higher_is_better: whether more of the metric is better; None where nobody knows.
        engine: what computed the analogue forward passes, in words.
    """

    metric: str
    t_steps: tuple[float, ...]
    ideal: float | None
    curves: Mapping[str, NDArray[np.float64]]
    higher_is_better: bool | None = None
    engine: str = ""

    @property
    def repeats(self) -> int:
        """How often each way to program was repeated."""
        return len(next(iter(self.curves.values())))

    def mean(self, name: str) -> NDArray[np.float64]:
        """Mean of a curve over the repeats ``(times,)``."""
        return self.curves[name].mean(axis=0)

    def spread(self, name: str) -> NDArray[np.float64]:
        """Standard deviation of a curve over the repeats ``(times,)``; NaN for a single one."""
        return _deviation(self.curves[name])

    def difference(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean difference of a curve from the first ``(times,)``, and its standard error.

        Each repeat is compared with the same repeat of the first curve, which has the same seeds.
        """
        differences = self.curves[name] - next(iter(self.curves.values()))
        return differences.mean(axis=0), _deviation(differences) / math.sqrt(self.repeats)

    def verdict(self) -> str:
        """A sentence for each curve but the first: whether it is better at the last time."""
        return "\n".join(self._verdict_on(name) for name in list(self.curves)[1:])

    def _verdict_on(self, name: str) -> str:
        mean, error = (float(values[-1]) for values in self.difference(name))
        is_higher, is_certain = mean > 0, abs(mean) > _CERTAIN * error  # or NaN of a single repeat
        found = "not distinguishable from"
        if is_certain:
            found = "higher than" if is_higher else "lower than"
            if self.higher_is_better is not None:
                found = "better than" if is_higher == self.higher_is_better else "worse than"
        by, its_error = _rounded(mean, error, sign="+")
        repeats = f"standard error {its_error}, in {self.repeats} repeats paired by seed"
        if self.repeats == 1:
            repeats = "in a single repeat, which has no standard error"
        elif self.repeats < _ENOUGH_REPEATS:
            repeats += f"; with fewer than {_ENOUGH_REPEATS} the error itself is uncertain"
        elif not is_certain and error > 0:
            repeats += "; more repeats show smaller differences"
        return (
            f"After {format_duration(self.t_steps[-1])}, {name} is {found} "
            f"{next(iter(self.curves))}: {self.metric} differs by {by}, {repeats}."
        )

    def table(self) -> str:
        """The means and standard deviations, and the verdict, for people to read."""
        rows = [["", *self.curves]]
        for step, t in enumerate(self.t_steps):
            pairs = [
                _rounded(self.mean(name)[step], self.spread(name)[step]) for name in self.curves
            ]
            cells = [" ± ".join(pair[: min(2, self.repeats)]) for pair in pairs]
            rows.append([format_duration(t), *cells])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        of_what = f"mean ± standard deviation of {self.repeats} programmings"
        if self.repeats == 1:
            of_what = "one programming"
        ideal = "" if self.ideal is None else f"; of the digital network {self.ideal:.4g}"
        heading = f"{self.metric} after programming, {of_what}{ideal}:"
        return "\n".join([heading, "", *lines, "", self.verdict()])

    def save(self, directory: Path) -> list[Path]:
        """Writes ``measurements.csv``, ``summary.csv``, and ``over_time`` as PNG and SVG.

        The first has one line for each repeat and time, the second the mean, the standard deviation
        and the extremes over the repeats, and the mean difference from the first curve with its
        standard error.

        Returns:
            the paths of the files.
        """
        measurements: list[Sequence[Any]] = [["programming", "repeat", "t_s", self.metric]]
        if self.ideal is not None:
            measurements.append(["ideal", "", "", self.ideal])
        header = ["programming", "t_s", "time", "mean", "standard_deviation", "lowest", "highest"]
        header += ["difference", "standard_error_of_difference"]
        summary: list[Sequence[Any]] = [[*header, "repeats"]]
        for name, values in self.curves.items():
            for (repeat, step), value in np.ndenumerate(values):
                measurements.append([name, repeat, self.t_steps[step], float(value)])
            columns = (
                self.mean(name), self.spread(name), values.min(axis=0), values.max(axis=0),
                *self.difference(name),
            )  # fmt: skip
            for t, *numbers in zip(self.t_steps, *(c.tolist() for c in columns), strict=True):
                summary.append([name, t, format_duration(t), *numbers, self.repeats])
        directory.mkdir(parents=True, exist_ok=True)
        paths = [directory / "measurements.csv", directory / "summary.csv"]
        for path, rows in zip(paths, (measurements, summary), strict=True):
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows)
        drawing.save(MetricOverTime.figure, self, directory / "over_time")
        return [*paths, directory / "over_time.png", directory / "over_time.svg"]

    def figure(self) -> Figure:
        """The means and spreads over a logarithmic axis of time."""
        figure, (axes,) = drawing.panels(1, 3.0)
        places = drawing.time_axis(axes, self.t_steps)
        if self.ideal is not None:
            axes.axhline(self.ideal, label="ideal", **drawing.REFERENCE)
        for name, look in zip(self.curves, cycle(_LOOKS), strict=False):
            mean, spread = self.mean(name), np.nan_to_num(self.spread(name))
            axes.plot(places, mean, markersize=5, label=name, **look)
            drawing.band(axes, places, mean - spread, mean + spread, look)
        axes.set_ylabel(self.metric.replace("_", " "))
        if self.repeats > 1:
            axes.set_title(f"mean and standard deviation of {self.repeats} programmings")
        drawing.legend_above(figure, axes)
        return figure

    def record(
        self,
        files: Sequence[Path],
        destination: Destination,
        *,
        run_name: str,
        parameters: Mapping[str, object],
        started_s: float,
        tags: Mapping[str, str] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> str | None:
        """Makes a run of it in MLflow, unless MLflow is away: then a warning says so.

        The run has the series ``baseline_METRIC``, ``optimised_METRIC`` (means over the repeats),
        each with ``_std``, and ``ideal_METRIC``; the step is the index of the time, which the
        series ``t_s`` holds in s.

        Args:
            files: kept as the run's artifacts; their directory is named in the warning.
            destination: where the run is made.
            run_name: name of the run.
            parameters: parameters of the run.
            started_s: when the measurement began, in s since the epoch.
            tags: further tags of the run, beside its kind and the versions of packages.
            provenance: the strategy's, under whose study's run this one is put.

        Returns:
            the run's id; None if MLflow did not take it.
        """
        all_tags = {store.KIND_TAG: "accuracy", **(tags or {})}
        all_tags |= {f"version.{name}": version for name, version in versions().items()}
        texts = {name: str(value)[: store.MAX_PARAM_LENGTH] for name, value in parameters.items()}
        now_ms = round(1000 * time.time())
        try:
            client = store.connect(destination.uri)
            experiment = store.find_or_create_experiment(client, destination.experiment_name)
            all_tags = tags_of_origin(client, experiment, provenance or {}) | all_tags
            run_id = client.create_run(
                experiment,
                start_time=round(1000 * started_s),
                run_name=run_name,
                tags=all_tags,
            ).info.run_id
            store.log_params(client, run_id, texts)
            for step in range(len(self.t_steps)):
                metrics = store.metrics_of(self._series(step), now_ms, step)
                store.log_metrics(client, run_id, metrics)
            for path in files:
                client.log_artifact(run_id, str(path))
            client.set_terminated(run_id)
            return str(run_id)
        except Exception as error:  # MLflow's storages raise what they like
            warnings.warn(
                f"MLflow did not take the results, which are in {files[0].parent} "
                f"({store.reason_of(error, destination.uri)}).",
                TrackingWarning,
                stacklevel=2,
            )
            return None

    def _series(self, step: int) -> dict[str, float]:
        """The values of MLflow's series at one time."""
        # MLflow takes letters, digits and a few signs; names of functions may be <lambda>.
        metric = re.sub(r"[^\w .-]", "_", self.metric)
        values = {"t_s": self.t_steps[step]}
        if self.ideal is not None:
            values[f"ideal_{metric}"] = self.ideal
        for name in self.curves:
            values[f"{name}_{metric}"] = float(self.mean(name)[step])
            if self.repeats > 1:
                values[f"{name}_{metric}_std"] = float(self.spread(name)[step])
        return values


def _deviation(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation over the repeats ``(repeats, times)``; NaN for a single one."""
    if len(values) == 1:
        return np.full(values.shape[1], np.nan)
    return values.std(axis=0, ddof=1)


def _rounded(value: float, error: float, sign: str = "") -> tuple[str, str]:
    """A number and its error, both with the decimals that show two digits of the error."""
    # What is left of the error of equal numbers is rounding.
    if not 1e-9 * abs(value) < error < math.inf:
        return f"{value:{sign}.4g}", f"{error:.2g}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:{sign}.{decimals}f}", f"{error:.{decimals}f}"
