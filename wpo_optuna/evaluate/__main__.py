"""The command line: ``python -m wpo_optuna.evaluate``, a network's accuracy over time."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wpo_optuna.evaluate.settings import EvaluationSettings
from wpo_optuna.study.command_line import add_settings, run_command

if TYPE_CHECKING:
    from wpo_optuna.evaluate.accuracy import MetricOverTime
    from wpo_optuna.evaluate.evaluation_setup import EvaluationSetup

NO_TRACKING = "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares a strategy over time with a baseline and with the digital network.

    Args:
        arguments: the command line without the program; None takes ``sys.argv``.

    Returns:
        exit status: 0, 1 on failure, 130 if interrupted; wrong usage exits with 2.
    """
    options = vars(_parser().parse_args(arguments))
    quiet, debug = options.pop("quiet"), options.pop("debug")
    return run_command(
        lambda: _run(EvaluationSettings.checked(options), quiet),
        debug=debug,
        on_interruption="Interrupted; nothing was written.",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m wpo_optuna.evaluate",
        description="Shows how much of a network's accuracy a programming strategy keeps over "
        "time: against a baseline, and against the ideal digital network.",
        allow_abbrev=False,
    )
    add_settings(parser, EvaluationSettings)
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _run(settings: EvaluationSettings, quiet: bool) -> int:
    # Everything heavy is imported here, so that --help and wrong usage answer at once.
    from wpo_optuna.study.environment import check_aihwkit
    from wpo_optuna.study.results_folder import check_directory
    from wpo_optuna.track.destination import Destination

    check_directory(Path(settings.output), "output")
    check_aihwkit()
    if settings.tracking_uri != NO_TRACKING:
        # Refuses an address or a name that MLflow does not take, before anything is done.
        Destination(settings.tracking_uri, settings.experiment)
    from wpo_optuna.evaluate.accuracy import OPTIMISED, compare_over_time
    from wpo_optuna.evaluate.evaluation_setup import set_up_evaluation

    started_s, output = time.time(), Path(settings.output)
    setup = set_up_evaluation(settings)
    measured = setup.measured
    result = compare_over_time(
        measured.network, {OPTIMISED: setup.strategies}, setup.baseline, measured.data,
        setup.t_steps, measured.metric, metric_name=measured.metric_name,
        repeats=settings.repeats, seed=settings.seed, show_progress_bar=not quiet,
    )  # fmt: skip
    files = result.save(output)
    for layer, strategy in setup.strategies.items():
        suffix = "" if layer == "*" else "-" + re.sub(r"[^\w.-]", "_", layer)
        files.append(strategy.save(output / f"strategy{suffix}.json"))
    tracked = _track(settings, setup, result, files, started_s)
    print(f"{result.table()}\n\nresults  {settings.output}\nMLflow   {tracked}")
    return 0


def _track(
    settings: EvaluationSettings,
    setup: EvaluationSetup,
    result: MetricOverTime,
    files: Sequence[Path],
    started_s: float,
) -> str:
    """Records the comparison in MLflow, and says where."""
    if settings.tracking_uri == NO_TRACKING:
        return "off"
    from wpo_optuna.evaluate.accuracy_tracking import record_or_warn

    parameters = settings.model_dump(exclude={"output", "tracking_uri", "experiment"})
    parameters["strategy"] = " ".join(settings.strategy)
    parameters["metric"] = settings.metric or setup.measured.metric_name
    parameters["rpu_config"] = setup.measured.hardware
    provenances = [strategy.provenance for strategy in setup.strategies.values()]
    studies = sorted({str(p["study_name"]) for p in provenances if "study_name" in p})
    run_id = record_or_warn(
        result,
        files,
        tracking_uri=settings.tracking_uri,
        experiment_name=settings.experiment,
        run_name=f"{result.metric} of {', '.join(studies) or settings.strategy[0]}"[:250],
        parameters=parameters,
        started_s=started_s,
    )
    if run_id is None:
        return "not recorded (see the warning)"
    return f"run {run_id}, experiment {settings.experiment}"


if __name__ == "__main__":
    sys.exit(main())
