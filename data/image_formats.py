"""The image formats that training reads, and the file endings they go by."""

import importlib.util

from PIL import PngImagePlugin, features

# Only these formats: some of Pillow's readers start another program (EPS runs Ghostscript). No data set may do that.
_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx", ".jpm", ".j2c", ".jpc"),
    "HEIF": (".heic", ".heif", ".hif"),
}
# By Pillow's name of the format, which for a JPEG followed by further images is "MPO".
STORED_EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tiff",
    "PPM": "ppm",
    "AVIF": "avif",
    "JPEG2000": "jp2",
    "HEIF": "heic",
}
# Image formats that are not read. A file of such a format in a class folder would be missing from the data set, so it
# is reported.
_UNREAD_PICTURES = (
    *(".svg", ".psd", ".eps", ".jxl", ".ico", ".tga", ".exr", ".hdr", ".dcm", ".nii"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)


def _available(name: str) -> bool:
    if name == "AVIF":
        return "avif" in features.modules and bool(features.check("avif"))  # Pillow 11.3 and later know it
    if name == "JPEG2000":
        return bool(features.check("jpg_2000"))
    if name == "HEIF":
        return importlib.util.find_spec("pillow_heif") is not None
    return True


FORMATS = tuple(name for name in _ENDINGS if _available(name))
IMAGE_ENDINGS = tuple(ending for name in FORMATS for ending in _ENDINGS[name])
PICTURE_ENDINGS = (*(ending for endings in _ENDINGS.values() for ending in endings), *_UNREAD_PICTURES)

# Pillow refuses a PNG with more than 1 MiB of text, e.g. the parameters of an image generator, as if it were damaged.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 64 * 2**20

if "HEIF" in FORMATS:
    import pillow_heif

    pillow_heif.register_heif_opener()


def advice(ending: str) -> str:
    """Return what to do about pictures with an ending that is not among `IMAGE_ENDINGS`, as the end of a sentence."""
    if ending in _ENDINGS["HEIF"]:
        return "`pip install pillow-heif` makes them readable"
    if ending in (*_ENDINGS["AVIF"], *_ENDINGS["JPEG2000"]):
        return "a newer Pillow reads them"
    return "convert them, e.g. to PNG"
