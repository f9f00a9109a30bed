"""The exception for mistakes that the user can fix: shown as one sentence, never as a traceback."""


class UserError(ValueError):
    """A mistake in the user's input; the message is one sentence that says what is wrong and what to do.

    The command line prints the message and exits with code 2.
    """
