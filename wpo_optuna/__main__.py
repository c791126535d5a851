"""The command line: ``wpo study``, or ``python -m wpo_optuna study``, and the other commands."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

from wpo_optuna.errors import did_you_mean

COMMANDS: Mapping[str, str] = {
    "study": "finds how to program a network's weights, or goes on with finding it",
    "evaluate": "shows how much accuracy of a network a strategy keeps over time",
    "report": "writes a page of figures on stored studies",
    "track": "delivers to MLflow what it lacks of a stored study",
    "hardware": "fits a device model to measured conductances",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one of the commands; without any, or with ``--help``, lists them.

    Args:
        arguments: the command and its own arguments; None takes ``sys.argv``.

    Returns:
        exit status, that of the command; wrong usage exits with 2.
    """
    command, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    if command in ("-h", "--help"):
        print("usage: wpo COMMAND [options]; wpo COMMAND --help explains it\n")
        print("\n".join(f"  {name:9} {what}" for name, what in COMMANDS.items()))
        return 0
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS)
        print(f"error: there is no command {command!r}{hint}: give one of {', '.join(COMMANDS)}.",
              file=sys.stderr)  # fmt: skip
        return 2
    status: int = import_module(f"wpo_optuna.{command}.__main__").main(rest)
    return status


if __name__ == "__main__":
    sys.exit(main())
