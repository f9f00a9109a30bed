"""BatchNorm over statistics batches: one kernel call for each against one call over a reshaped micro-batch.

    python -m tests.benchmarks.batch_norm

The reshaped call puts the statistics batches beside each other in the channel dimension. It takes turns with the calls
one by one, on the shapes of ResNet-50 at 224 pixels, forward and backward, channels last.
"""

import statistics
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import batch_norm

SHAPES = [(64, 112), (64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7)]  # channels, pixels a side
STATISTICS, BATCHES, ROUNDS = 32, 4, 7


def one_call(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the same as a `StatisticsBatchNorm`, through one call of the kernel."""
    n, channels, height, width = x.shape
    beside = x.view(BATCHES, n // BATCHES, channels, height, width).transpose(0, 1)
    beside = beside.reshape(n // BATCHES, BATCHES * channels, height, width)
    weight, bias = layer.weight.repeat(BATCHES), layer.bias.repeat(BATCHES)
    seen = torch.zeros(2, BATCHES * channels, device=x.device)
    out = F.batch_norm(beside, seen[0], seen[1], weight, bias, training=True, momentum=1.0, eps=layer.eps)
    out = out.view(n // BATCHES, BATCHES, channels, height, width).transpose(0, 1)
    return out.reshape(n, channels, height, width).contiguous(memory_format=torch.channels_last)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    print(f"{device}, {BATCHES} statistics batches of {STATISTICS}, median of {ROUNDS} in ms")
    for channels, side in SHAPES:
        model = nn.Sequential(nn.BatchNorm2d(channels)).to(device).train()
        batch_norm.attach(model, STATISTICS)
        x = torch.randn(STATISTICS * BATCHES, channels, side, side, device=device)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        ways = {"one by one": lambda x, model=model: model(x), "one call": lambda x, model=model: one_call(model[0], x)}
        times: dict[str, list[float]] = {name: [] for name in ways}
        outputs = [way(x) for way in ways.values()]
        difference = (outputs[0] - outputs[1]).abs().max().item()
        gradient = torch.randn_like(x)
        for _ in range(ROUNDS):
            for name, way in ways.items():
                _wait(device)
                started = time.perf_counter()
                way(x).backward(gradient)
                _wait(device)
                times[name].append(1000 * (time.perf_counter() - started))
        shown = "  ".join(f"{name} {statistics.median(taken):8.1f}" for name, taken in times.items())
        print(f"{channels:5} × {side:3}²  {shown}  largest difference {difference:.1e}", flush=True)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
