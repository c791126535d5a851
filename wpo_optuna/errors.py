"""The errors a user can mend: each one a single sentence."""

from __future__ import annotations


class WeightProgrammingError(Exception):
    """Something failed in a way the user can act on.

    The command line prints the message alone and exits with status 1.
    """


class InvalidArgument(WeightProgrammingError, ValueError):
    """An argument cannot be used; the message names it, its value and what is accepted."""
