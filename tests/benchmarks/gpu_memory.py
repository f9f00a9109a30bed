"""Peak memory of real steps on a GPU, measured and predicted: the table that docs/measurements/plan-accuracy.md lacks.

    python -m tests.benchmarks.gpu_memory [--recipes convnext_tiny_in1k ...] [--micro-batches 16 32 64]

bf16, the memory of DDP in one process. `predicted` excludes the allowance; compare it with `allocated`, which torch
reports. `reserved` is what torch's allocator took, and `used` is everything the driver counts. The allowance of
`launcher.planning.memory_model` should follow from these two. The last column is TFLOP/s, for `bigbatch plan
--tflops`.
"""

import argparse
import time

import torch

from launcher.cut import cut_batch
from launcher.engines.base import make_accelerator
from launcher.engines.data_parallel import DataParallel
from launcher.planning.engine_rules import with_default_engine
from launcher.planning.memory_model import predict_memory
from launcher.planning.model_profile import profile_model
from models.prepared import prepare_model
from recipes.load import load
from tests.benchmarks.gpu_step import needs_a_gpu
from tests.benchmarks.rows import add_rows_option, is_measured, write_row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipes", nargs="+", default=["convnext_tiny_in1k", "convnext_base_in1k", "convnext_xlarge_in22k"]
    )
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[16, 32, 64])
    parser.add_argument("--small", action="store_true", help="a tiny model and tiny images instead")
    add_rows_option(parser)
    arguments = parser.parse_args()
    needs_a_gpu()
    small = ["model.name=test_convnext", "input.size=32"] if arguments.small else []
    print("recipe, micro-batch: predicted, allocated, error, reserved, used (GiB); TFLOP/s")
    for name in arguments.recipes:
        left = [
            size for size in arguments.micro_batches if not is_measured(arguments.rows, recipe=name, micro_batch=size)
        ]
        if not left:
            continue
        recipe = with_default_engine(load(name, ["engine.precision=bf16", *small]))
        profile = profile_model(recipe, "bf16")
        assert recipe.data.classes is not None
        prepared = prepare_model(recipe, recipe.data.classes)
        engine = DataParallel(recipe, prepared.module.train(), make_accelerator(recipe))
        for micro_batch in left:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            for _ in range(2):  # the second is the one timed
                torch.cuda.synchronize()
                started = time.perf_counter()
                for last in (False, True):
                    images = torch.zeros(micro_batch, 3, recipe.input.size, recipe.input.size, device="cuda")
                    images = images.contiguous(memory_format=torch.channels_last)  # as training gets them
                    prepared.drop_path.draw(0, torch.arange(micro_batch, device="cuda"))
                    with engine.micro_batch(last_of_step=last):
                        engine.backward(engine.forward(images).float().log_softmax(dim=-1).mean(dim=-1).sum())
                engine.update(1e-6)
                torch.cuda.synchronize()
                seconds = time.perf_counter() - started
            predicted = predict_memory(recipe, profile, cut_batch(recipe, 1, micro_batch, micro_batch)).tensors
            allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            free, total = torch.cuda.mem_get_info()
            sizes = " ".join(f"{value / 2**30:.2f}" for value in (predicted, allocated))
            others = " ".join(f"{value / 2**30:.2f}" for value in (reserved, total - free))
            tflops = 2 * micro_batch * 6 * profile.multiply_adds / seconds / 1e12
            print(f"{name}, {micro_batch}: {sizes} {predicted / allocated - 1:+.1%} {others}; {tflops:.1f}", flush=True)
            measured = {"predicted": predicted, "allocated": allocated, "reserved": reserved, "used": total - free}
            gib = {kind: value / 2**30 for kind, value in measured.items()}
            write_row(arguments.rows, {"recipe": name, "micro_batch": micro_batch, **gib, "tflops": tflops})
        del engine, prepared


if __name__ == "__main__":
    main()
