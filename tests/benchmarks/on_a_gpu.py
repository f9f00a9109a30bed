"""All that this project wants measured on a GPU, in stages of one to three minutes, the most telling ones first.

    python3 -m venv .venv && .venv/bin/pip install --constraint constraints.txt --editable .
    .venv/bin/python -m tests.benchmarks.on_a_gpu                     # every stage that has not succeeded yet
    .venv/bin/python -m tests.benchmarks.on_a_gpu --minutes 10        # starts no stage that would end later
    .venv/bin/python -m tests.benchmarks.on_a_gpu --only steps-tiny   # this stage alone, again if need be
    .venv/bin/python -m tests.benchmarks.on_a_gpu --shards shards     # also accuracy, on the data sets that are there
    .venv/bin/python -m tests.benchmarks.on_a_gpu --tables            # the tables of what was measured, as Markdown

Each stage runs in processes of its own, and writes what it prints to FOLDER/STAGE.txt and its figures to
FOLDER/STAGE.jsonl, row by row. So a stage that is killed loses one row. A stage that fails or takes too long is ended
with all of its processes, and does not keep the next ones from running. The next start continues it: it measures
only what has no row yet, and resumes a training. A stage that has succeeded begins anew if `--only` names it.

Only files of this repository are needed, and for accuracy shards. docs/measurements/gpu-performance.md says how to run
this where nothing can be downloaded and nothing is kept. `--small` runs the stages at sizes for a CPU; the test suite
does, with the stand-in for CUDA.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from launcher.runs.history import History
from tests.benchmarks.rows import LEFT_OUT, read_rows, write_row

_MODULE = "tests.benchmarks."
_GRACE = 10.0  # seconds that a command whose time is over has for ending by itself; a training saves
_ACCURACY = {"cifar10": "convnet_cifar10", "cats-dogs": "convnext_atto_cats_dogs"}  # folder of the shards: recipe


@dataclass(frozen=True)
class Stage:
    """Commands that run one after another, each a module of Python and its arguments.

    The measurements of this folder take the option `--rows FILE` and append a row for each figure. For any other
    command, `run` writes a row once it has succeeded.

    Attributes:
        seconds: the time limit of all commands together.
        environment: variables for all commands, besides those of this process.
        needs: a folder without which the stage is not started; None: it needs none.
    """

    name: str
    seconds: int
    commands: list[list[str]]
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
    yield Stage("demo", 150, [*shards, train("ddp", "engine.zero=0"), train("zero1", "engine.zero=1")])
    fp16 = "engine.precision=fp16"
    yield Stage("fp16", 120, [train("fp16", fp16), train("profile", fp16, "--profile", "2")])
    yield Stage("waits", 90, [[f"{_MODULE}gpu_waits", *size]])
    yield Stage("depthwise", 60, [[f"{_MODULE}gpu_depthwise", *size]])
    memory = [[f"{_MODULE}gpu_memory", "--recipes", "convnext_tiny_in1k", *size]]
    yield Stage("memory", 90, memory)
    yield steps("steps-tiny", "convnext_tiny_in1k")
    yield Stage("compiled-ddp", 180, [[f"{_MODULE}gpu_compiled_ddp", *size]])
    calibrate = ["launcher", "plan", "convnext_tiny_in1k", "--calibrate"]
    # The measured rates are kept with the other results, and no later plan uses them.
    yield Stage("calibrate", 120, [calibrate], environment={"XDG_CONFIG_HOME": str(folder / "config")})
    yield Stage("ema", 60, [[f"{_MODULE}average_of_weights"]])
    yield Stage("several", 180, [[f"{_MODULE}gpu_several", *size]])
    yield Stage("decode", 60, [[f"{_MODULE}gpu_decode", *size]])
    for name, recipe in _ACCURACY.items():
        trained = ["--data", str(data / name), "--run-dir", str(folder / f"run-{name}")]
        yield Stage(f"accuracy-{name}", 300, [["launcher", "train", recipe, *trained]], needs=data / name)
    segments = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    yield Stage("memory-segments", 90, memory, environment=segments)
    yield steps("steps-base", "convnext_base_in1k")
    yield steps("steps-resnet", "resnet50_in1k_modern")
    yield steps("steps-xlarge", "convnext_xlarge_in22k")
    yield steps("steps-swin", "swin_tiny_in1k")
    recipes = ["convnext_base_in1k", "convnext_xlarge_in22k"]
    yield Stage("memory-large", 180, [[f"{_MODULE}gpu_memory", "--recipes", *recipes, *size]])


def run(stage: Stage, folder: Path) -> int | None:
    """Run what a stage lacks; return 0, the exit code of the command that failed, or None if it took too long."""
    rows, done = folder / f"{stage.name}.jsonl", folder / f"{stage.name}.done"
    if done.exists():
        _forget(stage, rows, done)
    ends = time.monotonic() + stage.seconds
    with (folder / f"{stage.name}.txt").open("a") as output:
        for command in stage.commands:
            measures = command[0].startswith(_MODULE)
            if not measures and any(_title(command).items() <= row.items() for row in read_rows(rows)):
                continue
            output.write(f"$ python -m {' '.join(command)}\n")
            output.flush()
            arguments = [sys.executable, "-m", *command, *(["--rows", str(rows)] if measures else [])]
            started = time.monotonic()
            code = _run_command(arguments, max(1.0, ends - started), output, os.environ | stage.environment)
            if code != 0:
                return code
            if not measures:
                for row in _outcome(command, stage):
                    write_row(rows, _title(command) | {"seconds": time.monotonic() - started} | row)
    done.touch()
    return 0


def _forget(stage: Stage, rows: Path, done: Path) -> None:
    """Remove what a stage that has succeeded left, so that it begins anew."""
    done.unlink()
    rows.unlink(missing_ok=True)
    for command in stage.commands:
        if run_directory := _run_directory(command):
            shutil.rmtree(run_directory, ignore_errors=True)


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


def _title(command: list[str]) -> dict[str, str]:
    """Return what tells a command from the others of its stage, without paths of this machine."""
    run_directory = _run_directory(command)
    return {"command": " ".join(command[1:3])} | ({"run": run_directory.name} if run_directory else {})


def _run_directory(command: list[str]) -> Path | None:
    return Path(command[command.index("--run-dir") + 1]) if "--run-dir" in command else None


def _outcome(command: list[str], stage: Stage) -> Iterator[dict]:
    """Yield what a command that takes no `--rows` has found: a training's accuracy, the rates of a calibration."""
    if run_directory := _run_directory(command):
        history = History(run_directory)
        start = history.starts[-1]
        yield {
            "top-1": history.last("top1"),
            "EMA top-1": history.last("ema_top1"),
            "images_per_second": history.images_per_second,
            "precision": start["precision"],
            "device": start["device"],
        }
    elif "--calibrate" in command:
        speeds = json.loads((Path(stage.environment["XDG_CONFIG_HOME"]) / "bigbatch" / "speeds.json").read_text())
        for device, found in speeds["devices"].items():
            for precision, rates in found["rates"].items():
                figures = {name: rates[name] for name in ("tflops", "gb_per_second")}
                yield {"precision": precision, **figures, "device": device}
    else:
        yield {"device": None}  # nothing that depends on it


