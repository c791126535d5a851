"""What all commands have in common: settings declared once, exit statuses, errors of one sentence.

A command declares its settings as a subclass of :class:`Settings`. Their flags, the keys of a
configuration file, their types and bounds and their help are read off that declaration alone.
"""

from __future__ import annotations

import argparse
import logging
import operator
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NoReturn,
    Self,
    TypeVar,
    get_args,
    get_origin,
)

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo

from wpo_optuna.errors import InvalidArgument, WeightProgrammingError, did_you_mean, first_line
from wpo_optuna.study.environment import program_here

FAILED = 1
INTERRUPTED = 130  # what shells report for a program ended by Ctrl-C

S = TypeVar("S", bound="Settings")

# Where a sentence says which argument it is about: before the first colon, and in quoting a value.
_SUBJECT = re.compile(r"\b([a-z]\w*) = |^([a-z]\w*)(?= '|$| contains| is needed)")
_ADVICE = re.compile(r"\b([a-z]\w*) = (?=')")


def _as_whole(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a whole number is needed")
    return operator.index(value) if hasattr(value, "__index__") else value


def _as_text(value: object) -> object:
    """A YAML list as the commas of a flag; its entries may be numbers, or null for none."""
    if isinstance(value, list | tuple):
        return ",".join("none" if item is None else str(item) for item in value)
    return value


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Whole = Annotated[int, BeforeValidator(_as_whole)]
Text = Annotated[str, BeforeValidator(_as_text)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


def setting(
    default: Any, help: str, group: str = "options", metavar: str | None = None, **bounds: Any
) -> Any:
    """Declares a setting.

    Args:
        default: its default; ``...`` where it must be given.
        help: what it is; shown by ``--help`` with the default.
        group: heading of its group in the help.
        metavar: placeholder of its value in the help.
        bounds: pydantic's constraints, such as ``ge=1``.
    """
    shown: Any = {"group": group, "metavar": metavar}
    return Field(default, description=help, json_schema_extra=shown, **bounds)


class Settings(BaseModel):
    """Settings of a command; immutable."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _in_any_case(cls, value: object, info: ValidationInfo) -> object:
        """Takes a word out of a list, such as ``CMAES``, in capitals as well."""
        is_choice = _choices(cls.model_fields[str(info.field_name)]) is not None
        return value.lower() if is_choice and isinstance(value, str) else value

    #: Settings of which one given as a flag replaces all of the configuration file's.
    alternatives: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def checked(cls, values: Mapping[str, Any], places: Mapping[str, str] | None = None) -> Self:
        """The settings with these values, where others keep their defaults.

        Args:
            values: by name.
            places: where those were written that do not come from the user directly, by name.

        Raises:
            InvalidArgument: there is no such setting, or a value cannot be used.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0]) if first["loc"] else ""
            place = (places or {}).get(name, "")
            raise InvalidArgument(place + cls._sentence(name, first)) from error

    @classmethod
    def _sentence(cls, name: str, first: Mapping[str, Any]) -> str:
        value = first["input"]
        if first["type"] == "extra_forbidden":
            known = ", ".join(cls.model_fields)
            hint = did_you_mean(name, cls.model_fields) or f"; known are {known}"
            return f"there is no setting {name!r}{hint}."
        if first["type"] == "missing":
            return f"{name} is needed."
        told = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
        told = told.replace("Input should", "it should").replace("String should", "it should")
        hint = did_you_mean(value, _choices(cls.model_fields[name]) or ()) if name else ""
        return f"{name} = {value!r} cannot be used: {told}{hint}." if name else f"{told}."


def program(command: str) -> str:
    """How a command is called, in the way in which this program was: such as ``wpo study``.

    Args:
        command: ``study`` or another one.
    """
    started = Path(sys.argv[0])
    if started.stem == "wpo":
        return f"wpo {command}"
    if started.parts[-2:] == ("wpo_optuna", "__main__.py"):
        return f"python -m wpo_optuna {command}"
    return f"python -m wpo_optuna.{command}"


def command_for_shell(command: str, options: Iterable[str]) -> str:
    """A command to be pasted; of a password stands a variable such as ``STORAGE_PASSWORD``.

    Args:
        command: ``study`` or another one.
        options: the words after it.
    """
    from wpo_optuna.storage import word_for_shell  # Optuna's import takes half a second

    first, *words = program(command).split()
    told, option = [shlex.join([program_here(first), *words])], ""
    for word in options:
        flag = word.partition("=")[0]
        option = flag if flag.startswith("--") else option
        told.append(word_for_shell(word, option))
    return " ".join(told)


