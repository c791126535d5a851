"""The command line: ``python -m wpo_optuna.evaluate``, a network's accuracy over time."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import model_validator

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.hardware import parse_converter, parse_durations
from wpo_optuna.strategy import ProgrammingStrategy
from wpo_optuna.study.command_line import (
    CommandParser,
    Settings,
    Text,
    Texts,
    Whole,
    add_settings,
    setting,
)
from wpo_optuna.study.environment import check_aihwkit, check_directory
from wpo_optuna.track.destination import Destination

if TYPE_CHECKING:
    from aihwkit.inference.converter.base import BaseConductanceConverter

    from wpo_optuna.evaluate.accuracy import NetworkSetup
    from wpo_optuna.evaluate.metric_over_time import MetricOverTime

NO_TRACKING = "none"
ALL_LAYERS = "*"
# The built-in example, and where its studies are, by default.
_NETWORK, _IMAGES = "wpo_optuna.evaluate.digits:network", "wpo_optuna.evaluate.digits:batches"
_RESULTS = Path("wpo_results")
_NOTE_TAG = "mlflow.note.content"  # what MLflow shows as a run's description
_WHAT, _HOW, _CHIP, _RECORD = (
    "what is measured",
    "how it is measured",
    "to a chip and back",
    "records",
)


class EvaluationSettings(Settings):
    """The settings of one evaluation, as the user wrote them, each declared once."""

    model: str = setting(
        _NETWORK, "returns the network: a torch module, or one that aihwkit converted to analog; "
        "package.module:function or path/file.py:function; without it the built-in digits network",
        _WHAT, "FUNCTION",
    )  # fmt: skip
    strategy: Texts = setting(
        (), "strategy file; for strategies by layer LAYER=FILE ..., where LAYER may be a pattern "
        "such as 'encoder.*'; layers without one are programmed like the baseline; without it the "
        f"newest strategy of the studies in {_RESULTS}", _WHAT, "FILE",
    )  # fmt: skip
    data: str | None = setting(
        None, "returns batches of (inputs, targets), such as a DataLoader; needed but with "
        "--export; of the built-in network the images held out from it", _WHAT, "FUNCTION",
    )  # fmt: skip
    metric: str | None = setting(
        None, "takes the network and the data and returns a number, which is the better the nearer "
        "it is to the digital network's; by default the share of right classifications", _WHAT,
        "FUNCTION",
    )  # fmt: skip
    rpu_config: str | None = setting(
        None, "hardware of a digital network: pcm, standard-hwa, reram-wan, reram-cmo, hermes or a "
        "function that returns an InferenceRPUConfig (pcm)", _WHAT, "NAME",
    )  # fmt: skip
    include: Texts = setting(
        (), "only parameters whose name matches one of these patterns lie on tiles", _WHAT,
        "PATTERN",
    )  # fmt: skip
    exclude: Texts = setting(
        (), "no parameters whose name matches one of these patterns lie on tiles", _WHAT, "PATTERN"
    )
    export: str | None = setting(
        None, "write the target conductances of every device to this safetensors file", _CHIP,
        "FILE",
    )  # fmt: skip
    import_: str | None = setting(
        None, "measure with the conductances of this file, in the layout of --export", _CHIP,
        "FILE",
    )  # fmt: skip
    read_at: Text = setting(
        "1s", "when these were read, after programming: the time of the prediction beside them",
        _CHIP, "TIME",
    )  # fmt: skip
    baseline: Text = setting(
        "dual:1,1", "programming to compare with: single, dual:F,F, npair:F,F,..., or a strategy "
        "file", _HOW, "SPEC",
    )  # fmt: skip
    t_steps: Text = setting("1s,1min,1h,1d,30d,1y", "times after programming", _HOW, "LIST")
    repeats: Whole = setting(10, "how often the network is programmed anew", _HOW, "N", ge=1)
    seed: Whole = setting(
        0, "seed of the noise; aihwkit's compiled tile draws that of forward passes without one",
        _HOW, "N", ge=0,
    )  # fmt: skip
    engine: Literal["auto", "torch", "aihwkit"] = setting(
        "auto", "what computes the forward passes of tiles: torch, aihwkit's compiled tile, or "
        "auto for torch wherever it knows the hardware", _HOW,
    )  # fmt: skip
    device: str = setting(
        "cpu", "torch device of the analogue network, such as cuda; a metric moves its data there",
        _HOW, "NAME",
    )  # fmt: skip
    output: str = setting("wpo_results/accuracy", "directory for tables and figure", _RECORD, "DIR")
    tracking_uri: str | None = setting(
        None, "MLflow tracking URI; by default MLflow's own; none for no tracking", _RECORD, "URI"
    )
    experiment: str = setting("wpo", "MLflow experiment", _RECORD, "NAME")

    @model_validator(mode="before")
    @classmethod
    def _with_images(cls, values: dict[str, Any]) -> dict[str, Any]:
        return values if "model" in values else {"data": _IMAGES, **values}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.data is None and (self.export is None or self.import_ is not None):
            raise ValueError("data: a function that returns batches is needed, unless to export")
        if self.import_ is not None and self.repeats < 2:
            raise ValueError("repeats = 1: the interval of a prediction needs at least 2")
        return self


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares a strategy over time with a baseline and with the digital network.

    Args:
        arguments: the command line without the program; None takes ``sys.argv``.

    Returns:
        exit status: 0, 1 on failure, 130 if interrupted; wrong usage exits with 2.
    """

    def run(options: argparse.Namespace) -> int:
        given = vars(options)
        quiet = given.pop("quiet")
        return _run(EvaluationSettings.checked(given), quiet)

    return _parser().run(arguments, run, "Interrupted; nothing was written.")


