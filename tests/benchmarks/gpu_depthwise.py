"""ConvNeXt's depthwise 7x7 convolution alone, forward and backward, in both memory formats.

    python -m tests.benchmarks.gpu_depthwise [--small]

bf16, at the four stages of ConvNeXt-T for 224 pixels. `bandwidth` is what it would be if every tensor passed through
memory once: input and output in the forward pass; both gradients and the input in the backward pass.
"""

import argparse
import statistics
import time

import torch
from torch import nn

from launcher.engines.arithmetic import set_arithmetic
from tests.benchmarks.gpu_step import needs_a_gpu, wait
from tests.benchmarks.rows import add_rows_option, is_measured, write_row

_STAGES = [(96, 56), (192, 28), (384, 14), (768, 7)]  # channels, side
_FORMATS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}


def seconds(images: int, channels: int, side: int, memory_format: torch.memory_format, device: torch.device) -> float:
    """Return the median seconds of a forward and backward pass."""
    convolution = nn.Conv2d(channels, channels, 7, padding=3, groups=channels).to(device, torch.bfloat16)
    convolution = convolution.to(memory_format=memory_format)
    x = torch.randn(images, channels, side, side, device=device, dtype=torch.bfloat16).to(memory_format=memory_format)
    x.requires_grad_()
    gradient, times = torch.ones_like(x), []
    for _ in range(13):
        wait(device)
        started = time.perf_counter()
        convolution(x).backward(gradient)
        wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few images and the last stage only")
    add_rows_option(parser)
    chosen = parser.parse_args()
    device, images = needs_a_gpu(), 2 if chosen.small else 128
    set_arithmetic()
    for channels, side in _STAGES[-1:] if chosen.small else _STAGES:
        for name, memory_format in _FORMATS.items():
            if is_measured(chosen.rows, channels=channels, format=name):
                continue
            took = seconds(images, channels, side, memory_format, device)
            bandwidth = 5 * 2 * images * channels * side**2 / took / 1e9
            row = {"channels": channels, "side": side, "format": name, "ms": 1e3 * took, "bandwidth, GB/s": bandwidth}
            print(row, flush=True)
            write_row(chosen.rows, row)


if __name__ == "__main__":
    main()
