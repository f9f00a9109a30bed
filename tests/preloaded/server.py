"""The server: imports modules, forks for each client, and tells it the program's process id and later its exit code.

python -m tests.preloaded.server SOCKET EXECUTABLE MODULE ...
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import select
import shutil
import signal
import socket
import struct
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

_NUMBER = struct.Struct("!i")


@dataclass
class _Running:
    """A program with its client; `end` is a descriptor that is readable once the program has ended."""

    process: int
    end: int
    client: socket.socket

    def close(self) -> None:
        os.close(self.end)
        self.client.close()


def serve(address: str) -> dict:
    """Fork for each client, until stdin is closed. Returns in each forked process, with what the client asks for."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    events = select.poll()
    events.register(0, 0)  # no event but the end of the process that started this one
    events.register(listener, select.POLLIN)
    running: dict[int, _Running] = {}  # by both descriptors
    print("ready", flush=True)
    while True:
        for descriptor, _ in events.poll():
            if descriptor == 0:
                for program in running.values():
                    os.kill(program.process, signal.SIGKILL)
                shutil.rmtree(Path(address).parent, ignore_errors=True)
                sys.exit()
            if descriptor == listener.fileno():
                client = listener.accept()[0]
                process = os.fork()
                if process == 0:
                    listener.close()
                    for number, program in running.items():
                        if number == program.end:
                            program.close()
                    return _receive(client)
                program = _Running(process, os.pidfd_open(process), client)
                running |= {program.end: program, client.fileno(): program}
                events.register(program.end, select.POLLIN)
                events.register(client, 0)
                client.sendall(_NUMBER.pack(process))
            elif descriptor in running:
                program = running[descriptor]
                if descriptor != program.end:  # the client was killed
                    os.kill(program.process, signal.SIGKILL)
                    events.unregister(descriptor)
                    continue
                code = os.waitstatus_to_exitcode(os.waitpid(program.process, 0)[1])
                with contextlib.suppress(OSError):
                    program.client.sendall(_NUMBER.pack(code))
                for number in (program.end, program.client.fileno()):
                    del running[number]
                    with contextlib.suppress(KeyError):
                        events.unregister(number)
                program.close()


def _receive(client: socket.socket) -> dict:
    """Return the client's request, after taking its streams for stdin, stdout and stderr."""
    length, streams, _, _ = socket.recv_fds(client, _NUMBER.size, 3)
    request = json.loads(client.recv(_NUMBER.unpack(length)[0], socket.MSG_WAITALL))
    client.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    return request


def become(request: dict, executable: str) -> None:
    """Make this process what a new Python with this request would be."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    real_parent, own = os.getppid, os.getpid()
    os.getppid = lambda: request["parent"] if os.getpid() == own else real_parent()
    sys.executable = executable
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)
    options = request["arguments"][: request["arguments"].index("-m")]
    by_line = os.isatty(1) or "-u" in options or "PYTHONUNBUFFERED" in os.environ
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", buffering=1 if by_line else -1, closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    first = [] if "-P" in options else [request["folder"]]
    sys.path[:0] = first + [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))


def main() -> None:
    """Serve; in each forked process, run the module that the client asks for as Python does."""
    address, executable, *modules = sys.argv[1:]
    gc.disable()  # nothing that is imported is garbage
    for module in modules:
        importlib.import_module(module)
    gc.enable()
    gc.freeze()  # so that a collection in a program does not copy the pages of all that was imported
    request = serve(address)
    become(request, executable)
    arguments = request["arguments"]
    module = arguments.index("-m") + 1
    sys.argv = arguments[module:]
    code = 0
    try:
        runpy.run_module(arguments[module], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        code = ended.code or 0
    # As Python ends, but without taking apart all that was imported, which takes half a second.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
