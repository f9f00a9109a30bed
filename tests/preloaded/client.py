"""Starts programs on the server: `Program` for tests, and as a script the program `python` for shells.

The script is started for every program, so this imports little.
"""

import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_NUMBER = struct.Struct("!i")
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Program:
    """A program of the server, with the part of the interface of `subprocess.Popen` that tests need.

    Args:
        address: the server's socket.
        arguments: of Python, e.g. ``["-m", "launcher", "recipes"]``.
        folder: the working directory; None: the one of this process.
        environment: None: that of this process.
        streams: file descriptors of stdin, stdout and stderr.
        parent: the process that the program takes for its parent.
    """

    def __init__(
        self,
        address: str,
        arguments: Sequence[str],
        *,
        folder: str | Path | None = None,
        environment: Mapping[str, str] | None = None,
        streams: tuple[int, int, int] = (0, 1, 2),
        parent: int | None = None,
    ):
        request = {
            "arguments": [*arguments],
            "folder": str(folder or Path.cwd()),
            "environment": dict(os.environ if environment is None else environment),
            "parent": parent or os.getpid(),
        }
        text = json.dumps(request).encode()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        socket.send_fds(self._connection, [_NUMBER.pack(len(text))], streams)
        self._connection.sendall(text)
        self.pid = self._receive()
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the program runs."""
        return self.wait(0)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end at most that many seconds; return the exit code, None while the program runs."""
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            self.returncode = self._receive()
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if the program still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the program, if it still runs; `wait` waits until it is gone."""
        self.send_signal(signal.SIGKILL)

    def _receive(self) -> int:
        received = self._connection.recv(_NUMBER.size, socket.MSG_WAITALL)
        if len(received) < _NUMBER.size:
            raise RuntimeError("the server of preloaded programs has ended")
        return int(_NUMBER.unpack(received)[0])


def main() -> None:
    """Run as `python`, until the program ends; then end as it did. The server kills the program of a killed client."""
    address, python, *arguments = sys.argv[1:]
    if next((word for word in arguments if word not in ("-P", "-u")), None) != "-m":
        os.execv(python, [python, *arguments])
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)  # until they can be forwarded
    program = Program(address, arguments, parent=os.getppid())
    for number in _FORWARDED:
        signal.signal(number, lambda number, _: program.send_signal(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    code = program.wait()
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
