"""The one exception that means: whoever gave the command can mend this."""


class UserError(Exception):
    """Told in one sentence that names the thing and the way out; ends a script with exit code 2, no traceback.

    told: another process of the same run tells it.
    """

    told = False


class Complete(Exception):
    """There is nothing left to do: the run that was to be continued has reached its end."""
