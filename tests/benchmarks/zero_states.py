"""What each engine really holds of the states with 2 processes, beside the prediction.

    python -m tests.benchmarks.zero_states SHARDS

Bytes of all tensors alive in a process right after the last backward pass of the third step, less those that are there
without an engine, for ConvNeXt-atto at 32 px with an average. Activations are gone by then; so are, at stage 2, the bucket
and all but one gradient, which the prediction counts for the moment of the peak: they are taken off it here.
"""

import argparse
import gc
import tempfile
import warnings
from pathlib import Path

import torch

from launcher.cut import cut_batch
from launcher.engine_choice import plainest_engine
from launcher.memory_model import predict_memory
from launcher.model_needs import Activations, ModelNeeds
from recipes.load import load
from recipes.schema import Recipe
from tests.launcher.process_group import Group, train_until


def alive() -> int:
    """Bytes of the storages of all tensors of this process."""
    warnings.simplefilter("ignore")
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type == "cpu":
            for tensor in (thing, thing.grad) if thing.is_leaf else (thing,):
                if tensor is not None:
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def measured(recipe: Recipe, run: Path, step: int, micro_batch: int) -> None:
    """What each process runs: train, and print what is held before every update."""
    from launcher.engine import Engine
    from launcher.loop import Training

    update, train = Engine.update, Training.train
    before = 0

    def train_counted(self, start):
        nonlocal before
        before = sum(tensor.untyped_storage().nbytes() for tensor in (self.finisher.noise, self.finisher.scale, self.finisher.shift))
        return train(self, start)

    def update_counted(self, lr):
        if self.is_main:
            count = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in self.names)
            print(f"held {alive() - before} {count}")
        update(self, lr)

    Training.train, Engine.update = train_counted, update_counted
    train_until(recipe, run, step=step, micro_batch=micro_batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    shards = parser.parse_args().shards.resolve()
    changes = [f"data.path={shards}", "model.name=convnext_atto", "batch.global=8", "batch.slices=2", "input.size=32", "ema.decay=0.99"]
    for zero in range(4):
        recipe = plainest_engine(load("demo", [*changes, "engine.precision=float32", f"engine.zero={zero}"]))
        with tempfile.TemporaryDirectory() as folder:
            Group(2, recipe, Path(folder) / "run", measured, step=3, micro_batch=2).finish()
            lines = [line for line in (Path(folder) / "run.log").read_text().splitlines() if line.startswith("held")]
        held, parameters = map(int, lines[-1].split()[1:])
        nothing = Activations([(0.0, 0.0)], 0)
        memory = predict_memory(recipe, ModelNeeds(parameters, 0, 0, False, nothing, None), cut_batch(recipe, 2, 2, largest=2))
        predicted = memory.parameters + memory.gradients + memory.optimizer + memory.ema
        if zero == 1:
            predicted -= memory.gradients // 2  # at the end of a step, of the gradients the own part is left
        elif zero == 2:
            predicted -= memory.gradients // 2
        elif zero == 3:
            predicted += memory.engine - 4 * parameters  # the bucket stays, gathered parameters do not
        print(f"stage {zero}: predicted {predicted / 2**20:.1f} MiB, held {held / 2**20:.1f} MiB, {predicted / held - 1:+.1%}", flush=True)


if __name__ == "__main__":
    main()
