"""All that this project wants measured on a GPU, in stages of one to three minutes, the most telling ones first.

    python3 -m venv .venv && .venv/bin/pip install --constraint constraints.txt --editable .
    .venv/bin/python -m tests.benchmarks.on_a_gpu                     # every stage that has not succeeded yet
    .venv/bin/python -m tests.benchmarks.on_a_gpu --minutes 10        # starts no stage that would end later
    .venv/bin/python -m tests.benchmarks.on_a_gpu --only steps-tiny   # this stage alone, again if need be
    .venv/bin/python -m tests.benchmarks.on_a_gpu --shards shards     # also accuracy, on the data sets that are there
    .venv/bin/python -m tests.benchmarks.on_a_gpu --tables            # the tables of what was measured, as Markdown

Each stage runs in processes of its own, and writes what it prints to FOLDER/STAGE.txt and its figures to
FOLDER/STAGE.jsonl, row by row. So a stage that is killed loses one row. A stage that fails or takes too long is ended
with all of its processes, does not keep the next ones from running, and is tried again by the next start. A training
that was stopped resumes.

Only files of this repository are needed, and for accuracy shards. docs/measurements/gpu-performance.md says how to run
this where nothing can be downloaded and nothing is kept. `--small` runs the stages at sizes for a CPU; the test suite
does, with the stand-in for CUDA.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tests.benchmarks.rows import read_rows

_MODULE = "tests.benchmarks."
_GRACE = 10.0  # seconds that a command whose time is over has for ending by itself; a training saves
_ACCURACY = {"cifar10": "convnet_cifar10", "cats-dogs": "convnext_atto_cats_dogs"}  # folder of the shards: recipe


@dataclass(frozen=True)
class Stage:
    """Commands that run one after another, each a module of Python and its arguments.

    Attributes:
        seconds: the time limit of all commands together.
        environment: variables for all commands, besides those of this process.
        needs: a folder without which the stage is not started; None: it needs none.
        rows: whether the commands take the option `--rows FILE`, to which they append a row for each figure.
    """

    name: str
    seconds: int
    commands: list[list[str]]
    rows: bool = True
    needs: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)


def stages(folder: Path, small: bool, data: Path) -> Iterator[Stage]:
    """Yield the stages, the most telling first.

    Args:
        folder: for results and runs.
        small: sizes for a CPU.
        data: holds the shards for the stages that measure accuracy.
    """
    size = ["--small"] if small else []
    digits = str(folder / "digits")
    short = ["--data", digits, "schedule.epochs=2", "schedule.warmup_epochs=0", "batch.global=256"]

    def train(name: str, *changes: str) -> list[str]:
        return ["launcher", "train", "demo", *short, "--run-dir", str(folder / f"run-{name}"), *changes]

    def steps(name: str, recipe: str, seconds: int = 170) -> Stage:
        minutes = str(seconds / 60 - 0.5)
        return Stage(name, seconds, [[f"{_MODULE}gpu_step", "--recipes", recipe, "--minutes", minutes, *size]])

    shards = [] if (folder / "digits").exists() else [["launcher", "shard", "digits", digits, "--val-fraction", "0.2"]]
    # On wheels alone, without nvcc.
    yield Stage("demo", 150, [*shards, train("ddp", "engine.zero=0"), train("zero1", "engine.zero=1")], rows=False)
    fp16 = "engine.precision=fp16"
    yield Stage("fp16", 120, [train("fp16", fp16), train("profile", fp16, "--profile", "2")], rows=False)
    yield Stage("waits", 90, [[f"{_MODULE}gpu_waits", *size]])
    yield Stage("depthwise", 60, [[f"{_MODULE}gpu_depthwise", *size]])
    memory = [[f"{_MODULE}gpu_memory", "--recipes", "convnext_tiny_in1k", *size]]
    yield Stage("memory", 90, memory)
    yield steps("steps-tiny", "convnext_tiny_in1k")
    yield Stage("compiled-ddp", 180, [[f"{_MODULE}gpu_compiled_ddp", *size]])
    calibrate = ["launcher", "plan", "convnext_tiny_in1k", "--calibrate"]
    yield Stage("calibrate", 120, [calibrate], rows=False)
    yield Stage("ema", 60, [[f"{_MODULE}average_of_weights"]], rows=False)
    yield Stage("several", 180, [[f"{_MODULE}gpu_several", *size]])
    yield Stage("decode", 60, [[f"{_MODULE}gpu_decode", *size]])
    for name, recipe in _ACCURACY.items():
        trained = ["--data", str(data / name), "--run-dir", str(folder / f"run-{name}")]
        yield Stage(f"accuracy-{name}", 300, [["launcher", "train", recipe, *trained]], rows=False, needs=data / name)
    segments = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    yield Stage("memory-segments", 90, memory, environment=segments)
    yield steps("steps-base", "convnext_base_in1k")
    yield steps("steps-resnet", "resnet50_in1k_modern")
    yield steps("steps-xlarge", "convnext_xlarge_in22k")
    yield steps("steps-swin", "swin_tiny_in1k")
    recipes = ["convnext_base_in1k", "convnext_xlarge_in22k"]
    yield Stage("memory-large", 180, [[f"{_MODULE}gpu_memory", "--recipes", *recipes, *size]])


def run(stage: Stage, folder: Path) -> bool:
    """Run a stage; return whether all of its commands succeeded in time."""
    rows, text, ends = folder / f"{stage.name}.jsonl", folder / f"{stage.name}.txt", time.monotonic() + stage.seconds
    rows.unlink(missing_ok=True)
    with text.open("w") as output:
        for command in stage.commands:
            arguments = [sys.executable, "-m", *command, *(["--rows", str(rows)] if stage.rows else [])]
            output.write(f"$ python -m {' '.join(command)}\n")
            output.flush()
            left = max(1.0, ends - time.monotonic())
            code = _run_command(arguments, left, output, os.environ | stage.environment)
            if code != 0:
                why = f"stopped after {stage.seconds} s" if code is None else code
                print(f"{stage.name}: failed ({why}), see {text}", flush=True)
                return False
    (folder / f"{stage.name}.done").touch()
    return True


def _run_command(arguments: list[str], seconds: float, output: IO[str], environment: dict[str, str]) -> int | None:
    """Return the exit code of a command, or None if it took too long. No process that it started outlives it."""
    # A session of its own, so that its ranks and loader processes can be ended with it. Ctrl-C does not reach them
    # then, but `finally` does.
    process = subprocess.Popen(
        arguments, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let a command end by itself if it still runs, and kill what is left of its session."""
    try:
        if process.poll() is None:
            process.terminate()  # it tells its ranks
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
    finally:
        with suppress(ProcessLookupError, PermissionError):  # there is nothing left; macOS names it differently
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def tables(folder: Path) -> str:
    """Return the rows of all stages as Markdown tables, and the names of those without any."""
    parts = []
    for stage in stages(folder, small=False, data=Path()):
        if rows := read_rows(folder / f"{stage.name}.jsonl"):
            columns = list(dict.fromkeys(column for row in rows for column in row))
            lines = [
                columns,
                ["---"] * len(columns),
                *([_shown(row.get(column)) for column in columns] for row in rows),
            ]
            parts += [f"### {stage.name}\n", *(f"| {' | '.join(line)} |" for line in lines), ""]
        elif stage.rows:
            parts.append(f"{stage.name}: not measured\n")
    return "\n".join(parts)


