"""ConvNeXt-XL for real: one optimizer step, save, resume and export under DDP and under ZeRO-3 with offload.

    python -m tests.benchmarks.xlarge SHARDS [--size 64] [--procs 2]

On a CPU the peak memory of a process says little about a GPU's, because offload stays in the same memory. So the
bytes of the tensors that a process holds are printed beside it.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from launcher.evaluation.export import export
from launcher.runs.run_directory import RunDirectory
from recipes.load import load
from recipes.schema import Recipe
from tests.launcher.process_group import Group, train_until

ENGINES = {
    "DDP": ["engine.zero=0"],
    "ZeRO-3, offload": ["engine.zero=3", "engine.offload=cpu", "engine.checkpoint_activations=true"],
}


def measured(recipe: Recipe, run: Path, step: int, micro_batch: int) -> None:
    """What each process runs: train, then print what the process holds and its peak memory."""
    from launcher.engines.base import Engine
    from launcher.engines.zero import Zero

    def report(engine: Engine) -> None:
        moments = sum(
            _gib(value)
            for held in engine.optimizer.state.values()
            for value in held.values()
            if isinstance(value, torch.Tensor)
        )
        weights = sum(_gib(getattr(parameter, "ds_tensor", parameter)) for parameter in engine.names)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"process {engine.accelerator.process_index}: {weights:.2f} GiB of weights, {moments:.2f} of moments, "
            f"peak {peak:.1f} resident"
        )

    setattr(Zero, "close", report)  # noqa: B010  # mypy refuses an assignment to a method
    setattr(Engine, "close", report)  # noqa: B010
    train_until(recipe, run, step=step, micro_batch=micro_batch)


def _gib(tensor: torch.Tensor) -> float:
    return tensor.numel() * tensor.element_size() / 2**30


@contextmanager
def timed(title: str) -> Iterator[None]:
    """Print how long the body took."""
    started = time.perf_counter()
    yield
    print(f"{title}: {time.perf_counter() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--procs", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    changes = [f"data.path={arguments.shards.resolve()}", "data.classes=null", f"input.size={arguments.size}"]
    changes += ["batch.global=8", "batch.slices=2", "engine.precision=float32"]
    for title, engine in ENGINES.items():
        with tempfile.TemporaryDirectory() as folder:
            run, recipe = Path(folder) / "run", load("convnext_xlarge_in22k", [*changes, *engine])
            print(f"== {title}: {arguments.procs} processes, {arguments.size} px")

            for title_of_part, step in (("start, one step, save", 1), ("resume, one more step, save", 2)):
                with timed(title_of_part):
                    Group(arguments.procs, recipe, run, measured, step=step, micro_batch=2).finish(seconds=1500)
            with timed("export"):
                export(RunDirectory(run), Path(folder) / "xlarge.safetensors")
            print(
                "\n".join(
                    line
                    for line in run.with_name("run.log").read_text().splitlines()
                    if line.startswith(("process", "conv"))
                )
            )


if __name__ == "__main__":
    main()