def _parser() -> CommandParser:
    parser = CommandParser(
        "evaluate",
        description="Shows how much of a network's accuracy a programming strategy keeps over "
        "time: against a baseline, and against the ideal digital network.",
    )
    add_settings(parser, EvaluationSettings)
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    return parser


def _run(settings: EvaluationSettings, quiet: bool) -> int:
    # What cannot be used is refused before anything is done, and before torch is imported.
    started_s, output = time.time(), Path(settings.output)
    check_directory(output, "output")
    destination = None
    if settings.tracking_uri != NO_TRACKING:
        destination = Destination(settings.tracking_uri, settings.experiment)
    t_steps = parse_durations(settings.t_steps, "t_steps")
    if not settings.strategy:
        newest, hardware = _newest_strategy()
        print(f"strategy  {newest}, the newest of the studies in {_RESULTS}\n")
        settings = settings.model_copy(update={"strategy": (str(newest),)})
        if settings.model == _NETWORK and settings.rpu_config is None:
            settings = settings.model_copy(update={"rpu_config": hardware})
    strategies = _read_strategies(settings.strategy)
    check_aihwkit()
    from wpo_optuna.evaluate import accuracy
    from wpo_optuna.network.analogue import Choice
    from wpo_optuna.network.apply import apply_converter
    from wpo_optuna.network.conductances import export_targets

    # On devices of the range that the strategies were made for.
    g_min = min(strategy.g_min for strategy in strategies.values())
    g_max = max(strategy.g_max for strategy in strategies.values())
    baseline = parse_converter(settings.baseline, g_min, g_max, "baseline")
    setup = accuracy.set_up_network(
        model=settings.model, data=settings.data, metric=settings.metric,
        rpu_config=settings.rpu_config, choice=Choice(settings.include, settings.exclude),
    )  # fmt: skip
    account = setup.network.account
    print(f"{account.summary()}." if quiet else f"{account.table()}\n")
    accuracy.warn_of_strategies(strategies.values(), setup.network)
    if settings.export is not None:
        apply_converter(setup.network.analog, baseline, "baseline")
        path = export_targets(setup.network.analog, strategies, settings.export)
        print(f"target conductances  {path}")
    if settings.import_ is not None:
        _compare_measured(settings, setup, strategies, baseline, quiet)
    elif settings.data is not None:
        result = accuracy.compare_over_time(
            setup, {accuracy.OPTIMISED: strategies}, baseline, t_steps,
            repeats=settings.repeats, seed=settings.seed, engine=settings.engine,
            device=settings.device, show_progress_bar=not quiet,
        )  # fmt: skip
        files = [*result.save(output), account.save(output / "weights.csv")]
        for layer, strategy in strategies.items():
            suffix = "" if layer == ALL_LAYERS else "-" + re.sub(r"[^\w.-]", "_", layer)
            files.append(strategy.save(output / f"strategy{suffix}.json"))
        tracked = "off"
        if destination is not None:
            tracked = _record(settings, setup, strategies, result, files, destination, started_s)
        print(
            f"{result.table()}\n\ntiles    {result.engine}\nresults  {settings.output}\n"
            f"MLflow   {tracked}"
        )
    return 0


