"""Pillow's warnings about an image: with the name of the file, and each kind of them once.

Pillow warns of more than 89 million pixels, of damaged metadata and of unusual palettes. It reads such images, and its
own warnings would name a line of its code but no image.
"""

import mmap
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import PIL

from data.progress import say

_PILLOW = str(Path(PIL.__file__).parent)
_KINDS = 4096
# One byte per kind, in memory that forked workers share: else each worker would say every kind once.
_said = mmap.mmap(-1, _KINDS)


@contextmanager
def named_warnings(name: Callable[[], str]) -> Iterator[None]:
    """Say Pillow's warnings of the block in one line each, unless the same kind was said before; keep other warnings.

    Warnings are of one kind if their texts differ in numbers only.

    Args:
        name: returns the name of the image.
    """
    show = warnings.showwarning

    def say_once(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not filename.startswith(_PILLOW):
            return show(message, category, filename, lineno, file, line)
        text = " ".join(str(message).split())
        kind = zlib.crc32(re.sub(r"\d+", "", text).encode()) % _KINDS
        if not _said[kind]:
            _said[kind] = 1
            say(f"warning: {name()}: {text.rstrip('.')}; the image is read, and this is said only once")

    warnings.showwarning = say_once
    try:
        yield
    finally:
        warnings.showwarning = show
