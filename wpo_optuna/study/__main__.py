"""The command line: ``python -m wpo_optuna.study --sampler de``."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from wpo_optuna.study.command_line import (
    INTERRUPTED,
    CommandParser,
    add_settings,
    read_settings,
)
from wpo_optuna.study.settings import StudySettings

if TYPE_CHECKING:
    from wpo_optuna.study.scoring import StudyResult


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs or resumes a study.

    Args:
        arguments: the command line without the program; None takes ``sys.argv``.

    Returns:
        exit status: 0, 1 on failure, 130 if interrupted; wrong usage exits with 2.
    """
    started = time.perf_counter()
    given = list(sys.argv[1:] if arguments is None else arguments)

    def run(options: argparse.Namespace) -> int:
        flags = vars(options)
        quiet, config = flags.pop("quiet"), flags.pop("config")
        lists_hardware, lists_weights = flags.pop("list_rpu_configs"), flags.pop("list_weights")
        if lists_hardware:
            return _list_rpu_configs()
        settings = read_settings(StudySettings, flags, config)
        return _list_weights(settings) if lists_weights else _run(settings, given, quiet, started)

    return _parser().run(given, run, "Interrupted before the study began.")


def _parser() -> CommandParser:
    parser = CommandParser(
        "study",
        usage="%(prog)s [options]",
        description="Finds how to program a trained network's weights onto analogue memory so "
        "that accuracy lasts: an Optuna study, recorded in MLflow. Running the same command "
        "again resumes it.",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file with settings; flags prevail over it"
    )
    parser.add_argument(
        "--list-rpu-configs", action="store_true", help="list the named hardware and exit"
    )
    parser.add_argument(
        "--list-weights", action="store_true",
        help="tell what of the network becomes analogue, and exit",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    add_settings(parser, StudySettings)
    return parser


def _run(settings: StudySettings, given: Sequence[str], quiet: bool, started: float) -> int:
    # Everything heavy is imported here, so that --help and wrong usage answer at once.
    from wpo_optuna.study.environment import check_aihwkit
    from wpo_optuna.study.problem_setup import effective_settings, refuse_at_once, set_up_problem

    refuse_at_once(settings)
    check_aihwkit()
    import optuna

    from wpo_optuna.network.account import NetworkWarning
    from wpo_optuna.study import layers, selection, text, users_network
    from wpo_optuna.study.run import run_study
    from wpo_optuna.study.settings import DE_OPTIONS, RunSettings

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it sets its level when imported
    setup = set_up_problem(settings, show_progress_bar=not quiet)
    account = setup.checkpoint.account
    print(f"{account.summary()}." if quiet else account.table())
    if (warning := account.warning()) is not None:
        warnings.warn(warning, NetworkWarning, stacklevel=2)
    n_trials = settings.total_trials(setup.problem.hypercube.dimension)
    run_one: Callable[..., StudyResult] = partial(
        run_study,
        **{name: getattr(settings, name) for name in RunSettings.model_fields}
        | {"n_trials": n_trials, "study_name": setup.study_name},
        sampler_options=dict(DE_OPTIONS) | settings.given if settings.given else None,
        account=account,
        settings_text=lambda engine: effective_settings(settings, setup, engine).to_yaml(),
        show_progress_bar=not quiet,
    )
    comparison = None
    if settings.objective == "tnmse,metric":
        network = users_network.network_of(settings, setup)
        metric = users_network.NetworkMetric(
            network, setup.problem, settings.repeats, settings.seed
        )
        run_one = partial(run_one, second=metric)
    try:
        if settings.per is not None:
            result, comparison = layers.run(settings, setup, run_one, show_progress_bar=not quiet)
        elif settings.select_by == "metric":
            result, comparison = selection.run(settings, setup, run_one, not quiet)
        else:
            result = run_one(setup.problem)
    except KeyboardInterrupt:
        print(text.interruption(text.resume_command(given, n_trials)))
        return INTERRUPTED
    resume = text.resume_command(given, 2 * max(n_trials, result.scores.n_trials))
    print(text.describe(settings, result, n_trials, resume, time.perf_counter() - started))
    if comparison is not None:
        print(f"\n{comparison}")
    return 0


def _list_weights(settings: StudySettings) -> int:
    from wpo_optuna.network.weights import account_of
    from wpo_optuna.study.problem_setup import EXAMPLE_FILE

    account = account_of(
        settings.weights or EXAMPLE_FILE, settings.include, settings.exclude, settings.transposed
    )
    print(account.table())
    if (warning := account.warning()) is not None:
        print(f"Note that {warning}")
    return 0


def _list_rpu_configs() -> int:
    from wpo_optuna.hardware import NAMED_RPU_CONFIGS

    width = max(map(len, NAMED_RPU_CONFIGS))
    for name, config in NAMED_RPU_CONFIGS.items():
        print(f"{name:{width}}  {config.description}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
