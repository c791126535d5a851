"""Delivers a stored study to MLflow: ``python -m wpo_optuna.track --study-name NAME``.

What MLflow lacks of the study is taken from its Optuna storage: after MLflow was away, after the
study's process was killed, for a study that was never tracked, or when MLflow's own store is lost.
A second time there is nothing left to do. While the study is still being run, this does no harm.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wpo_optuna.errors import InvalidArgument, WeightProgrammingError
from wpo_optuna.track.delivery.destination import TRIAL_RUNS, Destination

if TYPE_CHECKING:
    from optuna import Study

    from wpo_optuna.track.delivery.messages import Extra

PROGRAM = "python -m wpo_optuna.track"
INTERRUPTED = 130  # what shells report for a program ended by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Delivers a study.

    Args:
        arguments: the command line without the program; None takes ``sys.argv``.

    Returns:
        exit status: 0, 1 on failure, 130 if interrupted; wrong usage exits with 2.
    """
    options = _parser().parse_args(arguments)
    try:
        study = load_study(options.storage, options.study_name)
        destination = destination_of(
            study, options.tracking_uri, options.experiment, options.trial_runs
        )
        print(deliver(study, destination))
        _remember(study, destination)
        return 0
    except KeyboardInterrupt:
        print("\nInterrupted; run the same command again to deliver the rest.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if options.debug:
            raise
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return 1


def load_study(storage: str, study_name: str) -> Study:
    """The stored study of this name.

    Raises:
        InvalidArgument: there is no such storage or study; nothing is written.
    """
    import optuna

    from wpo_optuna.storage import masked_url, open_storage

    scheme, _, location = storage.partition(":///")
    path = location.partition("?")[0]
    if scheme.partition("+")[0] in ("sqlite", "journal") and path and not Path(path).exists():
        raise InvalidArgument(f"storage = {storage!r}: there is no such file.")
    opened = open_storage(storage)
    try:
        return optuna.load_study(study_name=study_name, storage=opened)
    except KeyError:
        names = sorted(study.study_name for study in opened.get_all_studies())
        known = f"it has {', '.join(names)}" if names else "it has none"
        raise InvalidArgument(
            f"study_name = {study_name!r}: {masked_url(storage)} has no such study; {known}."
        ) from None


def deliver(study: Study, destination: Destination, extras: Sequence[Extra] = ()) -> str:
    """Brings everything of a study to MLflow, and says where it is.

    Args:
        study: the study.
        destination: where it goes.
        extras: what else is kept with the study's run.

    Raises:
        WeightProgrammingError: MLflow does not take it.
    """
    from wpo_optuna.track.delivery.description import DeliveryState
    from wpo_optuna.track.delivery.ending import reason_of_failure, wait_for_end
    from wpo_optuna.track.delivery.feeder import Feeder

    state = DeliveryState.read(study)
    feeder = Feeder(study, destination)
    for extra in extras:
        feeder.put_extra(extra)
    feeder.finish((state and state.status) or "FINISHED")
    wait_for_end(feeder, show_progress_bar=True)
    if not feeder.is_complete:
        raise WeightProgrammingError(
            f"MLflow lacks trials of study {study.study_name!r} ({reason_of_failure(feeder)}); run "
            "the same command again when that is mended."
        )
    where = f"run {feeder.run_id} in experiment {destination.experiment_name!r}"
    if feeder.recorder is not None:
        where += f"; {feeder.recorder} is recording it still, and will end it"
    return (
        f"MLflow has all {feeder.n_delivered} finished trials of study {study.study_name!r}: "
        f"{where}."
    )


def destination_of(
    study: Study, tracking_uri: str | None, experiment: str | None, trial_runs: str | None
) -> Destination:
    """Where the arguments say, and where they are None, where the study has been recorded.

    Raises:
        InvalidArgument: an argument cannot be used, or a password is lacking.
    """
    from wpo_optuna.track.delivery.description import DeliveryState

    recorded = DeliveryState.read(study) or DeliveryState(identity="", versions=())
    tracking_uri = tracking_uri or recorded.tracking_uri
    if tracking_uri is not None and "***" in tracking_uri:
        raise InvalidArgument(
            f"tracking_uri = {tracking_uri!r}: it is kept and shown without the password; give "
            "--tracking-uri with it."
        )
    return Destination(
        tracking_uri=tracking_uri,
        experiment_name=experiment or recorded.experiment_name or "wpo",
        trial_runs=trial_runs or recorded.trial_runs or "auto",
        planned_trials=0,
        parameters=(),
        tags=(),
        is_live=False,
    )


def _remember(study: Study, destination: Destination) -> None:
    """Keeps with a study that no tracker has recorded where it is now."""
    from wpo_optuna.track.delivery.description import DeliveryState

    state = DeliveryState.read(study)
    if state is not None and state.experiment_name is None:
        state.at(destination).write(study)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Delivers to MLflow what it lacks of a stored study, or all of it. Running "
        "the same command again changes nothing.",
        allow_abbrev=False,
    )
    parser.add_argument("--study-name", required=True, metavar="NAME", help="name of the study")
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
        "--trial-runs", choices=TRIAL_RUNS,
        help="trials with an MLflow run of their own; by default as the study was recorded, or "
        "auto: all of at most 1000 trials, else those that improved the best",
    )  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _sentence(error: Exception) -> str:
    if isinstance(error, WeightProgrammingError):
        return str(error)
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line} (--debug shows where)"


if __name__ == "__main__":
    sys.exit(main())
