"""The one exception that means "the user can fix this": shown as a sentence, never as a traceback."""


class UserError(ValueError):
    """A mistake in what the user gave us; its message is one sentence that says what to do.

    The command line prints it and exits with code 2.
    """