def tables(folder: Path) -> str:
    """Return the rows of all stages as Markdown tables, and the names of those without any."""
    parts = []
    for stage in stages(folder, small=False, data=Path()):
        if rows := read_rows(folder / f"{stage.name}.jsonl"):
            columns = list(dict.fromkeys(column for row in rows for column in row if column != "device")) + ["device"]
            lines = [
                columns,
                ["---"] * len(columns),
                *([_shown(row.get(column)) for column in columns] for row in rows),
            ]
            finished = (folder / f"{stage.name}.done").exists()
            parts.append(f"### {stage.name}{'' if finished else ', not finished'}\n")
            parts += [*(f"| {' | '.join(line)} |" for line in lines), ""]
        else:
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
    ends = time.monotonic() + 60 * chosen.minutes
    failed, left_out = [], []
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
        code = run(stage, folder)
        took, file = f"{time.monotonic() - started:.0f} s", folder / f"{stage.name}.txt"
        if code == 0:
            print(f"{stage.name}: done in {took}", flush=True)
        elif code == LEFT_OUT:
            left_out.append(stage.name)
            print(
                f"{stage.name}: something was left out after {took}, see {file}; the next start continues", flush=True
            )
        else:
            failed.append(stage.name)
            why = f"stopped after {stage.seconds} s" if code is None else code
            print(f"{stage.name}: failed ({why}), see {file}", flush=True)
    print(json.dumps({"failed": failed, "left out": left_out}))
    sys.exit(1 if failed else LEFT_OUT if left_out else 0)


if __name__ == "__main__":
    # As after Ctrl-C, the stage ends with this process. A machine that is lent for minutes sends it.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    main()
