"""Delivers a stored study to MLflow: ``python -m wpo_optuna.track --study-name NAME``.

What MLflow lacks of the study is taken from its Optuna storage and the folder of its results. While
the study is still being run, this does no harm.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from wpo_optuna.study.command_line import CommandParser


def main(arguments: Sequence[str] | None = None) -> int:
    """Delivers a study.

    Args:
        arguments: the command line without the program; None takes ``sys.argv``.

    Returns:
        exit status: 0, 1 on failure, 130 if interrupted; wrong usage exits with 2.
    """
    parser = _parser()

    def run(options: argparse.Namespace) -> int:
        if options.follow:
            from wpo_optuna.track.follower import follow

            return follow()
        if options.study_name is None:
            parser.error("the following arguments are required: --study-name")
        return _run(options)

    told = "Interrupted; run the same command again to deliver the rest."
    return parser.run(arguments, run, told)


def _run(options: argparse.Namespace) -> int:
    # Everything heavy is imported here, so that --help and wrong usage answer at once.
    from tqdm import tqdm

    from wpo_optuna.errors import WeightProgrammingError
    from wpo_optuna.storage import load_study
    from wpo_optuna.track.delivery import Delivered, deliver
    from wpo_optuna.track.destination import Destination
    from wpo_optuna.track.store import reason_of

    study = load_study(options.storage, options.study_name)
    destination = Destination.of_study(
        study, options.tracking_uri, options.experiment, options.trial_runs
    )
    try:
        with tqdm(unit="trial", disable=None, delay=2, leave=False) as bar:

            def show(done: Delivered) -> None:
                bar.total = done.n_finished
                bar.update(done.n_trials - bar.n)

            delivered = deliver(study, destination, show)
    except WeightProgrammingError:
        raise
    except Exception as error:
        reason = reason_of(error, destination.uri)
        raise WeightProgrammingError(
            f"MLflow lacks a part of study {study.study_name!r} ({reason}); run the same command "
            "again when that is mended."
        ) from error
    print(
        f"MLflow has all {delivered.n_trials} finished trials of study {study.study_name!r}: run "
        f"{delivered.run_id} in experiment {destination.experiment_name!r}."
    )
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        "track",
        description="Delivers to MLflow what it lacks of a stored study, or all of it. Running "
        "the same command again changes nothing.",
    )
    parser.add_argument("--study-name", metavar="NAME", help="name of the study (required)")
    parser.add_argument(
        "--storage", default="sqlite:///wpo.db", metavar="URL",
        help="Optuna storage of the study (sqlite:///wpo.db)",
    )  # fmt: skip
    parser.add_argument(
        "--tracking-uri", metavar="URI",
        help="MLflow tracking URI; by default the one the study was recorded with, or MLflow's own",
    )  # fmt: skip
    parser.add_argument(
        "--experiment", metavar="NAME",
        help="MLflow experiment; by default the one the study was recorded in, or wpo",
    )  # fmt: skip
    parser.add_argument(
        "--trial-runs", metavar="auto|all|best|none",
        help="trials with an MLflow run of their own; by default as the study was recorded, or "
        "auto: all of at most 1000 trials, else those that improved the best",
    )  # fmt: skip
    parser.add_argument(
        "--follow", action="store_true",
        help="what a running study starts: its description comes on standard input",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
