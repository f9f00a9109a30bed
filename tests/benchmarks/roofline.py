"""Where the time of a training step must go: arithmetic and bytes of every operation, counted without a GPU.

    python -m tests.benchmarks.roofline [--recipes convnext_tiny_in1k ...] [--tflops 800] [--bandwidth 3.35]

One forward and backward pass in bf16 runs on torch's fake tensors, with the operations that autocast on a GPU keeps
in float32. An operation takes as long as its arithmetic at `--tflops` or its inputs and outputs at `--bandwidth`
(TB/s), whichever is longer. "one by one" is the limit for operations that are started one after the other. "all
fused" is the limit for a compiler that fuses everything else into convolutions and matrix products. The defaults
describe an H100 SXM: the bandwidth of its memory, and a bf16 rate that large matrix products reach.
"""

import argparse
from collections import defaultdict

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from launcher.planning.operation_cost import operation_cost
from launcher.planning.step_trace import autocast_of_a_gpu
from models import batch_norm, stochastic_depth
from models.build import build
from recipes.load import load

RECIPES = [
    "convnext_tiny_in1k",
    "convnext_base_in1k",
    "convnext_xlarge_in22k",
    "resnet50_in1k_modern",
    "swin_tiny_in1k",
]
KINDS = {"depthwise": "depthwise convolutions", "conv": "other convolutions", "mm": "matrix products", "norm": "norms"}


class Operations(TorchDispatchMode):
    """FLOPs and bytes of every operation, by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if cost := operation_cost(function, args, kwargs or {}, result):
            self.found[_kind(function.name(), args)].append((cost.flops, cost.bytes))
        return result


def _kind(name: str, args: tuple) -> str:
    if "convolution" in name:
        groups = next(arg for arg in reversed(args) if isinstance(arg, int) and not isinstance(arg, bool))
        return KINDS["depthwise" if groups > 32 else "conv"]
    if name.split("::")[1].split(".")[0] in ("mm", "addmm", "bmm", "baddbmm") or "attention" in name:
        return KINDS["mm"]
    return KINDS["norm"] if "norm" in name else "the rest"


def operations(name: str, micro_batch: int) -> dict[str, list[tuple[float, float]]]:
    recipe = load(name)
    with torch.device("meta"):
        model = build(recipe, recipe.data.classes or 1000).to(memory_format=torch.channels_last)
    depth = stochastic_depth.attach(model, recipe.seed)
    batch_norm.attach(model, micro_batch)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu").train()
        images = torch.empty(micro_batch, 3, recipe.input.size, recipe.input.size).contiguous(
            memory_format=torch.channels_last
        )
        depth.use(torch.empty(len(depth.branches), micro_batch))
        with Operations() as counted, autocast_of_a_gpu():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(images)
            logits.float().log_softmax(-1).mean().backward()
    return counted.found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--tflops", type=float, default=800)
    parser.add_argument("--bandwidth", type=float, default=3.35)
    arguments = parser.parse_args()
    rate, bandwidth, images = arguments.tflops * 1e12, arguments.bandwidth * 1e12, arguments.micro_batch
    for name in arguments.recipes:
        found = operations(name, images)
        limits = {
            kind: sum(max(flops / rate, size / bandwidth) for flops, size in each) / images
            for kind, each in found.items()
        }
        fused = (
            sum(max(flops / rate, size / bandwidth) for each in found.values() for flops, size in each if flops)
            / images
        )
        arithmetic = sum(flops for each in found.values() for flops, _ in each) / rate / images
        total = sum(limits.values())
        launched = sum(len(each) for each in found.values())
        print(
            f"{name}: {launched:,} operations; {1 / total:,.0f} images/s one by one, {1 / fused:,.0f} all fused, "
            f"{1 / arithmetic:,.0f} by arithmetic"
        )
        for kind, seconds in sorted(limits.items(), key=lambda item: -item[1]):
            flops, size = (sum(column) / images for column in zip(*found[kind]))
            print(
                f"  {kind:>22} {seconds / total:6.1%}  {flops / 1e9:7.2f} GFLOP  {size / 1e6:8.1f} MB per image",
                flush=True,
            )


if __name__ == "__main__":
    main()
