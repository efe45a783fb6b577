"""The two exceptions that end a script with one sentence instead of a traceback."""


class UserError(Exception):
    """An error that the user can fix. The message names the thing and the way out; the exit code is 2.

    already_reported: another process of the same run prints it.
    """

    already_reported = False


class Complete(Exception):
    """Nothing is left to do: the run that was to be resumed has reached its end."""
