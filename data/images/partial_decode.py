"""Decodes a rectangle of a JPEG with the libjpeg-turbo of nvImageCodec, on the CPU.

Rows above the rectangle and columns beside it are read but not turned into pixels, and reading ends with its last row.
The pixels are those of a full decode, bit for bit. nvImageCodec does not exist for macOS, where whole images are
decoded instead.
"""

import os
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

_JPEG_END = b"\xff\xd9"


def decode_rectangle(image: bytes, top: int, left: int, height: int, width: int) -> np.ndarray | None:
    """Return a rectangle of a JPEG as RGB, uint8 ``[height, width, 3]``.

    Returns None if the whole image has to be decoded instead: for a truncated file, for a kind of JPEG that
    libjpeg-turbo does not turn into RGB, and if nvImageCodec is not installed.
    """
    codec = _codec()
    # A file without its end marker is truncated, perhaps below the rectangle. Only a full decode would notice that.
    if codec is None or not image.endswith(_JPEG_END):
        return None
    library, decoder, parameters = codec
    region = library.Region(top, left, top + height, left + width)
    try:
        decoded = decoder.decode(library.CodeStream(image).get_sub_code_stream(region=region), params=parameters)
    except RuntimeError:
        return None
    return None if decoded is None else np.asarray(decoded)


@cache
def _codec() -> tuple[Any, Any, Any] | None:  # a compiled module and its objects, which have no types
    """Return the module nvImageCodec, its decoder and the decoding parameters; None where it is not installed."""
    if find_spec("nvidia") is None or (found := find_spec("nvidia.nvimgcodec")) is None or found.origin is None:
        return None
    # Only the libjpeg-turbo extension is loaded: the others look for GPU libraries and print complaints at every start.
    with tempfile.TemporaryDirectory() as folder:
        for extension in Path(found.origin).parent.glob("extensions/*jpeg_turbo_ext*"):
            Path(folder, extension.name).symlink_to(extension)
        # Verbosity 0: an image that it refuses is decoded by Pillow, so it needs no message.
        wanted = {"NVIMGCODEC_EXTENSIONS_PATH": folder, "PYNVIMGCODEC_VERBOSITY": "0"}
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)  # the module reads them when it is imported, and never again
        try:
            from nvidia import nvimgcodec
        finally:
            for name, value in before.items():
                del os.environ[name]
                if value is not None:
                    os.environ[name] = value
    decoder = nvimgcodec.Decoder(
        device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
        max_num_cpu_threads=1,
        backends=[nvimgcodec.Backend(nvimgcodec.CPU_ONLY)],
    )
    # Orientation is not applied, as torchvision and timm do not apply it either.
    return nvimgcodec, decoder, nvimgcodec.DecodeParams(apply_exif_orientation=False)