class CommandParser(argparse.ArgumentParser):
    """A command's parser: takes no abbreviations, and suggests what a misspelt flag may mean.

    Args:
        command: ``study`` or another one.
        options: of :class:`argparse.ArgumentParser`.
    """

    def __init__(self, command: str, **options: Any) -> None:
        super().__init__(prog=program(command), allow_abbrev=False, **options)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def run(
        self,
        arguments: Sequence[str] | None,
        command: Callable[[argparse.Namespace], int],
        on_interruption: str,
    ) -> int:
        """Runs the command, and turns what it raises into a message.

        Args:
            arguments: the words after the program; None takes ``sys.argv``.
            command: takes the options, and returns its exit status.
            on_interruption: what to tell a user who ends the command with Ctrl-C.

        Returns:
            exit status: 0, 1 on failure, 130 if interrupted; wrong usage exits with 2.
        """
        options = self.parse_args(arguments)
        debug = vars(options).pop("debug")
        _quieten_libraries()
        try:
            return command(options)
        except KeyboardInterrupt:
            print(f"\n{on_interruption}", file=sys.stderr)
            return INTERRUPTED
        except Exception as error:
            if debug:
                raise
            print(f"error: {_sentence(error, self.flags())}", file=sys.stderr)
            return FAILED

    def flags(self) -> list[str]:
        """All flags, read off the help, since argparse has no public list of them."""
        entries = re.findall(r"^  (-.*?)(?:  |$)", self.format_help(), flags=re.MULTILINE)
        return [flag for entry in entries for flag in re.findall(r"--[\w-]+", entry)]

    def error(self, message: str) -> NoReturn:
        """Ends the program with a message, and with exit status 2."""
        flags = self.flags()
        words = re.findall(r"(?<!\S)--[\w-]+", message)
        hints = [did_you_mean(word, flags) for word in words if word not in flags]
        super().error(message + "".join(hints))


def add_settings(parser: argparse.ArgumentParser, settings: type[Settings]) -> None:
    """Adds a flag for every setting; flags that are not given leave no trace."""
    groups: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        shown: Any = field.json_schema_extra
        group = groups.get(shown["group"])
        if group is None:
            group = groups[shown["group"]] = parser.add_argument_group(shown["group"])
        flag, choices = _flag(name), _choices(field)
        options: dict[str, Any] = {
            "dest": name, "default": argparse.SUPPRESS, "help": _help(field),
            "required": field.is_required(),
        }  # fmt: skip
        if field.annotation is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
            continue
        # Text is as good as anything for the settings, which say themselves what is wrong with it.
        kinds = (field.annotation, *get_args(field.annotation))
        nargs = "+" if tuple[str, ...] in kinds else None
        group.add_argument(
            flag, metavar=shown["metavar"], nargs=nargs, choices=choices,
            type=str.lower if choices else str, **options,
        )  # fmt: skip


def read_settings(
    settings: type[S], flags: Mapping[str, Any], config: str | Path | None = None
) -> S:
    """The effective settings: defaults, then the configuration file, then flags.

    Args:
        settings: what they are settings of.
        flags: those given on the command line, by name.
        config: path of a YAML file with settings, or None.

    Raises:
        InvalidArgument: the file cannot be read, or has an unknown key or a value of a wrong type.
    """
    values = {} if config is None else _read_yaml(Path(config))
    if any(name in flags for name in settings.alternatives):
        values = {n: v for n, v in values.items() if n not in settings.alternatives}
    places = {name: f"--config {config}: " for name in values if name not in flags}
    return settings.checked(values | dict(flags), places)


def _quieten_libraries() -> None:
    """Leaves the terminal to this program's own messages."""
    for name in ("optuna", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # a lost connection is told elsewhere
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # MLflow sets its level when imported

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if category.__module__.startswith("wpo_optuna"):
            print(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show  # type: ignore[assignment]


def _sentence(error: Exception, flags: Collection[str]) -> str:
    if isinstance(error, WeightProgrammingError):
        return _with_flags(str(error), flags)
    return f"{type(error).__name__}: {first_line(error)} (--debug shows where)"


def _with_flags(sentence: str, flags: Collection[str]) -> str:
    """A sentence about ``study_name = 'x'`` as one about ``--study-name 'x'``."""
    if sentence.startswith("--config"):
        return sentence  # it is about keys of a file

    def flagged(match: re.Match[str]) -> str:
        flag = _flag(match[match.lastindex or 0])
        return match[0] if flag not in flags else flag + " " * match[0].endswith(" ")

    subject, colon, rest = sentence.partition(": ")
    return _SUBJECT.sub(flagged, subject) + colon + _ADVICE.sub(flagged, rest)


def _flag(name: str) -> str:
    return "--" + name.rstrip("_").replace("_", "-")


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        # A few lines of them would stand for more than memory holds.
        has_aliases = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
        document = None if has_aliases else yaml.safe_load(text)
    except OSError as error:
        raise InvalidArgument(f"--config {path}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InvalidArgument(f"--config {path}: is not YAML ({reason}).") from error
    if has_aliases:
        raise InvalidArgument(f"--config {path}: aliases (*name) are not taken; write them out.")
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InvalidArgument(f"--config {path}: a mapping of settings to values is needed.")
    return {str(key).replace("-", "_"): value for key, value in document.items()}


def _help(field: FieldInfo) -> str:
    text = str(field.description).replace("%", "%%")
    if field.is_required() or field.default in (None, ()) or isinstance(field.default, bool):
        return text
    return f"{text} ({field.default})"


def _choices(field: FieldInfo) -> tuple[str, ...] | None:
    for kind in (field.annotation, *get_args(field.annotation)):
        if get_origin(kind) is Literal:
            return get_args(kind)
    return None
