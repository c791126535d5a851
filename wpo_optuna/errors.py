"""The errors a user can mend: each one a single sentence."""

from __future__ import annotations


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
