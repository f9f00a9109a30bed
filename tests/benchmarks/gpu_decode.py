"""Decoding JPEGs on the GPU, an experiment: nvJPEG through torchvision, and nvImageCodec, beside one CPU core.

    python -m tests.benchmarks.gpu_decode [--small]

Whole images, in batches, without resizing or augmenting. bigbatch decodes on the CPU, where it decodes only the part of
an image that a crop needs. A decoder on the GPU shares it with training, so it would have to be many times as fast as
all CPU cores of a GPU together. What does not work on the machine is named.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import simplejpeg
import torch
from torchvision.io import ImageReadMode, decode_jpeg

from tests.benchmarks.gpu_step import made_up_photograph, needs_a_gpu, wait
from tests.benchmarks.rows import add_rows_option, is_measured, write_row

_BLOCKS = 5


def photographs(count: int, side: int) -> list[bytes]:
    """Return JPEG files of made-up photographs that are `side` pixels high."""
    generator, found = np.random.default_rng(0), []
    for _ in range(count):
        file = io.BytesIO()
        made_up_photograph(generator, side).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


@cache
def nvimgcodec_decoder() -> Any:
    from nvidia import nvimgcodec  # not part of every installation

    return nvimgcodec.Decoder()


def decoders(files: list[bytes], device: torch.device) -> dict[str, Callable[[], object]]:
    """Return functions that decode all files, by the name of the decoder."""
    tensors = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    return {
        "libjpeg-turbo, one core": lambda: [simplejpeg.decode_jpeg(file) for file in files],
        "nvJPEG through torchvision": lambda: decode_jpeg(tensors, mode=ImageReadMode.RGB, device=device),
        "nvImageCodec": lambda: nvimgcodec_decoder().decode(files),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few and small images")
    add_rows_option(parser)
    chosen = parser.parse_args()
    device, files = needs_a_gpu(), photographs(*(4, 48) if chosen.small else (256, 375))
    for name, decode in decoders(files, device).items():
        if is_measured(chosen.rows, decoder=name):
            continue
        rates = []
        try:
            for _ in range(1 + _BLOCKS):  # the first prepares the decoder
                started = time.perf_counter()
                decode()
                wait(device)
                rates.append(len(files) / (time.perf_counter() - started))
        except (RuntimeError, ImportError) as error:
            row = {"decoder": name, "does not work": str(error).splitlines()[0]}
        else:
            row = {"decoder": name, "images_per_second": statistics.median(rates[1:])}
        print(row, flush=True)
        write_row(chosen.rows, row)


if __name__ == "__main__":
    main()
