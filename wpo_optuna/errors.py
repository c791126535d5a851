"""The errors a user can mend: each one a single sentence."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


class WeightProgrammingError(Exception):
    """Something failed in a way the user can act on.

    The command line prints the message alone and exits with status 1.
    """


class InvalidArgument(WeightProgrammingError, ValueError):
    """An argument cannot be used; the message names it, its value and what is accepted."""


def first_line(error: BaseException) -> str:
    """The first line of another library's message without its full stop, to quote in one's own."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


def check_options(constructor: Callable[..., Any], options: Mapping[str, Any], owner: str) -> None:
    """Refuses options that a constructor does not take.

    Args:
        constructor: a class or function.
        options: what is to be given to it by name.
        owner: what the options belong to, for the message.

    Raises:
        InvalidArgument: there is no such option.
    """
    known = list(inspect.signature(constructor).parameters)
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known) or f"; known are {', '.join(known)}"
            raise InvalidArgument(f"{owner} has no option {name!r}{hint}.")


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """A suggestion to put behind a message, such as " (did you mean 'cmaes'?)"; else nothing."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_choice(argument: str, value: object, accepted: Sequence[str]) -> None:
    """Refuses a value that is not one of those accepted, and suggests the nearest.

    Raises:
        InvalidArgument: it is none of them.
    """
    if value not in accepted:
        raise InvalidArgument(
            f"{argument} = {value!r}: one of {', '.join(accepted)} is needed"
            f"{did_you_mean(value, accepted)}."
        )
