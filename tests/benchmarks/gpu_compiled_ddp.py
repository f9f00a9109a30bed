"""Compiled blocks under DDP, whole and cut at DDP's buckets (`torch._dynamo.config.optimize_ddp`), on one GPU.

    python -m tests.benchmarks.gpu_compiled_ddp [--small]

`models.build.compile_blocks` keeps the blocks whole. The process group has one rank, so nothing is sent: what differs
is the compiled code alone. On several GPUs, cut blocks could hide more of the all-reduce.
"""

import argparse

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from launcher.engines.arithmetic import set_arithmetic
from models.build import compile_blocks
from models.prepared import prepare_model
from recipes.load import load
from tests.benchmarks.gpu_step import LARGE, SMALL, changes_to, measure, needs_a_gpu
from tests.benchmarks.rows import add_rows_option, is_measured, write_row

_RECIPE = "convnext_tiny_in1k"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model and tiny images")
    parser.add_argument("--seconds", type=float, default=4.0, help="time to measure each")
    add_rows_option(parser)
    chosen = parser.parse_args()
    device, images = needs_a_gpu(), (SMALL if chosen.small else LARGE)[_RECIPE]
    recipe = load(_RECIPE, changes_to(_RECIPE, images, chosen.small))
    assert recipe.data.classes is not None
    set_arithmetic()
    distributed.init_process_group("nccl", store=distributed.HashStore(), rank=0, world_size=1)
    for cut in (False, True):
        blocks = "cut at buckets" if cut else "whole"
        if is_measured(chosen.rows, blocks=blocks):
            continue
        torch.compiler.reset()
        prepared = prepare_model(recipe, recipe.data.classes)
        model = prepared.module.to(device).to(memory_format=torch.channels_last).train()
        compile_blocks(model)
        torch._dynamo.config.optimize_ddp = cut
        parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
        pixels = torch.rand(images, 3, recipe.input.size, recipe.input.size, device=device)
        pixels = pixels.contiguous(memory_format=torch.channels_last)

        def step() -> None:
            prepared.drop_path.draw(0, torch.arange(images, device=device))  # noqa: B023 - called in this iteration
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits = parallel(pixels)  # noqa: B023
            logits.float().log_softmax(dim=-1).mean().backward()
            parallel.zero_grad(set_to_none=False)  # noqa: B023

        row = {"blocks": blocks, **measure(step, images, device, chosen.seconds)}
        print(row, flush=True)
        write_row(chosen.rows, row)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
