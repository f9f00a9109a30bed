"""The exceptions for mistakes that the user can fix, and for errors in the user's own code."""


class UserError(ValueError):
    """A mistake in the user's input; the message is one sentence that says what is wrong and what to do.

    The command line prints the message and exits with code 2, without a traceback.
    """


class UserCodeError(UserError):
    """An error that the user's own code has raised; the command line prints the traceback below the message.

    Attributes:
        traceback: the formatted traceback, from the user's code on. It is text, so that loader workers can send it.
    """

    def __init__(self, message: str, traceback: str):
        super().__init__(message, traceback)
        self.traceback = traceback

    def __str__(self) -> str:
        return str(self.args[0])

    def with_prefix(self, prefix: str) -> "UserCodeError":
        """Return the same error with a prefix, e.g. the rank, before its message."""
        return UserCodeError(f"{prefix}{self}", self.traceback)
