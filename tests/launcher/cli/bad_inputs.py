"""Inputs that no command can use, and a way to run a command on them in this process.

Every maker in `KINDS` puts a bad input at a path and returns the path to give to the command.
"""

import contextlib
import ctypes
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from launcher.cli.main import main

_SECONDS = 120  # a command that takes longer waits for something that never comes, such as the other end of a FIFO


def _image(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path, "PNG")


def _locked(path: Path) -> Path:
    """A file in a folder that may not be searched."""
    folder = path.parent / "locked"
    folder.mkdir()
    (folder / path.name).write_text("x: 1\n")
    folder.chmod(0)
    return folder / path.name


def _unreadable_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0)


def _unreadable(path: Path) -> None:
    path.write_text("x: 1\n")
    path.chmod(0)


KINDS: dict[str, Callable[[Path], Path | None]] = {
    "missing": lambda path: None,
    "empty file": lambda path: path.touch(),
    "text": lambda path: path.write_text("hello\n") and None,
    "image": _image,
    "pickle": lambda path: path.write_bytes(pickle.dumps(print)) and None,
    "empty JSON": lambda path: path.write_text("{}") and None,
    "JSON of other types": lambda path: path.write_text('[null, {"a": [1]}]') and None,
    "nested too deeply": lambda path: path.write_text("[" * 100_000) and None,
    "TOML that is nested too deeply": lambda path: path.write_text("x = " + "[" * 100_000) and None,
    "number": lambda path: path.write_text("7\n") and None,
    "UTF-16": lambda path: path.write_bytes("model: {name: convnext_tiny}\n".encode("utf-16")) and None,
    "Latin-1": lambda path: path.write_bytes("summary: größer\n".encode("latin-1")) and None,
    "NUL bytes": lambda path: path.write_bytes(bytes(512)) and None,
    "empty folder": lambda path: path.mkdir(),
    "dangling link": lambda path: path.symlink_to(path.parent / "nowhere"),
    "link to itself": lambda path: path.symlink_to(path),
    "FIFO": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/null"),
    "unreadable file": _unreadable,
    "unreadable folder": _unreadable_folder,
    "in an unreadable folder": _locked,
    "below a file": lambda path: Path("/etc/passwd") / path.name,
    "name too long": lambda path: path.with_name("n" * 300 + path.suffix),
    "path too long": lambda path: path.parent / ("folder/" * 1000) / path.name,
    "control characters": lambda path: path.with_name("a\n\x1b[31mb" + path.suffix),
    "name in another encoding": lambda path: path.with_name(os.fsdecode(b"gr\xf6\xdfe") + path.suffix),
}


NAMES = ("control characters", "name in another encoding")  # kinds whose name a message shows escaped


class _Capabilities(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


@contextlib.contextmanager
def permissions_enforced() -> Iterator[None]:
    """Make the modes of files count for this thread, also for root, which otherwise may read and write everything."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    before, without = (_Capabilities * 2)(), (_Capabilities * 2)()
    for found in (before, without):
        assert libc.capget(header, found) == 0
    without[0].effective &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, without) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


class HungError(BaseException):  # which no handler of a command catches
    """The command does not end."""


def run(arguments: list[str]) -> int | str:
    """Run a command in this process; return its exit code, or what went wrong instead of one."""

    def hung(*_: object) -> None:
        raise HungError

    previous_arguments, previous_handler = sys.argv, signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    sys.argv = ["bigbatch", *arguments]
    try:
        with permissions_enforced():
            main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except HungError:
        return "it hangs"
    except Exception as error:  # what a user would see as a traceback
        return f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous_handler)
        sys.argv = previous_arguments
    return 0