def _record(
    settings: EvaluationSettings,
    setup: NetworkSetup,
    strategies: Mapping[str, ProgrammingStrategy],
    result: MetricOverTime,
    files: Sequence[Path],
    destination: Destination,
    started_s: float,
) -> str:
    """Records a comparison in MLflow; says where, and how to look at it."""
    provenances = [strategy.provenance for strategy in strategies.values()]
    studies = sorted({str(p["study_name"]) for p in provenances if "study_name" in p})
    parameters = settings.model_dump(exclude={"output", "tracking_uri", "experiment"})
    parameters["strategy"] = " ".join(settings.strategy)
    parameters["metric"] = settings.metric or setup.metric_name
    parameters["rpu_config"] = setup.hardware
    parameters["engine"] = result.engine
    run_id = result.record(
        files, destination, parameters=parameters, started_s=started_s,
        run_name=f"{result.metric} of {', '.join(studies) or settings.strategy[0]}"[:250],
        tags={_NOTE_TAG: result.verdict()},
        provenance=provenances[0] if len(studies) == 1 else None,
    )  # fmt: skip
    if run_id is None:
        return "not recorded (see the warning)"
    from wpo_optuna.track.store import connect
    from wpo_optuna.track.view import look_lines, page_of_run

    experiment_id = connect(destination.uri).get_run(run_id).info.experiment_id
    look = look_lines(destination.uri, page_of_run(experiment_id, run_id))
    return "\n".join([f"run {run_id}, experiment {settings.experiment}", "", *look])


def _compare_measured(
    settings: EvaluationSettings,
    setup: NetworkSetup,
    strategies: Mapping[str, ProgrammingStrategy],
    baseline: BaseConductanceConverter,
    quiet: bool,
) -> None:
    from wpo_optuna.evaluate.measured import compare_measured
    from wpo_optuna.network.conductances import read_conductances

    assert settings.import_ is not None
    t, *others = parse_durations(settings.read_at, "read_at")
    if others:
        raise InvalidArgument(f"read_at = {settings.read_at!r}: one time is needed.")
    measured = read_conductances(settings.import_, setup.network.analog)
    result = compare_measured(
        setup, strategies, baseline, measured, t, repeats=settings.repeats, seed=settings.seed,
        engine=settings.engine, device=settings.device, show_progress_bar=not quiet,
    )  # fmt: skip
    path = result.save(Path(settings.output) / "measured.csv")
    print(f"{result.table()}\n\ntiles    {result.engine}\nresults  {path}")


def _newest_strategy() -> tuple[Path, str | None]:
    """The strategy of the study in the results folder that was finished last, and its hardware.

    Raises:
        InvalidArgument: there is none.
    """
    import yaml

    from wpo_optuna.study.run import SETTINGS_FILE, STRATEGY_FILE

    # The copy that an evaluation leaves has no settings beside it; layers' are in deeper folders.
    found = [
        path
        for path in _RESULTS.glob(f"*/{STRATEGY_FILE}")
        if path.with_name(SETTINGS_FILE).is_file()
    ]
    if not found:
        raise InvalidArgument(
            f"strategy is needed: {_RESULTS} in this directory holds no study's {STRATEGY_FILE}; "
            "accepted is a strategy file, such as python -m wpo_optuna.study makes."
        )
    newest = max(found, key=lambda path: path.stat().st_mtime)
    told = yaml.safe_load(newest.with_name(SETTINGS_FILE).read_text(encoding="utf-8")) or {}
    return newest, told.get("rpu_config")


def _read_strategies(entries: Sequence[str]) -> dict[str, ProgrammingStrategy]:
    """Strategies by layer, from ``FILE`` for all layers or ``LAYER=FILE`` for some.

    Raises:
        InvalidArgument: a file cannot be read, or there are two strategies for a layer.
    """
    strategies: dict[str, ProgrammingStrategy] = {}
    for entry in entries:
        layer, equals, path = entry.partition("=")
        if not equals or Path(entry).is_file():
            layer, path = ALL_LAYERS, entry
        if layer in strategies:
            which = "all layers" if layer == ALL_LAYERS else f"layer {layer!r}"
            raise InvalidArgument(
                f"strategy = {' '.join(entries)!r}: there are two strategies for {which}; one is "
                "needed, or LAYER=FILE for strategies by layer."
            )
        strategies[layer] = ProgrammingStrategy.load(path)
    return strategies


if __name__ == "__main__":
    sys.exit(main())