def _shown(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else "" if value is None else str(value)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/on-a-gpu"), help="where the results are kept")
    names = [stage.name for stage in stages(Path(), small=False, data=Path())]
    parser.add_argument("--only", nargs="+", choices=names, help="these stages, also if they have succeeded before")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="time in which the last stage has to end")
    data = "folder with the shards of CIFAR-10 in cifar10 and of cats and dogs in cats-dogs"
    parser.add_argument("--shards", type=Path, default=Path("shards"), help=data)
    parser.add_argument("--small", action="store_true", help="tiny models and images")
    parser.add_argument(
        "--tables", action="store_true", help="print the tables of what was measured, and measure nothing"
    )
    chosen = parser.parse_args(arguments)
    folder: Path = chosen.folder.resolve()
    if chosen.tables:
        print(tables(folder))
        return
    folder.mkdir(parents=True, exist_ok=True)
    ends, failed = time.monotonic() + 60 * chosen.minutes, []
    for stage in stages(folder, chosen.small, chosen.shards.resolve()):
        if stage.name not in chosen.only if chosen.only else (folder / f"{stage.name}.done").exists():
            continue
        if stage.needs and not stage.needs.exists():
            print(f"{stage.name}: not started, there is no {stage.needs}", flush=True)
            continue
        if time.monotonic() + stage.seconds + _GRACE > ends:
            print(f"{stage.name}: not started, it may take {stage.seconds} s", flush=True)
            continue
        started = time.monotonic()
        if run(stage, folder):
            print(f"{stage.name}: done in {time.monotonic() - started:.0f} s", flush=True)
        else:
            failed.append(stage.name)
    print(json.dumps({"failed": failed}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    # As after Ctrl-C, the stage ends with this process. A machine that is lent for minutes sends it.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    main()
