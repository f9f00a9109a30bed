"""A preloaded program behaves as one of a new Python: tests that use it see what a user would see."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.preloaded import Server

PROGRAM = """
import json, os, random, signal, sys, time
wanted = sys.argv[1] if len(sys.argv) > 1 else "describe"
if wanted == "describe":
    seen = {"folder": os.getcwd(), "arguments": sys.argv[1:], "variable": os.environ.get("VARIABLE"),
            "stdin": sys.stdin.read(), "parent": os.getppid(), "random": random.random(),
            "executable": sys.executable, "left": getattr(json, "left", None)}
    json.left = "something"
    print(json.dumps(seen))
elif wanted == "fail":
    raise RuntimeError("a defect")
elif wanted == "exit":
    print("to stderr", file=sys.stderr)
    sys.exit(7)
elif wanted == "stop":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    print(os.getpid(), flush=True)
    time.sleep(60)
elif wanted == "die":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def python() -> str:
    return str(Server(()).python)


@pytest.fixture
def run(python, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)

    def run(*arguments: str, **options) -> subprocess.CompletedProcess:
        command = [python, "-m", "program", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, **options)

    return run


def test_it_has_its_own_folder_arguments_environment_and_streams(run, python, tmp_path):
    seen = json.loads(run("describe", "a b", env={**os.environ, "VARIABLE": "set"}, input="typed").stdout)
    assert seen["folder"] == str(tmp_path) and seen["arguments"] == ["describe", "a b"]
    assert (seen["variable"], seen["stdin"]) == ("set", "typed")
    assert (seen["parent"], seen["executable"]) == (os.getpid(), python)


def test_it_inherits_nothing_from_an_earlier_program(run):
    first, second = (json.loads(run(input="").stdout) for _ in range(2))
    assert first["left"] is second["left"] is None
    assert first["random"] != second["random"]


@pytest.mark.parametrize(
    ("wanted", "code", "printed"),
    [("exit", 7, "to stderr\n"), ("fail", 1, "RuntimeError: a defect\n"), ("die", -signal.SIGKILL, "")],
)
def test_it_ends_as_a_new_python_does(run, wanted, code, printed):
    done = run(wanted)
    assert done.returncode == code and done.stderr.endswith(printed)
    assert ("Traceback" in done.stderr) == (wanted == "fail")


def test_a_signal_reaches_it_and_a_killed_one_is_gone(python, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    for number, code in ((signal.SIGTERM, 5), (signal.SIGKILL, -signal.SIGKILL)):
        command = [python, "-m", "program", "stop"]
        started = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        program = int(started.stdout.readline())
        started.send_signal(number)
        assert started.wait(60) == code
        deadline = time.monotonic() + 60
        while Path(f"/proc/{program}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        started.stdout.close()


def test_what_it_does_not_understand_is_left_to_the_real_python(python):
    done = subprocess.run([python, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() != python
