"""Errors and warnings: one sentence each, no traceback."""

import sys

from runtime.rank import is_main


class UserError(Exception):
    """An error that the user can fix. The message names the thing and the way out; the exit code is 2.

    found_by_all: all processes of a run find it, and the first one reports it.
    """

    def __init__(self, message: str, found_by_all: bool = False):
        super().__init__(message)
        self.already_reported = found_by_all and not is_main()  # or set where another process has raised it


class Complete(Exception):
    """The run to resume is already finished. args: its folder, its epochs."""

    def __str__(self) -> str:
        return "{} is complete: {} epochs (more with --num_epochs)".format(*self.args)


def warn(message: str) -> None:
    """One line on standard error, from the first process."""
    if is_main():
        print(one_line(f"warning: {message}"), file=sys.stderr)


def one_line(text: str) -> str:
    """The text with line breaks and other control characters escaped: names that a user gives may contain them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def first_words(error: Exception) -> str:
    """The beginning of an error message, on one line, to be quoted in a UserError."""
    return " ".join(str(error).split())[:200]
