"""How a process ended, in words."""

import signal


def describe_exit(code: int) -> str:
    """Return how a process ended, to follow its name in a sentence.

    Args:
        code: exit code as `subprocess` and `multiprocessing` give it: negative for the signal that killed the process.
    """
    if code == -signal.SIGKILL:
        return "was killed by signal 9 (SIGKILL), most often because the machine or the job ran out of memory"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "an unknown signal"
        return f"was killed by signal {-code} ({name})"
    return f"ended with exit code {code}"
