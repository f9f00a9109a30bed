"""Decoding a rectangle of a JPEG and nothing below it, by the libjpeg-turbo of nvImageCodec; no GPU takes part.

What lies above or beside the rectangle is read but not turned into pixels, and reading ends with its last row. The pixels
are those of the whole image, bit for bit. macOS has no nvImageCodec; there, whole images are decoded.
"""

import os
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

_END = b"\xff\xd9"  # a file without it is cut off, maybe only below the rectangle


def decode_rectangle(image: bytes, top: int, left: int, height: int, width: int) -> np.ndarray | None:
    """Return a part of a JPEG as RGB, uint8 ``[height, width, 3]``.

    None where the whole image has to be decoded: data are missing, libjpeg-turbo makes no RGB of this kind of JPEG, or there
    is no nvImageCodec.
    """
    codec = _codec()
    if codec is None or not image.endswith(_END):
        return None
    library, decoder, parameters = codec
    region = library.Region(top, left, top + height, left + width)
    try:
        decoded = decoder.decode(library.CodeStream(image).get_sub_code_stream(region=region), params=parameters)
    except RuntimeError:
        return None
    return None if decoded is None else np.asarray(decoded)


@cache
def _codec():
    """The module nvImageCodec, its decoder and the parameters to decode with; None where it is not installed.

    Of its extensions libjpeg-turbo alone is loaded, as the others look for a GPU's libraries and complain on every start; and
    it is kept quiet, as what it refuses is decoded in another way.
    """
    if find_spec("nvidia") is None or (found := find_spec("nvidia.nvimgcodec")) is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for extension in Path(found.origin).parent.glob("extensions/*jpeg_turbo_ext*"):
            Path(folder, extension.name).symlink_to(extension)
        wanted = {"NVIMGCODEC_EXTENSIONS_PATH": folder, "PYNVIMGCODEC_VERBOSITY": "0"}
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)  # read when the module is imported, and no other time
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
    return nvimgcodec, decoder, nvimgcodec.DecodeParams(apply_exif_orientation=False)
