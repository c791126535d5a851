"""The command line: ``python -m wpo_optuna.evaluate``, a network's accuracy over time."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.study.command_line import run_command
from wpo_optuna.study.results_folder import check_directory

if TYPE_CHECKING:
    from wpo_optuna.evaluate.accuracy import MetricOverTime
    from wpo_optuna.evaluate.evaluation_setup import EvaluationSetup
    from wpo_optuna.strategy import ProgrammingStrategy

PROGRAM = "python -m wpo_optuna.evaluate"
NO_TRACKING = "none"


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings of one evaluation, as the user wrote them; see the command's help."""

    model: str
    strategy: tuple[str, ...]
    data: str
    metric: str | None
    rpu_config: str | None
    baseline: str
    t_steps: str
    repeats: int
    seed: int
    output: Path
    tracking_uri: str | None
    experiment: str

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise InvalidArgument(
                f"repeats = {self.repeats}: a whole number of at least 1 is needed."
            )
        if self.seed < 0:
            raise InvalidArgument(f"seed = {self.seed}: a whole number of at least 0 is needed.")
        check_directory(self.output, "output")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares a strategy over time with a baseline and with the digital network.

    Args:
        arguments: the command line without the program; None takes ``sys.argv``.

    Returns:
        exit status: 0, 1 on failure, 130 if interrupted; wrong usage exits with 2.
    """
    options = vars(_parser().parse_args(arguments))
    quiet, debug = options.pop("quiet"), options.pop("debug")
    options["strategy"] = tuple(options["strategy"])
    return run_command(
        lambda: _run(EvaluationSettings(**options), quiet),
        debug=debug,
        on_interruption="Interrupted; nothing was written.",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Shows how much of a network's accuracy a programming strategy keeps over "
        "time: against a baseline, and against the ideal digital network.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="FUNCTION",
        help="returns the network: a torch module, or one that aihwkit converted to analog; "
        "package.module:function or path/file.py:function")  # fmt: skip
    add("--strategy", required=True, nargs="+", metavar="FILE",
        help="strategy file; for strategies by layer LAYER=FILE ..., where LAYER may be a pattern "
        "such as 'encoder.*'; layers without one are programmed like the baseline")  # fmt: skip
    add("--data", required=True, metavar="FUNCTION",
        help="returns batches of (inputs, targets), such as a DataLoader")  # fmt: skip
    add("--metric", metavar="FUNCTION",
        help="takes the network and the data and returns a number; by default the share of "
        "right classifications")  # fmt: skip
    add("--rpu-config", metavar="NAME",
        help="hardware of a digital network: pcm, standard-hwa, reram-wan, reram-cmo, hermes or a "
        "function that returns an InferenceRPUConfig (pcm)")  # fmt: skip
    add("--baseline", metavar="SPEC", default="dual:1,1",
        help="programming to compare with: single, dual:F,F, npair:F,F,..., or a strategy file "
        "(%(default)s)")  # fmt: skip
    add("--t-steps", metavar="LIST", default="1s,1min,1h,1d,30d,1y",
        help="times after programming (%(default)s)")  # fmt: skip
    add("--repeats", type=int, default=10, metavar="N",
        help="how often the network is programmed anew (%(default)s)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N",
        help="seed of programming, drift and accumulated read noise (%(default)s)")  # fmt: skip
    add("--output", type=Path, default=Path("wpo_results", "accuracy"), metavar="DIR",
        help="directory for tables and figure (%(default)s)")  # fmt: skip
    add("--tracking-uri", metavar="URI",
        help="MLflow tracking URI; by default MLflow's own; none for no tracking")  # fmt: skip
    add("--experiment", default="wpo", metavar="NAME", help="MLflow experiment (%(default)s)")
    add("--quiet", action="store_true", help="no progress, only the result")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _run(settings: EvaluationSettings, quiet: bool) -> int:
    # Everything heavy is imported here, so that --help and wrong usage answer at once.
    from wpo_optuna.study.environment import check_aihwkit

    check_aihwkit()
    from wpo_optuna.evaluate.accuracy import OPTIMISED, compare_over_time, number_of_measurements
    from wpo_optuna.evaluate.evaluation_setup import set_up_evaluation
    from wpo_optuna.study.progress import Progress
    from wpo_optuna.track.delivery.destination import Destination

    if settings.tracking_uri != NO_TRACKING:
        # Only refuses an address or a name that MLflow does not take, before anything is done.
        Destination(settings.tracking_uri, settings.experiment, "none", 0, (), (), True)
    started_s = time.time()
    setup = set_up_evaluation(
        model=settings.model,
        strategy=settings.strategy,
        data=settings.data,
        metric=settings.metric,
        rpu_config=settings.rpu_config,
        baseline=settings.baseline,
        t_steps=settings.t_steps,
    )
    measured = setup.measured
    total = number_of_measurements(measured.network, 1, len(setup.t_steps), settings.repeats)
    with Progress(not quiet).bar("evaluating", total, "measurement") as bar:
        result = compare_over_time(
            measured.network, {OPTIMISED: setup.strategies}, setup.baseline, measured.data,
            setup.t_steps, measured.metric, metric_name=measured.metric_name,
            repeats=settings.repeats, seed=settings.seed, on_measured=bar.update,
        )  # fmt: skip
    files = _write(result, setup.strategies, settings.output)
    run_id = _track(settings, setup, result, files, started_s)
    print(_describe(settings, result, run_id))
    return 0


def _write(
    result: MetricOverTime, strategies: Mapping[str, ProgrammingStrategy], directory: Path
) -> list[Path]:
    """Writes tables, figure and the strategies they are about."""
    from wpo_optuna.evaluate import accuracy_figure

    files = [
        result.write_measurements(directory / "measurements.csv"),
        result.write_summary(directory / "summary.csv"),
        *accuracy_figure.save(result, directory, "over_time"),
    ]
    for layer, strategy in strategies.items():
        suffix = "" if layer == "*" else "-" + re.sub(r"[^\w.-]", "_", layer)
        files.append(strategy.save(directory / f"strategy{suffix}.json"))
    return files


def _track(
    settings: EvaluationSettings,
    setup: EvaluationSetup,
    result: MetricOverTime,
    files: Sequence[Path],
    started_s: float,
) -> str | None:
    """The id of the run in MLflow; None without tracking, or if MLflow is away."""
    if settings.tracking_uri == NO_TRACKING:
        return None
    from wpo_optuna.evaluate.accuracy_tracking import record_or_warn
    from wpo_optuna.study.environment import versions

    names = ("model", "data", "baseline", "t_steps", "repeats", "seed")
    parameters = {name: getattr(settings, name) for name in names}
    parameters["strategy"] = " ".join(settings.strategy)
    parameters["metric"] = settings.metric or setup.measured.metric_name
    parameters["rpu_config"] = setup.measured.hardware
    provenances = [strategy.provenance for strategy in setup.strategies.values()]
    studies = sorted({str(p["study_name"]) for p in provenances if "study_name" in p})
    return record_or_warn(
        result,
        files,
        tracking_uri=settings.tracking_uri,
        experiment_name=settings.experiment,
        run_name=f"{result.metric} of {', '.join(studies) or settings.strategy[0]}"[:250],
        parameters=parameters,
        tags={f"version.{name}": version for name, version in versions().items()},
        started_s=started_s,
    )


def _describe(settings: EvaluationSettings, result: MetricOverTime, run_id: str | None) -> str:
    """The table, and where to find the rest."""
    tracked = f"run {run_id}, experiment {settings.experiment}"
    if run_id is None:
        is_off = settings.tracking_uri == NO_TRACKING
        tracked = "off" if is_off else "not recorded (see the warning)"
    return f"{result.table()}\n\nresults  {settings.output}\nMLflow   {tracked}"


if __name__ == "__main__":
    sys.exit(main())
