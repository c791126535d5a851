"""The command line: ``python -m wpo_optuna.study --sampler de``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.study.command_line import INTERRUPTED, run_command
from wpo_optuna.study.settings import Settings, add_settings, read_settings

MODULE = "wpo_optuna.study"
PROGRAM = f"python -m {MODULE}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs or resumes a study.

    Args:
        arguments: the command line without the program; None takes ``sys.argv``.

    Returns:
        exit status: 0, 1 on failure, 130 if interrupted; wrong usage exits with 2.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = vars(_parser().parse_args(given))
    quiet, debug = options.pop("quiet"), options.pop("debug")
    if options.pop("list_rpu_configs"):
        return _list_rpu_configs()
    config = options.pop("config")
    return run_command(
        lambda: _run(read_settings(options, config), given, quiet),
        debug=debug,
        on_interruption="Interrupted before the study began.",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [options]",
        description="Finds how to program a trained network's weights onto analogue memory so "
        "that accuracy lasts: an Optuna study, recorded in MLflow. Running the same command "
        "again resumes it.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file with settings; flags prevail over it"
    )
    parser.add_argument(
        "--list-rpu-configs", action="store_true", help="list the named hardware and exit"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    add_settings(parser)
    return parser


def _run(settings: Settings, given: Sequence[str], quiet: bool) -> int:
    # Everything heavy is imported here, so that --help and wrong usage answer at once.
    from wpo_optuna.study.environment import check_aihwkit

    check_aihwkit()
    import optuna

    from wpo_optuna.study import study_text
    from wpo_optuna.study.effective_settings import effective_settings
    from wpo_optuna.study.problem_setup import set_up_problem
    from wpo_optuna.study.progress import Progress
    from wpo_optuna.study.run import run_study

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it sets its level when imported
    _check_budget(settings)
    _check_layer_settings(settings)
    setup = set_up_problem(settings, show_progress_bar=Progress(not quiet).shown)
    if settings.weights is not None and not quiet:
        print(setup.checkpoint.listing())
    study_name = settings.study_name or f"{setup.label}-{settings.sampler}"
    n_trials = _n_trials(settings, setup.problem.hypercube.dimension)
    run_one = partial(
        run_study,
        sampler=settings.sampler,
        n_trials=n_trials,
        storage=settings.storage,
        tracking_uri=False if settings.tracking_uri == "none" else settings.tracking_uri,
        engine=settings.engine,
        seed=settings.seed,
        sampler_options=_sampler_options(settings),
        batch_size=settings.batch_size,
        polish=settings.polish,
        stop_at_margin=settings.stop_at_margin,
        n_finalists=settings.finalists,
        workers=settings.workers,
        device=settings.device,
        self_check=settings.self_check,
        experiment_name=settings.experiment,
        trial_runs=settings.trial_runs,
        report=settings.report,
        output=settings.output,
        attachments=lambda objective: {
            "settings.yaml": effective_settings(settings, setup, n_trials, objective).to_yaml()
        },
        show_progress_bar=not quiet,
    )
    try:
        if settings.per is None:
            result, comparison = run_one(setup.problem, study_name=study_name), None
            is_interrupted = result.interrupted
        else:
            from wpo_optuna.study import layers_command

            layers, comparison = layers_command.run(settings, setup, run_one, study_name, quiet)
            result, is_interrupted = layers.network, layers.interrupted
    except KeyboardInterrupt:
        is_interrupted = True
    if is_interrupted:
        print(study_text.interruption(study_text.resume_command(MODULE, given, n_trials)))
        return INTERRUPTED
    assert result.scores is not None
    larger = 2 * max(n_trials, result.scores.n_trials)
    resume = study_text.resume_command(MODULE, given, larger)
    print(study_text.describe(settings, result, n_trials, resume))
    if comparison is not None:
        print(f"\n{comparison}")
    return 0


def _check_layer_settings(settings: Settings) -> None:
    for name in ("model", "data", "metric"):
        value = getattr(settings, name)
        if settings.per is None and value is not None:
            raise InvalidArgument(
                f"{name} = {value!r}: this belongs to strategies by layer (per layer); "
                "python -m wpo_optuna.evaluate measures the network with one strategy."
            )


def _check_budget(settings: Settings) -> None:
    """Refuses budgets that contradict each other, or are none, before a checkpoint is read."""
    if settings.n_trials is not None and settings.n_trials < 1:
        raise InvalidArgument(
            f"n_trials = {settings.n_trials}: a whole number of at least 1 is needed."
        )
    if settings.maxiter is None:
        return
    if settings.maxiter < 0:
        raise InvalidArgument(
            f"maxiter = {settings.maxiter}: a whole number of at least 0 is needed."
        )
    if settings.n_trials is not None:
        raise InvalidArgument(
            f"n_trials = {settings.n_trials} and maxiter = {settings.maxiter}: give one of them, "
            "either determines the budget."
        )
    if settings.sampler != "de":
        raise InvalidArgument(
            f"maxiter = {settings.maxiter}: generations belong to differential evolution "
            f"(sampler de, not {settings.sampler}); give n_trials."
        )


def _n_trials(settings: Settings, dimension: int) -> int:
    from wpo_optuna.study.study_plan import DE_OPTIONS, DEFAULT_N_TRIALS

    if settings.maxiter is None:
        return DEFAULT_N_TRIALS if settings.n_trials is None else settings.n_trials
    popsize = DE_OPTIONS["popsize"] if settings.popsize is None else settings.popsize
    return (settings.maxiter + 1) * max(5, popsize * dimension)


def _sampler_options(settings: Settings) -> dict[str, Any] | None:
    """Options of differential evolution that differ from this project's; None if none do."""
    given = {
        "strategy": settings.strategy,
        "popsize": settings.popsize,
        "mutation": None if settings.mutation is None else _mutation(settings.mutation),
        "recombination": settings.recombination,
        "tol": settings.tol,
        "atol": settings.atol,
        "init": settings.x_init,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return None
    if settings.sampler != "de":
        name, value = next(iter(given.items()))
        raise InvalidArgument(
            f"{'x_init' if name == 'init' else name} = {value!r}: this belongs to differential "
            f"evolution (sampler de, not {settings.sampler})."
        )
    from wpo_optuna.study.study_plan import DE_OPTIONS

    return dict(DE_OPTIONS) | given


def _mutation(text: str) -> float | tuple[float, float]:
    try:
        values = tuple(float(entry) for entry in text.split(","))
    except ValueError:
        values = ()
    if len(values) == 1:
        return values[0]
    if len(values) == 2:
        return values
    raise InvalidArgument(
        f"mutation = {text!r}: a number is needed, or two for dithering, e.g. 0.5,1."
    )


def _list_rpu_configs() -> int:
    from wpo_optuna.hardware import NAMED_RPU_CONFIGS

    width = max(map(len, NAMED_RPU_CONFIGS))
    for name, config in NAMED_RPU_CONFIGS.items():
        print(f"{name:{width}}  {config.description}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
