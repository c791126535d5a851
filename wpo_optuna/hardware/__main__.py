"""The command line: ``python -m wpo_optuna.hardware fit``, a device model from measurements."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wpo_optuna.errors import InvalidArgument
from wpo_optuna.hardware.descriptions import parse_durations
from wpo_optuna.study.command_line import CommandParser, program
from wpo_optuna.study.environment import check_directory

if TYPE_CHECKING:
    from wpo_optuna.hardware.fitting import FittedModel
    from wpo_optuna.hardware.measurements import Measurements


def main(arguments: Sequence[str] | None = None) -> int:
    """Fits a noise model to measured conductances.

    Args:
        arguments: the command line without the program; None takes ``sys.argv``.

    Returns:
        exit status: 0, 1 on failure, 130 if interrupted; wrong usage exits with 2.
    """
    return _parser().run(arguments, _run, "Interrupted; nothing was written.")


def _parser() -> CommandParser:
    parser = CommandParser(
        "hardware",
        description="Fits a noise model to conductances that were measured: programming error, "
        "drift and read noise over the target, with 95 % intervals.",
    )
    parser.add_argument("what", choices=["fit"], help="the only thing that can be done")
    parser.add_argument(
        "measurements", metavar="FILE",
        help="CSV with the columns target_us, t_s (after programming), g_us and, where it is "
        "known which readings are of one device, device",
    )  # fmt: skip
    parser.add_argument(
        "--output", default="device.py", metavar="FILE",
        help="Python file for --rpu-config; a figure is put beside it (device.py)",
    )  # fmt: skip
    parser.add_argument(
        "--t-0", default="20s", metavar="TIME",
        help="time after programming from which drift counts, as in aihwkit (20s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the bootstrap (0)"
    )
    return parser


def _run(options: argparse.Namespace) -> int:
    from wpo_optuna.hardware.measurements import read_measurements

    output = Path(options.output)
    if output.suffix != ".py":
        raise InvalidArgument(f"output = {options.output!r}: the name of a .py file is needed.")
    check_directory(output.parent, "output")
    t_0, *others = parse_durations(options.t_0, "t_0")
    if others or t_0 <= 0:
        raise InvalidArgument(f"t_0 = {options.t_0!r}: one time above 0 is needed.")
    if options.seed < 0:
        raise InvalidArgument(f"seed = {options.seed}: a whole number of at least 0 is needed.")
    measurements = read_measurements(options.measurements)
    # Not earlier, so that what is refused above is refused at once.
    from wpo_optuna.hardware.device_file import figure_of_fit, write_device
    from wpo_optuna.hardware.fitting import fit
    from wpo_optuna.report import drawing

    fitted = fit(measurements, t_0=t_0, seed=options.seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_device(fitted, output, f"Devices as measured in {Path(options.measurements).name}.")
    figure = drawing.save(figure_of_fit, (fitted, measurements), output.with_suffix(""))
    print("\n".join(_told(fitted, measurements)))
    print(f"\ndevice  {output}\nfigure  {figure}\n\nTo find a strategy for it:")
    print(f"  {program('study')} --rpu-config {output}:rpu_config")
    return 0


def _told(fitted: FittedModel, measurements: Measurements) -> list[str]:
    """The parameters with their intervals, and what a reader should know of them."""
    width = max(len(parameter.name) for parameter in fitted.parameters)
    lines = [f"{'':{width}}     fitted   95 % interval"]
    lines += [
        f"{p.name:{width}} {p.value:10.4g}   [{p.low:.4g}, {p.high:.4g}]" for p in fitted.parameters
    ]
    lines += ["", f"model   {fitted.model_class.__name__}"]
    if fitted.model_class.__module__.startswith("aihwkit"):
        lines.append(f"fit     as good as measurements of such devices (p = {fitted.p_value:.2g})")
    else:
        lines.append(f"fit     aihwkit's formulas miss these devices (p = {fitted.p_value:.1g}); "
                     "tables take their place")  # fmt: skip
    if fitted.without_drift:
        targets = ", ".join(f"{target:.3g}" for target in fitted.without_drift)
        lines.append(f"drift   of targets of {targets} µS is taken from the nearest higher one: "
                     "programming scatters too much there")  # fmt: skip
    if not measurements.are_followed:
        lines.append("noise   of reading is aihwkit's: without a column device it cannot be told "
                     "from errors of programming")  # fmt: skip
    return lines


if __name__ == "__main__":
    sys.exit(main())
